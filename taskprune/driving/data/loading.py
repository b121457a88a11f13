"""Deterministic loading: order and augmentation follow from the seed; images kept in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from taskprune.driving.batch import DrivingBatch
from taskprune.driving.data.sample import DrivingSample, collate
from taskprune.errors import InputError

Augment: TypeAlias = Callable[[DrivingSample, np.random.Generator], DrivingSample]
"""Returns a changed copy of a sample; all its randomness comes from the generator."""

_ORDER, _AUGMENT = 0, 1


def loader(
    dataset: Dataset[DrivingSample],
    *,
    batch_size: int,
    shuffle: bool,
    seed: int,
    workers: int = 0,
    augment: Augment | None = None,
) -> DataLoader[DrivingBatch]:
    """Return a loader of `DrivingBatch` whose every epoch is determined by ``seed``.

    Each pass is a new epoch: a new order (if shuffled) and new augmentations. Sample ``i`` in epoch
    ``e`` is augmented with a generator made from ``(seed, e, i)``, so the number of workers changes
    nothing. ``loader.sampler.set_epoch(e)`` resumes at epoch ``e``. No global generator is drawn
    from.

    Args:
        dataset: Map-style, with a length.
        batch_size: Samples to a batch.
        shuffle: A new order each epoch. Then an incomplete last batch is dropped, because norm
            layers cannot train on one sample; a data set smaller than a batch is kept whole.
        seed: At least 0.
        workers: Processes that load; 0 loads in this one.
        augment: Applied to every sample.

    Raises:
        InputError: ``batch_size``, ``seed`` or ``workers`` is out of range, or the data set is
            empty.
    """
    n = len(cast(Sized, dataset))
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("seed", seed, 0),
        ("workers", workers, 0),
    ):
        if value < least:
            raise InputError(f"`{name}` must be at least {least}. Found {value!r}.")
    if n == 0:
        raise InputError("`dataset` must hold at least one sample. Found none.")
    sampler = EpochSampler(n, shuffle=shuffle, seed=seed)
    return DataLoader(
        cast("Dataset[Any]", _Augmented(dataset, augment, seed)),
        batch_size=batch_size,
        sampler=cast("Sampler[Any]", sampler),
        num_workers=workers,
        collate_fn=collate,
        drop_last=shuffle and n >= batch_size,
        # Without its own generator the loader would draw a base seed from the global one.
        generator=torch.Generator().manual_seed(seed),
        persistent_workers=workers > 0,
    )


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields ``(epoch, index)``; every pass is the next epoch.

    Args:
        n: Number of samples.
        shuffle: Whether to permute the indices, differently in each epoch.
        seed: Determines all orders.
    """

    def __init__(self, n: int, *, shuffle: bool, seed: int) -> None:
        self.n, self.shuffle, self.seed, self.epoch = n, shuffle, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass epoch number ``epoch``."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.epoch
        self.epoch += 1
        order = np.arange(self.n)
        if self.shuffle:
            order = np.random.default_rng((self.seed, _ORDER, epoch)).permutation(self.n)
        return iter([(epoch, int(index)) for index in order])


class _Augmented(Dataset[DrivingSample]):
    """Takes ``(epoch, index)`` and returns the augmented sample."""

    def __init__(self, dataset: Dataset[DrivingSample], augment: Augment | None, seed: int) -> None:
        self.dataset, self.augment, self.seed = dataset, augment, seed

    def __len__(self) -> int:
        return len(cast(Sized, self.dataset))

    def __getitem__(self, key: tuple[int, int]) -> DrivingSample:
        epoch, index = key
        sample = self.dataset[index]
        if self.augment is None:
            return sample
        return self.augment(sample, np.random.default_rng((self.seed, _AUGMENT, epoch, index)))


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
