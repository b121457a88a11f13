"""Rows that stand for all of a call's, chosen by how much they count."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from taskprune.compensation.compensation_settings import CompensationSettings
from taskprune.compensation.reading_calls import Read
from taskprune.importance.distributed import summed

LEAST_ROWS = 64
"""Rows that are looked at however wide they are."""


@dataclass(frozen=True, eq=False, slots=True)
class Sample:
    """Rows of one call that stand for all of them.

    Attributes:
        rows: Numbers, ascending. Shape ``[blocks, S]``.
        factor: How many rows each stands for. Shape ``[blocks, S]``, float64.
        loudness: What each task says of it. Shape ``[T, blocks, S]``.
    """

    rows: Tensor
    factor: Tensor
    loudness: Tensor


class RowSamples:
    """Rows of the calls that read through each parameter, batch by batch.

    Args:
        n_tasks: How many tasks say how much rows count.
        settings: How many rows to remember, and what they count.
    """

    def __init__(self, n_tasks: int, settings: CompensationSettings) -> None:
        self._n_tasks, self._settings = n_tasks, settings
        self._taken: dict[str, dict[int, list[Sample]]] = {}
        self._totals: dict[str, Tensor] = {}

    def of(self, name: str, batch: int) -> Sequence[Sample]:
        """Return those of a reader in a batch, one for each call."""
        return self._taken.get(name, {}).get(batch, ())

    def take(self, read: Read, loudness: Tensor, batch: int) -> None:
        """Take rows by how much they count: systematic sampling, the same for the same batch."""
        n_tasks, n_blocks, n_rows = loudness.shape
        totals = loudness.new_empty(n_tasks + 1, dtype=torch.float64)
        totals[:-1] = loudness.double().sum((1, 2))
        totals[-1] = n_blocks * n_rows
        known = self._totals.get(read.name)
        self._totals[read.name] = totals if known is None else known + totals
        most = max(LEAST_ROWS, min(self._settings.rows, self._settings.entries // _width(read)))
        if n_rows <= most:
            rows = torch.arange(n_rows, device=loudness.device).expand(n_blocks, -1)
            sample = Sample(rows, torch.ones_like(rows, dtype=torch.float64), loudness)
        else:
            mean = (totals[:-1] / totals[-1])[:, None, None]
            # No row stands for more than a hundred times as many as another.
            counts = (loudness / mean.where(mean > 0, torch.inf)).sum(0).clamp_min(0.02)
            cumulated = counts.cumsum(1)
            step = cumulated[:, -1:] / most
            at = (torch.arange(most, device=loudness.device, dtype=torch.float64) + 0.5) * step
            rows = torch.searchsorted(cumulated, at).clamp_max(n_rows - 1)
            chosen = loudness.gather(2, rows.expand(n_tasks, -1, -1))
            sample = Sample(rows, step / counts.gather(1, rows), chosen)
        self._taken.setdefault(read.name, {}).setdefault(batch, []).append(sample)

    def finish(self, names: Iterable[str]) -> None:
        """Add up over processes what rows count; all of them name the same readers."""
        none = torch.zeros(self._n_tasks + 1, dtype=torch.float64, device="cpu")
        totals = {name: self._totals.get(name, none).cpu() for name in names}
        self._totals = {name: summed(total) for name, total in totals.items()}

    def weights(self, name: str, sample: Sample) -> Tensor:
        """Return what each row of a sample counts. Shape ``[blocks, S]``, float64."""
        totals = self._totals[name].to(sample.factor.device)
        mean = totals[:-1] / totals[-1].clamp_min(1)
        heard = sample.loudness.double() / mean.where(mean > 0, torch.inf)[:, None, None]
        return (self._settings.floor + heard.sum(0)) * sample.factor


def _width(read: Read) -> int:
    """Return how many entries a row of the input has, over all blocks."""
    kernel = getattr(read.geometry, "kernel", ())
    channels = read.x.shape[-len(kernel) - 1]
    return int(channels * (prod(kernel) if read.geometry.by_output else 1)) or 1
