"""What each task has to lose: its loss with all channels silenced, less its loss as it is. Ours."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as processes

from taskprune.calling.inputs import TaskBatch
from taskprune.importance.channel_index import ChannelIndex
from taskprune.importance.distributed import several_processes, summed
from taskprune.importance.scores import Evidence
from taskprune.restore.lending import lent

_log = logging.getLogger("taskprune")

BATCHES = 2
"""On how many labelled batches stakes are measured, in all processes together, one in each at
least. They are factors of whole tasks, so a few say enough; each takes one more forward.
"""


class Stakes:
    """Measures stakes while a criterion goes through its batches.

    With all channels that can go at zero, what comes out knows next to nothing of the input: about
    the loss of the best guess without looking. The difference to the loss as it is says what the
    channels together are worth to the task, whatever constant the loss has.

    Args:
        model: The model.
        index: Its channels.
        evidence: Tasks, and how a batch reaches the model.
        parameters: Those that hold channels, by name.
    """

    def __init__(
        self,
        model: nn.Module,
        index: ChannelIndex,
        evidence: Evidence,
        parameters: Mapping[str, Tensor],
    ) -> None:
        self.model, self.index, self.parameters = model, index, parameters
        self.tasks, self.forward = evidence.tasks, evidence.forward
        self.names = tuple(evidence.tasks)
        n_tasks = len(evidence.tasks)
        self.sums = torch.zeros(n_tasks, dtype=torch.float64, device="cpu")
        self.counts = torch.zeros(n_tasks, dtype=torch.float64, device="cpu")
        # Apart from what succeeded: where a stake cannot be known, a few forwards say so as well.
        self.tries = torch.zeros(n_tasks, dtype=torch.int64, device="cpu")
        self.warned: set[int] = set()
        n_processes = processes.get_world_size() if several_processes() else 1
        self.n_batches = max(1, BATCHES // n_processes)

    def add(self, batch: Any, losses: Mapping[int, float]) -> None:
        """Measure on a batch if one of its tasks was not tried often enough.

        Args:
            batch: As the evidence yields it.
            losses: ``{row of the task: its loss as it is}``.
        """
        batch = batch.batch if isinstance(batch, TaskBatch) else batch
        wanted = [row for row in losses if self.tries[row] < self.n_batches]
        if not wanted:
            return
        self.tries[wanted] += 1
        for row, silenced in self._losses(batch, wanted).items():
            self.counts[row] += 1
            self.sums[row] += silenced - losses[row]

    def _losses(self, batch: Any, rows: list[int]) -> dict[int, float]:
        """Return what is known of the losses without channels."""
        found: dict[int, float] = {}
        # With gradients, as in every other forward: code may hang hooks on its outputs.
        with lent(batch), _silenced(self.index, self.parameters):
            try:
                outputs = self.forward(self.model, batch)
            except Exception as error:  # noqa: BLE001 - code may well need features that are not 0
                self._warn(rows, f"the model: {type(error).__name__}: {error}")
                return found
            for row in rows:
                # One at a time: what one task's loss cannot do without says nothing of the others.
                try:
                    loss = self.tasks[self.names[row]].loss(outputs, batch)
                    value = math.nan if loss is None else float(loss.detach())
                except Exception as error:  # noqa: BLE001 - as above
                    self._warn([row], f"{type(error).__name__}: {error}")
                    continue
                if math.isfinite(value):
                    found[row] = value
                else:
                    self._warn([row], "no labels" if loss is None else f"it is {value}")
        return found

    def _warn(self, rows: list[int], why: str) -> None:
        new = [self.names[row] for row in rows if row not in self.warned]
        self.warned.update(rows)
        if new:
            _log.warning(
                "With all channels silenced, the loss of %s is not known on a batch (%s): what the "
                "task has to lose is taken from another batch, or else from its loss",
                ", ".join(f"`{name}`" for name in new),
                why,
            )

    def reduce(self) -> None:
        """Add up over processes."""
        self.sums, self.counts = summed(self.sums), summed(self.counts)

    def values(self) -> Tensor:
        """Return the mean stakes so far, NaN where nothing is known. Shape ``[T]``, float64."""
        return self.sums / self.counts


@contextmanager
def _silenced(index: ChannelIndex, parameters: Mapping[str, Tensor]) -> Iterator[None]:
    """Put zeros at all entries of all channels meanwhile, in memory of their own."""
    values = {name: parameters[name].data for name in index.axes}
    try:
        for name, axes in index.axes.items():
            for axis in axes:
                own = (axis.channel >= 0).nonzero().flatten().to(values[name].device)
                parameters[name].data = parameters[name].data.index_fill(axis.dim, own, 0)
        yield
    finally:
        for name, value in values.items():
            parameters[name].data = value
