"""The records of scoring: what criteria receive, and what they return."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from torch import Tensor, nn

from taskprune.calling.forward import Forward, call_batch
from taskprune.calling.task import Task
from taskprune.coupling.groups import CouplingGroups

BLIND = ("all",)
"""Row names of criteria that do not tell tasks apart."""


@dataclass(frozen=True)
class Evidence:
    """What a criterion may look at besides the weights.

    Attributes:
        tasks: The tasks in their declared order; empty for data-free use.
        batches: Calibration batches; iterated once per call, never stored whole.
        forward: ``(model, batch) -> outputs``.
        progress: Called with (batches done) for display; does nothing by default.
        settled: Called after each batch with (batches done, total scores so far, shape ``[C]``) by
            criteria that know them; True ends the calibration. ``None``: all batches are used.
    """

    tasks: Mapping[str, Task] = field(default_factory=dict)
    batches: Iterable[Any] = ()
    forward: Forward = call_batch
    progress: Callable[[int], None] = lambda _: None
    settled: Callable[[int, Tensor], bool] | None = None


@dataclass(frozen=True, eq=False)
class ChannelScores:
    """Scores of all channels; a lower score goes first.

    Attributes:
        criterion: Name of the criterion.
        tasks: Row names of ``per_task``; ``("all",)`` for criteria blind to tasks.
        per_task: ``{group: scores}``, each of shape ``[n_tasks, n_channels]``, float64, finite,
            what each task alone says.
        total: ``{group: scores}``, each of shape ``[n_channels]``, float64, finite: the order in
            which channels go, after aggregation and penalties.
        conflict: ``{group: penalty}``, each of shape ``[n_channels]``; empty where the criterion
            has no such term.
        n_batches: How many calibration batches were used, by all processes together.
        pair_conflict: ``{group: penalty}`` by pair of tasks, each of shape
            ``[n_pairs, n_channels]``, pairs in the order of
            ``itertools.combinations(tasks, 2)``; they add up to ``conflict``. Empty where the
            criterion has no such term.
        loss_increase: ``{group: fraction}``, each of shape ``[n_tasks, n_channels]``, not
            negative: by how much of itself each task's loss changes when the channel goes, the
            root of the mean square over the batches, to first order. Empty where the criterion
            does not know it, or a loss is 0.
        correlation: How alike the effects behind the scores are within a group, 0 to 1, where
            scores are mean squares of effects that add up. See
            :func:`~taskprune.importance.accumulation.accumulated`; with 0 scores simply add up.
    """

    criterion: str
    tasks: tuple[str, ...]
    per_task: Mapping[str, Tensor]
    total: Mapping[str, Tensor]
    conflict: Mapping[str, Tensor] = field(default_factory=dict)
    n_batches: int = 0
    pair_conflict: Mapping[str, Tensor] = field(default_factory=dict)
    loss_increase: Mapping[str, Tensor] = field(default_factory=dict)
    correlation: float = 0.0

    @classmethod
    def of_all_tasks(
        cls, criterion: str, total: Mapping[str, Tensor], n_batches: int = 0
    ) -> ChannelScores:
        """Make the record of a criterion that does not tell tasks apart."""
        return cls(
            criterion=criterion,
            tasks=BLIND,
            per_task={name: scores[None] for name, scores in total.items()},
            total=total,
            n_batches=n_batches,
        )


class Importance(Protocol):
    """A criterion: any callable of this form, a plain function included."""

    def __call__(
        self, model: nn.Module, groups: CouplingGroups, evidence: Evidence, /
    ) -> ChannelScores | Mapping[str, Tensor]:
        """Score every channel of every group; the model is not modified.

        A mapping ``{group: [n_channels] or [n_tasks, n_channels]}`` is accepted in place of the
        full record; several rows are averaged.
        """


ImportanceFactory: TypeAlias = Callable[[], Importance]
