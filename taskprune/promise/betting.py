r"""Bounds on a mean that hold for every number of samples, whatever their distribution.

Somebody who doubts that the mean loss is as small as :math:`m` can be bet against: from each sample
:math:`d_i \le w` the wealth

.. math:: K(m) = \sum_k s_k \prod_i \left(1 + f_k \frac{m - d_i}{w - m}\right)

grows where losses are below :math:`m`. Were the mean :math:`m` or more, no factor would exceed 1 on
average, nor would :math:`K(m)`, so that it reaches :math:`1 / \alpha` with a probability of at most
:math:`\alpha` (Markov). The fractions :math:`f_k` halve from nearly all that may be bet, and so do
their shares :math:`s_k`: small tolerances on a wide range need bold bets, noisy losses cautious
ones. The order of the samples does not matter.

References:
    Waudby-Smith and Ramdas, *Estimating means of bounded random variables by betting*, Journal of
    the Royal Statistical Society B 86, 2024, arXiv:2010.09686. Their bets adapt along the samples;
    a mixture over fixed ones needs no order. The empirical Bernstein bound of Maurer and Pontil
    (COLT 2009, arXiv:0907.3740) holds under the same assumptions and needs several times as many
    samples for losses of a few hundredths of the range.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Verdict:
    """What samples say of one task.

    Attributes:
        holds: Whether the task may be promised to lose no more than its tolerance.
        samples: How many there are.
        lost: What the task lost on them.
        at_most: What it loses at most, with the confidence asked for.
        needed: How many samples like these it would take; ``None`` where it holds, where no number
            does, or where the method cannot tell.
        least: How many it takes at the very least, where nothing at all is lost; ``None`` where the
            method cannot tell.
    """

    holds: bool
    samples: int
    lost: float
    at_most: float
    needed: int | None
    least: int | None


FloatArray: TypeAlias = NDArray[np.float64]

FRACTIONS: FloatArray = 0.99 * 0.5 ** np.arange(10, dtype=np.float64)
"""What part of the most that may be bet is bet on each sample."""

SHARES: FloatArray = FRACTIONS / FRACTIONS.sum()
"""How much of the wealth begins with each."""


def log_wealth(losses: FloatArray, mean: float, largest: float) -> float:
    """Return the logarithm of the wealth against a mean of `mean` or more.

    Args:
        losses: One a sample, none above `largest`. Shape ``[n]``.
        mean: The mean that is doubted.
        largest: What a loss can be at most.
    """
    if mean >= largest:
        return math.inf  # no loss is as large
    return float(np.logaddexp.reduce(_log_wealths(losses, mean, largest)))


def upper_bound(losses: FloatArray, largest: float, level: float) -> float:
    """Return what the mean loss is below, but for a probability of `level`.

    Args:
        losses: One a sample, none above `largest`. Shape ``[n]``.
        largest: What a loss can be at most; returned where the samples say nothing.
        level: Probability that the mean is larger after all.
    """
    from scipy.optimize import brentq  # takes its time to import

    asked = math.log(1 / level)

    def short_of(mean: float) -> float:
        return min(log_wealth(losses, mean, largest), 1e6) - asked

    lower, upper = float(losses.mean()), largest - 1e-9
    if lower >= upper or short_of(upper) < 0:
        return largest
    return float(brentq(short_of, lower, upper, xtol=1e-9))


def samples_needed(losses: FloatArray, mean: float, largest: float, level: float) -> int | None:
    """Return how many samples like these it takes; ``None`` where no number of them does.

    Args:
        losses: One a sample, none above `largest`; a single 0 tells what it takes at least.
        mean: The mean that is doubted.
        largest: What a loss can be at most.
        level: Probability of being wrong.
    """
    if mean >= largest:
        return 1
    growth = (_log_wealths(losses, mean, largest) - np.log(SHARES)) / len(losses)
    grows = growth > 0
    if not grows.any():
        return None
    asked = (math.log(1 / level) - np.log(SHARES[grows])) / growth[grows]
    return math.ceil(float(asked.min()))


def _log_wealths(losses: FloatArray, mean: float, largest: float) -> FloatArray:
    """Return the logarithm of what each share has become."""
    won = (mean - losses) / (largest - mean)
    bets: FloatArray = np.log(SHARES) + np.log1p(FRACTIONS[:, None] * won).sum(axis=1)
    return bets
