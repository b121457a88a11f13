"""Augmentations of driving samples: image and labels change together.

Each is a callable ``(sample, rng) -> sample`` that leaves its input as it was.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taskprune.driving.data.loading import Augment
from taskprune.driving.data.sample import DrivingSample
from taskprune.driving.data.scenes import noise

MIN_BOX_SHARE = 0.25
"""A box that a crop cuts to less than this share of its area is dropped."""
MIN_BOX_SIDE = 6.0
"""A box that a crop cuts to less than this, in pixels of a 320 pixel wide image, is dropped."""


@dataclass(frozen=True)
class Chain:
    """Applies augmentations one after the other.

    Attributes:
        steps: In order.
    """

    steps: tuple[Augment, ...]

    def __call__(self, sample: DrivingSample, rng: np.random.Generator) -> DrivingSample:
        for step in self.steps:
            sample = step(sample, rng)
        return sample


@dataclass(frozen=True)
class Flip:
    """Mirrors left and right.

    Attributes:
        chance: How often, 0 to 1.
    """

    chance: float = 0.5

    def __call__(self, sample: DrivingSample, rng: np.random.Generator) -> DrivingSample:
        return flipped(sample) if rng.random() < self.chance else sample


def flipped(sample: DrivingSample) -> DrivingSample:
    """Return the sample mirrored left to right, labels included."""
    boxes = sample.boxes
    if boxes is not None:
        boxes = torch.cat((1 - boxes[:, :1], boxes[:, 1:]), dim=1)
    return replace(
        sample,
        image=sample.image.flip(-1),
        boxes=boxes,
        drivable=None if sample.drivable is None else sample.drivable.flip(-1),
        lane=None if sample.lane is None else sample.lane.flip(-1),
    )


@dataclass(frozen=True)
class ScaleShift:
    """Zooms and moves the picture inside its frame; what comes from outside is grey.

    Attributes:
        scale: Least and greatest zoom; drawn evenly in its logarithm.
        shift: Greatest move to each side, in image sizes. Zoomed pictures move further, up to their
            borders.
        chance: How often, 0 to 1.
    """

    scale: tuple[float, float] = (0.85, 1.5)
    shift: float = 0.08
    chance: float = 0.7

    def __call__(self, sample: DrivingSample, rng: np.random.Generator) -> DrivingSample:
        chance, zoom, right, down = rng.random(4)
        if chance >= self.chance:
            return sample
        low, high = self.scale
        scale = float(low * (high / low) ** zoom)
        room = self.shift + max(0.0, 0.5 * (1 - 1 / scale))
        return moved(
            sample, scale=scale, centre=(0.5 + room * (2 * right - 1), 0.5 + room * (2 * down - 1))
        )


def moved(sample: DrivingSample, *, scale: float, centre: tuple[float, float]) -> DrivingSample:
    """Return the view of a sample at a zoom around a point.

    Args:
        sample: To look at.
        scale: Zoom; above 1 enlarges.
        centre: The point (x, y) that comes to the middle, in image sizes.
    """
    height, width = sample.image.shape[-2:]
    columns = ((np.arange(width) + 0.5) / width - 0.5) / scale + centre[0]
    rows = ((np.arange(height) + 0.5) / height - 0.5) / scale + centre[1]
    inside = ((rows >= 0) & (rows < 1))[:, None] & ((columns >= 0) & (columns < 1))
    y, x = rows * height - 0.5, columns * width - 0.5
    image = _interpolated(_interpolated(sample.image.numpy(), y, axis=1), x, axis=2)
    image[:, ~inside] = 114
    nearest = (
        np.clip(np.rint(y), 0, height - 1).astype(int),
        np.clip(np.rint(x), 0, width - 1).astype(int),
    )

    def mask(values: Tensor | None) -> Tensor | None:
        if values is None:
            return None
        return torch.from_numpy(values.numpy()[nearest[0][:, None], nearest[1]] * inside)

    boxes, labels = _moved_boxes(sample, scale, centre)
    return DrivingSample(
        torch.from_numpy(np.rint(image).astype(np.uint8)),
        boxes,
        labels,
        mask(sample.drivable),
        mask(sample.lane),
    )


def _interpolated(
    image: NDArray[np.generic], at: NDArray[np.float64], *, axis: int
) -> NDArray[np.float32]:
    """Return linear samples of an image along one axis; beyond the borders the border repeats."""
    last = image.shape[axis] - 1
    at = np.clip(at, 0, last)
    low = at.astype(int)
    shape = [1, 1, 1]
    shape[axis] = len(at)
    part = (at - low).astype(np.float32).reshape(shape)
    below = np.take(image, low, axis=axis).astype(np.float32)
    above = np.take(image, np.minimum(low + 1, last), axis=axis)
    below += part * (above - below)
    return below


def _moved_boxes(
    sample: DrivingSample, scale: float, centre: tuple[float, float]
) -> tuple[Tensor | None, Tensor | None]:
    if sample.boxes is None:
        return None, sample.labels
    middle = (sample.boxes[:, :2] - sample.boxes.new_tensor(centre)) * scale + 0.5
    side = sample.boxes[:, 2:] * scale
    low, high = (middle - side / 2).clamp(0, 1), (middle + side / 2).clamp(0, 1)
    seen = high - low
    height, width = sample.image.shape[-2:]
    pixels = seen * seen.new_tensor((width, height)) * (320 / width)
    keep = (seen.prod(1) >= MIN_BOX_SHARE * side.prod(1)) & (pixels >= MIN_BOX_SIDE).all(1)
    boxes = torch.cat(((low + high) / 2, seen), dim=1)[keep]
    return boxes, None if sample.labels is None else sample.labels[keep]


@dataclass(frozen=True)
class ColourJitter:
    """Changes exposure, contrast, gamma, white balance and saturation.

    Attributes:
        strength: 0 changes nothing; 1 is strong.
    """

    strength: float = 0.5

    def __call__(self, sample: DrivingSample, rng: np.random.Generator) -> DrivingSample:
        gain, contrast, gamma, saturation = np.exp(0.5 * self.strength * rng.uniform(-1, 1, 4))
        balance = np.exp(0.15 * self.strength * rng.uniform(-1, 1, 3))
        level = np.linspace(0, 1, 256)[None] ** gamma * gain * balance[:, None]
        table = np.clip((level - 0.4) * contrast + 0.4, 0, 1) * 255
        image = sample.image.numpy()
        # One table per channel does all but saturation, without leaving bytes.
        bands = np.stack(
            [np.take(t, band) for t, band in zip(table.astype(np.float32), image, strict=True)]
        )
        grey = bands.mean(axis=0)
        bands = grey + np.float32(saturation) * (bands - grey)
        return replace(sample, image=torch.from_numpy(np.clip(bands, 0, 255).astype(np.uint8)))


@dataclass(frozen=True)
class SensorNoise:
    """Adds the grain of a dim picture.

    Attributes:
        deviation: Greatest standard deviation, in grey levels of 255.
    """

    deviation: float = 8.0

    def __call__(self, sample: DrivingSample, rng: np.random.Generator) -> DrivingSample:
        deviation = np.float32(rng.uniform(0, self.deviation))
        image = sample.image.numpy().astype(np.float32)
        _, height, width = image.shape
        for band in image:
            band += deviation * noise.cut(noise.white(), rng, height=height, width=width)
        return replace(sample, image=torch.from_numpy(np.clip(image, 0, 255).astype(np.uint8)))


def standard_augment() -> Chain:
    """Return the usual chain: flip, zoom and move, colours, grain."""
    return Chain((Flip(), ScaleShift(), ColourJitter(), SensorNoise()))
