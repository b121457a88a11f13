"""The order of the data, the same in every run of the same seed.

All random choices of a batch follow from ``(seed, epoch, batch, process)``: the generators of
Python, NumPy and torch are set anew at the start of each epoch and before each batch is fetched.
No generator state has to be saved, and a run that goes on in the middle of an epoch only has to
fetch and drop the batches before.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from taskprune.errors import CheckpointError, InputError

_EPOCH_START = 2**32 - 1


@dataclass(frozen=True)
class Position:
    """How far a run is in its data: ``batch`` batches of pass ``epoch`` are done."""

    epoch: int = 0
    batch: int = 0


def check_data(data: Any) -> None:
    """Check that data can be gone through more than once.

    Raises:
        InputError: It cannot be iterated, or is an iterator that is used up after one pass.
    """
    if not isinstance(data, Iterable):
        raise InputError(
            "`data` must be a DataLoader, a list of batches or another iterable. Found "
            f"{type(data).__name__}."
        )
    if isinstance(data, Iterator):
        raise InputError(
            f"`data` is a one-way iterator ({type(data).__name__}): a second pass or a run that "
            "goes on from a checkpoint would find it used up. Pass a list or a DataLoader."
        )


def endless(
    data: Iterable[Any],
    *,
    seed: int,
    process: int = 0,
    start: Position | None = None,
    source: Iterable[Any] | None = None,
) -> Iterator[tuple[Position, Any]]:
    """Go through the data again and again from a position, and say where each batch lies.

    The data may use the global generators, ``torch.Generator`` objects of a DataLoader and its
    samplers (set anew each epoch), and ``set_epoch`` where it or a sampler has one. Anything else
    that changes between passes (own generators, counters, persistent workers' states) would make
    a run that goes on differ from one that was never stopped.

    Args:
        data: The batches of this process.
        seed: Determines order and random choices, with ``process``.
        process: Number of this process.
        start: The first batch to yield.
        source: What the user handed in, where ``data`` is this process's share of it.

    Yields:
        ``(position, batch)``.

    Raises:
        InputError: A pass holds no batch.
        CheckpointError: The data ends before the position to start from.
    """
    start = start or Position()
    epoch = start.epoch
    while True:
        seed_generators(seed, epoch, _EPOCH_START)
        _start_epoch(data if source is None else source, seed, epoch)
        iterator = iter(data)
        skip = start.batch if epoch == start.epoch else 0
        index = 0
        while True:
            seed_generators(seed, epoch, index, process)
            try:
                batch = next(iterator)
            except StopIteration:
                break
            if index >= skip:
                yield Position(epoch, index), batch
            index += 1
        if index == 0:
            raise InputError(f"`data` holds no batch in epoch {epoch}. Expected at least one.")
        if index < skip:
            raise CheckpointError(
                f"The checkpoint lies after batch {skip} of an epoch; the data has {index}. Go on "
                "with the data the run began with."
            )
        epoch += 1


def seed_generators(*numbers: int) -> None:
    """Set the generators of Python, NumPy and torch from whole numbers."""
    words = np.random.SeedSequence(numbers).generate_state(3, np.uint64)
    random.seed(int(words[0]))
    np.random.seed(int(words[1] >> np.uint64(32)))  # noqa: NPY002 - what user code draws from
    # Not `torch.manual_seed`: where CUDA sleeps, each call queues a stack trace for its awakening.
    word = int(words[2] >> np.uint64(1))
    torch.default_generator.manual_seed(word)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(word)


@contextmanager
def preserved_generators(data: Any) -> Iterator[None]:
    """Restore the ``torch.Generator`` objects that the data holds, and their states."""
    states = [(generator, generator.get_state()) for generator in _generators(data)]
    # Accelerate gives a sampler without a generator one of its own.
    without = [part for part in _parts(data) if getattr(part, "generator", data) is None]
    try:
        yield
    finally:
        for part in without:
            part.generator = None
        for generator, state in states:
            generator.set_state(state)


def _start_epoch(data: Any, seed: int, epoch: int) -> None:
    word = int(
        np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0] >> np.uint64(1)
    )
    for generator in _generators(data):
        generator.manual_seed(word)
    for part in _parts(data):
        set_epoch = getattr(part, "set_epoch", None)
        if callable(set_epoch):
            set_epoch(epoch)


def _parts(data: Any) -> list[Any]:
    batch_sampler = getattr(data, "batch_sampler", None)
    parts = [
        data,
        getattr(data, "dataset", None),
        getattr(data, "sampler", None),
        batch_sampler,
        getattr(batch_sampler, "sampler", None),
    ]
    return list({id(part): part for part in parts if part is not None}.values())


def _generators(data: Any) -> list[torch.Generator]:
    found = (getattr(part, "generator", None) for part in _parts(data))
    return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())
