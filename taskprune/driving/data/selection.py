"""Parts of data sets, and data sets kept in memory."""

from __future__ import annotations

from collections.abc import Sized
from typing import cast

from torch.utils.data import Dataset, Subset

from taskprune.driving.data.sample import DrivingSample
from taskprune.errors import InputError


class Cached(Dataset[DrivingSample]):
    """Keeps every sample in memory once it has been asked for.

    Images stay uint8: a 320 x 192 sample takes 0.3 MB. Each loading worker keeps its own copies.

    Args:
        dataset: Map-style, with a length.
    """

    def __init__(self, dataset: Dataset[DrivingSample]) -> None:
        self.dataset = dataset
        self._samples: dict[int, DrivingSample] = {}

    def __len__(self) -> int:
        return len(cast(Sized, self.dataset))

    def __getitem__(self, index: int) -> DrivingSample:
        sample = self._samples.get(index)
        if sample is None:
            sample = self._samples[index] = self.dataset[index]
        return sample


def hold_out(
    dataset: Dataset[DrivingSample], *, share: float, blocks: int = 1, gap: int = 0
) -> tuple[Subset[DrivingSample], Subset[DrivingSample]]:
    """Split a data set into a rest and a held-out part made of contiguous runs.

    Neighbouring video frames are nearly the same picture, so a random split would measure memory.
    Here the data set is cut into ``blocks`` runs of equal length and the end of each run is held
    out.

    Args:
        dataset: In recording order.
        share: Part of the samples to hold out, between 0 and 1.
        blocks: Number of runs; more runs make the held-out part more varied and less independent.
        gap: Samples before and after each held-out run that go to neither part.

    Returns:
        The rest and the held-out part, in the data set's order.

    Raises:
        InputError: An argument is out of range, or a part would be empty.
    """
    if not 0 < share < 1:
        raise InputError(f"`share` must lie between 0 and 1. Found {share!r}.")
    if blocks < 1 or gap < 0:
        raise InputError(
            f"`blocks` must be at least 1 and `gap` at least 0. Found {blocks}, {gap}."
        )
    n = len(cast(Sized, dataset))
    rest: list[int] = []
    held: list[int] = []
    for block in range(blocks):
        start, end = block * n // blocks, (block + 1) * n // blocks
        first = end - round(share * (end - start))
        held += range(first, end)
        rest += range(start if block == 0 else min(start + gap, end), max(start, first - gap))
    if not rest or not held:
        raise InputError(
            f"`hold_out` would leave {len(rest)} and {len(held)} samples of {n}. "
            "Use fewer `blocks`, a smaller `gap` or another `share`."
        )
    return Subset(dataset, rest), Subset(dataset, held)
