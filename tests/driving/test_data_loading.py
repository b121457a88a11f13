"""Laws of batching, order, caching and splitting."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from taskprune.driving.batch import DrivingBatch
from taskprune.driving.data import (
    Cached,
    DrivingSample,
    RoadScenes,
    collate,
    loader,
    standard_augment,
)
from taskprune.driving.data.loading import EpochSampler
from taskprune.errors import DataError, InputError

SCENES = RoadScenes(10, seed=3, size=(96, 64))
FORK = "ignore:This process .* is multi-threaded:DeprecationWarning"
"""Newer Pythons warn of any fork beside threads; the workers here use none of them."""


class Numbered(Dataset[DrivingSample]):
    """Images whose pixels all hold their index; counts how often each is made."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.made: list[int] = []

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> DrivingSample:
        self.made.append(index)
        return DrivingSample(torch.full((3, 32, 32), index, dtype=torch.uint8))


class Broken(Numbered):
    """Fails on sample 1 as a damaged file would."""

    def __getitem__(self, index: int) -> DrivingSample:
        if index == 1:
            raise DataError("photo.jpg: expected a readable image file.")
        return super().__getitem__(index)


def order(batches: DataLoader[DrivingBatch]) -> list[int]:
    return [round(255 * float(x)) for batch in batches for x in batch.images[:, 0, 0, 0]]


def same(a: DrivingBatch, b: DrivingBatch) -> bool:
    assert a.boxes is not None
    assert b.boxes is not None
    assert a.drivable is not None
    assert b.drivable is not None
    return (
        torch.equal(a.images, b.images)
        and torch.equal(a.drivable, b.drivable)
        and len(a) == len(b)
        and all(torch.equal(x, y) for x, y in zip(a.boxes, b.boxes, strict=True))
    )


def test_collate_keeps_every_label() -> None:
    samples = [SCENES[i] for i in range(3)]
    batch = collate(samples)
    assert batch.images.shape == (3, 3, 64, 96)
    assert batch.images.dtype == torch.float32
    assert batch.boxes is not None
    assert batch.labels is not None
    assert batch.lane is not None
    assert batch.drivable is not None
    for i, sample in enumerate(samples):
        assert torch.equal((batch.images[i] * 255).round().byte(), sample.image)
        assert batch.boxes[i] is sample.boxes
        assert batch.labels[i] is sample.labels
        assert sample.lane is not None
        assert torch.equal(batch.lane[i], sample.lane.float())
        assert sample.drivable is not None
        assert torch.equal(batch.drivable[i], sample.drivable.float())


def test_collate_keeps_absent_tasks_absent() -> None:
    batch = collate([replace(SCENES[i], lane=None, boxes=None, labels=None) for i in range(2)])
    assert batch.lane is None
    assert batch.boxes is None
    assert batch.labels is None
    assert batch.drivable is not None


def test_collate_refuses_what_does_not_stack() -> None:
    with pytest.raises(InputError, match="at least one"):
        collate([])
    with pytest.raises(InputError, match=r"one size.*\(64, 96\), \(192, 320\)"):
        collate([SCENES[0], RoadScenes(1, seed=0)[0]])
    with pytest.raises(InputError, match="`lane` missing on 1 of 2"):
        collate([SCENES[0], replace(SCENES[1], lane=None)])


def test_epochs_differ_but_repeat_with_the_seed() -> None:
    def make(seed: int) -> DataLoader[DrivingBatch]:
        return loader(Numbered(20), batch_size=4, shuffle=True, seed=seed)

    one, two, other = make(1), make(1), make(2)
    first, second = order(one), order(one)
    assert first == order(two)
    assert second == order(two)
    assert first != second
    assert first != order(other)
    assert sorted(first) == sorted(second) == list(range(20))


def test_an_epoch_can_be_resumed_by_its_number() -> None:
    one = loader(Numbered(20), batch_size=4, shuffle=True, seed=1)
    epochs = [order(one) for _ in range(3)]
    two = loader(Numbered(20), batch_size=4, shuffle=True, seed=1)
    assert isinstance(two.sampler, EpochSampler)
    two.sampler.set_epoch(2)
    assert order(two) == epochs[2]


def test_without_shuffling_all_samples_come_in_order() -> None:
    batches = loader(Numbered(10), batch_size=4, shuffle=False, seed=0)
    assert order(batches) == list(range(10))
    assert len(batches) == 3


def test_shuffling_drops_an_incomplete_batch_but_never_everything() -> None:
    assert len(order(loader(Numbered(10), batch_size=4, shuffle=True, seed=0))) == 8
    assert sorted(order(loader(Numbered(3), batch_size=4, shuffle=True, seed=0))) == [0, 1, 2]


@pytest.mark.filterwarnings(FORK)
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers: int) -> None:
    def make(n: int) -> DataLoader[DrivingBatch]:
        return loader(
            SCENES, batch_size=3, shuffle=True, seed=5, workers=n, augment=standard_augment()
        )

    alone, shared = make(0), make(workers)
    for _ in range(2):  # two epochs
        pairs = list(zip(alone, shared, strict=True))
        assert len(pairs) == 3
        assert all(same(a, b) for a, b in pairs)


def test_augmentation_differs_between_epochs_and_seeds() -> None:
    def first(seed: int) -> list[DrivingBatch]:
        batches = loader(
            SCENES, batch_size=10, shuffle=False, seed=seed, augment=standard_augment()
        )
        return [next(iter(batches)) for _ in range(2)]

    one, two = first(1)
    assert not same(one, two)
    assert same(one, first(1)[0])
    assert not same(one, first(2)[0])


def test_loading_leaves_the_global_generators_alone() -> None:
    torch.manual_seed(0)
    before, numbers = torch.get_rng_state(), repr(np.random.get_state())  # noqa: NPY002
    for _ in loader(SCENES, batch_size=4, shuffle=True, seed=1, augment=standard_augment()):
        pass
    assert torch.equal(torch.get_rng_state(), before)
    assert repr(np.random.get_state()) == numbers  # noqa: NPY002


@pytest.mark.filterwarnings(FORK)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_sample_stops_the_loader_with_its_name(workers: int) -> None:
    batches = loader(Broken(4), batch_size=2, shuffle=False, seed=0, workers=workers)
    with pytest.raises(DataError, match=r"photo\.jpg"):
        list(batches)


def test_wrong_loader_arguments_are_refused() -> None:
    with pytest.raises(InputError, match="`batch_size`"):
        loader(Numbered(3), batch_size=0, shuffle=False, seed=0)
    with pytest.raises(InputError, match="`seed`"):
        loader(Numbered(3), batch_size=1, shuffle=False, seed=-1)
    with pytest.raises(InputError, match="`workers`"):
        loader(Numbered(3), batch_size=1, shuffle=False, seed=0, workers=-1)
    with pytest.raises(InputError, match="at least one sample"):
        loader(Numbered(0), batch_size=1, shuffle=False, seed=0)


def test_a_cache_makes_each_sample_once() -> None:
    source = Numbered(4)
    cached = Cached(source)
    assert [int(cached[i].image[0, 0, 0]) for i in (2, 1, 2, 1, 2)] == [2, 1, 2, 1, 2]
    assert source.made == [2, 1]
    assert len(cached) == 4
