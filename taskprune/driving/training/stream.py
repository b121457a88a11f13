"""An endless stream of training batches that can start anywhere and is the same every time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from taskprune.driving.training.settings import TrainSettings
from taskprune.driving.training.team import Team
from taskprune.errors import InputError

Draw = tuple[int, int]
"""Which sample, and the how-many-eth drawn sample of the run it is."""

AugmentSample: TypeAlias = Callable[[Any, np.random.Generator], Any]
"""``(sample, generator) -> sample``; all randomness comes from the generator."""

_ORDER, _AUGMENT = 2, 3


class Shuffled(Sampler[list[Draw]]):
    """Batches of draws, without end; each pass over the data has its own order.

    Args:
        n_samples: Size of the data set.
        batch_size: Draws in a batch. A pass's end may lie within a batch.
        seed: Seed of the orders.
        first_step: Number of the first batch.
        team: Processes that share each step's draws.
    """

    def __init__(
        self, n_samples: int, *, batch_size: int, seed: int, first_step: int, team: Team
    ) -> None:
        self.n_samples = n_samples
        self.batch_size = batch_size
        self.seed = seed
        self.first_step = first_step
        self.team = team

    def __iter__(self) -> Iterator[list[Draw]]:
        step = self.first_step
        order, passage = self._order(0), 0
        while True:
            first = (step * self.team.size + self.team.rank) * self.batch_size
            batch = []
            for draw in range(first, first + self.batch_size):
                if draw // self.n_samples != passage:
                    passage = draw // self.n_samples
                    order = self._order(passage)
                batch.append((int(order[draw % self.n_samples]), draw))
            yield batch
            step += 1

    def _order(self, passage: int) -> NDArray[np.int64]:
        return np.random.default_rng((self.seed, _ORDER, passage)).permutation(self.n_samples)


class Drawn(Dataset[Any]):
    """Samples by draw; a draw's augmentation depends on seed and draw alone."""

    def __init__(self, dataset: Dataset[Any], *, seed: int, augment: AugmentSample | None) -> None:
        self.dataset = dataset
        self.seed = seed
        self.augment = augment

    def __getitem__(self, draw: Draw) -> Any:
        index, number = draw
        sample = self.dataset[index]
        if self.augment is None:
            return sample
        return self.augment(sample, np.random.default_rng((self.seed, _AUGMENT, number)))


def training_batches(
    dataset: Dataset[Any],
    *,
    settings: TrainSettings,
    collate: Callable[[Sequence[Any]], Any],
    first_step: int,
    team: Team,
    augment: AugmentSample | None,
) -> Iterator[Any]:
    """Return the batches of step ``first_step`` and all after it.

    Raises:
        InputError: The data set is empty.
    """
    n_samples = len(dataset)  # type: ignore[arg-type]
    if n_samples == 0:
        raise InputError("Training needs at least one sample. Found an empty data set.")
    order = Shuffled(
        n_samples,
        batch_size=settings.batch_size,
        seed=settings.seed,
        first_step=first_step,
        team=team,
    )
    loader: DataLoader[Any] = DataLoader(
        Drawn(dataset, seed=settings.seed, augment=augment),
        batch_sampler=order,
        collate_fn=collate,
        num_workers=settings.workers,
        prefetch_factor=4 if settings.workers else None,
        worker_init_fn=_single_threaded,
        # Without its own generator the loader would draw a base seed from the global one.
        generator=torch.Generator().manual_seed(settings.seed),
    )
    return iter(loader)


def _single_threaded(_: int) -> None:
    torch.set_num_threads(1)
