"""What several channels of one group cost together: effects add up before they are squared."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def accumulated(scores: NDArray[np.float64], correlation: float) -> NDArray[np.float64]:
    r"""Return what each channel of a group adds to the score of all that went before it.

    Where scores are mean squares of effects, that of several channels is the mean square of the sum
    of their effects: with :math:`a_k` the root of the k-th score and :math:`\rho` the correlation
    of any two effects,

    .. math:: S_n = \sum_{k \le n} a_k^2 + 2 \rho \sum_{j < k \le n} a_j a_k, \qquad
              S_n - S_{n-1} = a_n^2 + 2 \rho \, a_n \sum_{j < n} a_j .

    So a group pays ever more for each further channel, and none is taken to pieces because its
    channels are cheap one by one. A single correlation for all pairs is a simplification: matrices
    of all channels estimated from a few batches would be mostly noise. Ours.

    Args:
        scores: Ascending. Shape ``[n]``, float64.
        correlation: 0 to 1; with 0 the scores are returned.
    """
    if correlation == 0:
        return scores
    roots = np.sqrt(np.maximum(scores, 0.0))
    before = np.concatenate([[0.0], np.cumsum(roots)[:-1]]) if len(roots) else roots
    added: NDArray[np.float64] = scores + 2 * correlation * roots * before
    return added
