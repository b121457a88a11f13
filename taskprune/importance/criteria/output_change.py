"""How much a channel's removal changes the outputs, without labels or losses. Ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from taskprune.calling.inputs import TaskBatch
from taskprune.calling.task import Task
from taskprune.coupling.groups import CouplingGroups
from taskprune.errors import InputError, short
from taskprune.importance import aggregation
from taskprune.importance.aggregation import Aggregation
from taskprune.importance.backwards import TaskGradients
from taskprune.importance.calibration import for_each_batch
from taskprune.importance.channel_index import ChannelIndex
from taskprune.importance.criteria_by_name import criterion
from taskprune.importance.distributed import summed
from taskprune.importance.effects import device_for_sums, signed_effects
from taskprune.importance.owners import owners_from_batches
from taskprune.importance.projections import Projection, output_tasks
from taskprune.importance.scores import ChannelScores, Evidence, GroupScores


@criterion
@dataclass(frozen=True)
class OutputChangeImportance:
    r"""Mean squared effect on random projections of the outputs.

    .. math:: I_{t,c} = E_{b,v}[s_{b,t,c}^2] \approx E_b\Bigl[
              \frac{\|\Delta o_t\|^2}{\mathrm{numel}(o_t) \, \mathrm{var}(o_t)}\Bigr]

    with :math:`s` the signed effect (:mod:`taskprune.importance.effects`) on a projection of task
    *t*'s outputs (:class:`~taskprune.importance.projections.Projection`): the squared change of the
    outputs to first order, a Gauss-Newton diagonal, where the Taylor criteria take the change of a
    loss. A trained loss says that little is lost in many directions; this says that the network
    goes on doing what it does. All outputs come on one scale, so nothing has to be weighed.

    Without tasks every output is one, named by its path. With tasks, whose losses are not looked
    at, each is scored by its own outputs: those declared, or those that its loss depends on.

    Every batch is one draw, with a relative variance of 2 whatever its size: rather many small
    batches than a few large ones. Under several processes each draws for itself.

    Attributes:
        aggregate: ``[T, C] -> [C]``, see :mod:`taskprune.importance.aggregation`.
        correlation: See :class:`~taskprune.importance.TaskTaylorImportance`.
        seed: Of the projections; no other generator is touched.
    """

    aggregate: Aggregation = aggregation.total
    correlation: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.correlation <= 1:
            raise InputError(
                f"`correlation` must lie between 0 and 1. Found {short(self.correlation)}."
            )

    def __call__(
        self, model: nn.Module, groups: CouplingGroups, evidence: Evidence, /
    ) -> ChannelScores:
        """Score every channel for every output or task.

        Raises:
            InputError: There is no batch, or no output whose change can be measured.
            TraceError, LossError: See :func:`taskprune.score`.
        """
        tasks, batches = self._tasks(model, evidence)
        index = ChannelIndex(groups)
        parameters = index.find(dict(model.named_parameters()))
        device = device_for_sums(parameters)
        squares = torch.zeros(len(tasks), index.n_channels, dtype=torch.float64, device=device)
        counts = torch.zeros(len(tasks), 1, dtype=torch.float64, device=device)
        weights = {name: task.weight for name, task in tasks.items()}

        def visit(batch: Iterator[TaskGradients]) -> None:
            for found in batch:
                squares[found.task] += signed_effects(found, parameters, index, device).square()
                counts[found.task] += 1

        def mean(squares: Tensor, counts: Tensor) -> Tensor:
            return (squares / counts.clamp_min(1)).cpu()

        n_batches = for_each_batch(
            model,
            parameters,
            replace(evidence, tasks=tasks, batches=batches),
            visit,
            interim=lambda: self._scores(mean(squares, counts), weights).total,
        )
        changes = mean(summed(squares), summed(counts))
        return self._weighed(index, changes, n_batches, weights)

    def _weighed(
        self, index: ChannelIndex, changes: Tensor, n_batches: int, by_task: Mapping[str, float]
    ) -> ChannelScores:
        return ChannelScores(
            criterion="output_change",
            tasks=tuple(by_task),
            groups=index.split(self._scores(changes, by_task)),
            n_batches=n_batches,
            correlation=self.correlation,
            reweighted=partial(self._weighed, index, changes, n_batches),
        )

    def _scores(self, changes: Tensor, by_task: Mapping[str, float]) -> GroupScores:
        weights = torch.tensor([*by_task.values()], dtype=torch.float64, device="cpu")
        rows = changes * weights.square()[:, None]
        return GroupScores(self.aggregate(rows), rows)

    def _tasks(
        self, model: nn.Module, evidence: Evidence
    ) -> tuple[Mapping[str, Task], Iterator[Any]]:
        """Return tasks whose losses are fresh projections, and all batches."""
        batches = iter(evidence.batches)
        owners: Mapping[str, tuple[str, ...] | None] = {
            name: task.output_paths for name, task in evidence.tasks.items()
        }
        if not owners:
            for first in batches:
                tasks = output_tasks(model, first, forward=evidence.forward, seed=self.seed)
                return tasks, chain([first], batches)
            raise InputError(
                "This criterion looks at outputs. Expected at least one calibration batch. Found "
                "none: pass `data=`, which needs no labels, or choose a criterion that looks at "
                "weights alone, such as importance='magnitude'."
            )
        if None in owners.values():
            owners, batches = owners_from_batches(
                model, evidence.tasks, batches, forward=evidence.forward
            )
        projected = {
            name: replace(task, loss=Projection(owners[name] or (), self.seed + number))
            for number, (name, task) in enumerate(evidence.tasks.items())
        }
        # Without labels every batch speaks for every task, whichever loader it comes from.
        return projected, (b.batch if isinstance(b, TaskBatch) else b for b in batches)
