"""What each task loses, and how much its outputs change where its loss looks. Ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from taskprune.calling.task import Task
from taskprune.coupling.groups import CouplingGroups
from taskprune.errors import InputError
from taskprune.importance import aggregation
from taskprune.importance.aggregation import Aggregation
from taskprune.importance.channel_index import ChannelIndex
from taskprune.importance.criteria_by_name import criterion
from taskprune.importance.effects import loss_increase, mean_square_effects
from taskprune.importance.owners import owners_from_batches
from taskprune.importance.projections import LossProjection
from taskprune.importance.scores import ChannelScores, Evidence, GroupScores


@criterion
@dataclass(frozen=True)
class TaskChangeImportance:
    r"""Each task's loss and each task's outputs, in equal shares.

    .. math:: S_c = \mathrm{aggregate}_t \Bigl( \omega_t^2 \Bigl[
              \frac{E_b[s_{b,t,c}^2]}{\sum_d E_b[s_{b,t,d}^2]} +
              \frac{E_b[p_{b,t,c}^2]}{\sum_d E_b[p_{b,t,d}^2]} \Bigr] \Bigr)

    with *s* the signed effect on the task's loss (:mod:`taskprune.importance.effects`), as in
    Taylor importance (Molchanov et al., arXiv:1906.10771), and *p* that on a random projection of
    the task's outputs whose entries count by the loss's gradient
    (:class:`~taskprune.importance.projections.LossProjection`).

    A trained loss is flat: effects that cancel out over a batch look like none, and then several
    of them go. What outputs change by does not cancel, but says nothing of what a task wants. A
    channel that either misses stays. Scales of losses and outputs change nothing, so no task has
    to be weighed against another.

    Costs two backwards per task and batch, one for the loss and one for the outputs.

    Attributes:
        aggregate: ``[T, C] -> [C]``, see :mod:`taskprune.importance.aggregation`.
        correlation: See :class:`~taskprune.importance.TaskTaylorImportance`.
        floor: What an entry of an output counts that its loss does not look at, where the mean of
            what its loss looks at is 1.
        seed: Of the projections; no other generator is touched.
    """

    aggregate: Aggregation = aggregation.total
    correlation: float = 0.1
    floor: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.correlation <= 1:
            raise InputError(f"`correlation` must lie between 0 and 1. Found {self.correlation!r}.")
        if not self.floor > 0:
            raise InputError(f"`floor` must be above 0. Found {self.floor!r}.")

    def __call__(
        self, model: nn.Module, groups: CouplingGroups, evidence: Evidence, /
    ) -> ChannelScores:
        """Score every channel for every task.

        Raises:
            InputError, TraceError, LossError: See :func:`taskprune.score`.
        """
        probes, batches = self._probes(model, evidence)
        index = ChannelIndex(groups)
        tasks = evidence.tasks
        weights = torch.tensor(
            [[t.weight] for t in tasks.values()], dtype=torch.float64, device="cpu"
        ).square()

        def per_task(squares: Tensor) -> Tensor:
            sums = squares.sum(1, keepdim=True)
            shares = squares / sums.where(sums > 0, 1.0)
            return weights * (shares[: len(tasks)] + shares[len(tasks) :])

        squares, losses, n_batches = mean_square_effects(
            model,
            index,
            replace(evidence, batches=batches, probes=probes),
            lambda squares: self.aggregate(per_task(squares)),
        )
        rows = per_task(squares)
        scores = GroupScores(
            self.aggregate(rows),
            rows,
            loss_increase=loss_increase(squares[: len(tasks)], losses[: len(tasks)]),
        )
        return ChannelScores(
            "task_change", tuple(tasks), index.split(scores), n_batches, self.correlation
        )

    def _probes(
        self, model: nn.Module, evidence: Evidence
    ) -> tuple[Mapping[str, Task], Iterator[Any]]:
        """Return a projection for each task, and all batches."""
        owners: Mapping[str, tuple[str, ...] | None] = {
            name: task.output_paths for name, task in evidence.tasks.items()
        }
        batches = iter(evidence.batches)
        if None in owners.values():
            owners, batches = owners_from_batches(
                model, evidence.tasks, batches, forward=evidence.forward
            )
        return {
            name: Task(
                LossProjection(
                    owners[name] or (), task.loss, floor=self.floor, seed=self.seed + number
                )
            )
            for number, (name, task) in enumerate(evidence.tasks.items())
        }, batches
