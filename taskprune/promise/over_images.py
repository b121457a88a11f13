"""Metrics that are no means over samples, such as mAP: the bootstrap over images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import nn

from taskprune.errors import InputError
from taskprune.promise.betting import FloatArray, Verdict

OfImages: TypeAlias = Callable[[NDArray[np.int64]], float]
"""Numbers of images, some of them several times, to the metric over these; higher is better."""

LEAST_IMAGES = 500
"""With fewer its confidence is far from what it says, as `benchmarks/promise.py` measures it."""

RESAMPLINGS = 2000
"""How many sets of images are drawn."""


@dataclass(frozen=True, eq=False)
class OverImages:
    """Held-out images and a metric of one task over any choice of them.

    The confidence is approximate, unlike that of :class:`PerSample`: the bootstrap takes the images
    at hand for all there are, and what is rarer than one in a few hundred of them it does not see.
    The images must be independent draws of the data that a promise is to hold for.

    Attributes:
        task: The task that the metric is of.
        images: How many images there are.
        measure: ``(model) -> (numbers of images) -> metric``. The model is run once, on all images;
            what it returns is called some thousand times, and once for each image left out.
        seed: Of the draws; the same for both models.
    """

    task: str
    images: int
    measure: Callable[[nn.Module], OfImages] = field(repr=False)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.images < LEAST_IMAGES:
            raise InputError(
                f"A bootstrap needs {LEAST_IMAGES} images at the very least. Found {self.images}."
            )

    def measured(self, model: nn.Module) -> dict[str, FloatArray]:
        """Return the metric over all images, over each draw, and with each image left out in turn.

        Shape ``[1 + draws + images]``.

        Raises:
            InputError: The metric is no finite number.
        """
        metric = self.measure(model)
        everything = np.arange(self.images)
        drawn = np.random.default_rng(self.seed).integers(
            self.images, size=(RESAMPLINGS, self.images)
        )
        without = (np.delete(everything, image) for image in range(self.images))
        found = np.array([float(metric(chosen)) for chosen in (everything, *drawn, *without)])
        if not np.isfinite(found).all():
            raise InputError(
                f"The metric of `{self.task}` must be a finite number over any choice of images. "
                "Found one that is not: give choices without any label a value."
            )
        return {self.task: found}

    def judged(
        self, before: FloatArray, after: FloatArray, *, task: str, tolerance: float, level: float
    ) -> Verdict:
        r"""Say whether the metric fell by no more than it may.

        Paired: both models are measured on the same draws. The bound is the quantile of what is
        lost on them that corrects for bias and skewness (:math:`BC_a`), since losses that few
        images suffer make the plain one too low.

        Args:
            before: Of the original, from :meth:`measured`.
            after: Of the smaller model.
            task: Its name; not needed here.
            tolerance: What the metric may fall by.
            level: Probability of saying so where it is not so, approximately.

        References:
            Efron, *Better Bootstrap Confidence Intervals*, Journal of the American Statistical
            Association 82, 1987.
        """
        del task
        lost = before - after
        at_most = _bound(lost[0], lost[1 : 1 + RESAMPLINGS], lost[1 + RESAMPLINGS :], level)
        return Verdict(at_most <= tolerance, self.images, float(lost[0]), at_most, None, None)


def _bound(lost: float, drawn: FloatArray, without: FloatArray, level: float) -> float:
    """Return the upper end of the interval from losses: of all, of draws, with one left out."""
    from scipy.special import ndtr, ndtri  # takes its time to import

    influence = without.mean() - without
    spread = float(np.square(influence).sum()) ** 1.5
    skew = float((influence**3).sum()) / (6 * spread) if spread else 0.0
    below = float((drawn < lost).mean() + (drawn == lost).mean() / 2)
    bias = float(ndtri(np.clip(below, 1 / len(drawn), 1 - 1 / len(drawn))))
    reach = bias + float(ndtri(1 - level))
    return float(np.quantile(drawn, ndtr(bias + reach / (1 - skew * reach))))
