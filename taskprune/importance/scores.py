"""The records of scoring: what criteria receive, and what they return."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from torch import Tensor, nn

from taskprune.calling.forward import Forward, call_batch
from taskprune.calling.task import Task
from taskprune.coupling.groups import CouplingGroups, IntArray
from taskprune.errors import InputError
from taskprune.importance.backwards import TaskGradients

BLIND = ("all",)
"""Row names of criteria that do not tell tasks apart."""


class Watch(Protocol):
    """Looks on at forwards and backwards over calibration batches, whoever needs them."""

    def wants(self, tasks: Mapping[str, Task]) -> bool:
        """Return whether the next batch, with these losses, is of interest."""

    def recording(self, model: nn.Module, batch: Any) -> AbstractContextManager[None]:
        """Return a context for the forward of one batch."""

    def listening(self, batch: Iterator[TaskGradients]) -> Iterator[TaskGradients]:
        """Pass its backwards on; all of them are gone through."""


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
        watch: Looks on at what is run.
        probes: ``{task: probe}``, each a function of the outputs and the task's loss that returns
            a further scalar to differentiate, or ``None``, on the same forward and wherever the
            task has labels; their rows come after those of all tasks.
    """

    tasks: Mapping[str, Task] = field(default_factory=dict)
    batches: Iterable[Any] = ()
    forward: Forward = call_batch
    progress: Callable[[int], None] = lambda _: None
    settled: Callable[[int, Tensor], bool] | None = None
    watch: Watch | None = None
    probes: Mapping[str, Callable[[Any, Tensor], Tensor | None]] = field(default_factory=dict)

    @property
    def rows(self) -> dict[str, int]:
        """Row numbers of the tasks, and after them of the probes, by the names of their losses."""
        return {name: row for row, name in enumerate([*self.tasks, *map(probe_name, self.probes)])}


def probe_name(task: str) -> str:
    """Return what a task's probe is called where its own loss bears the task's name."""
    return f"{task} (probe)"


@dataclass(frozen=True, eq=False, slots=True)
class GroupScores:
    """Scores of the channels of one group. T tasks, C channels; float64 and finite throughout.

    Attributes:
        total: The order in which channels go, lowest first, after aggregation and penalties. Shape
            ``[C]``.
        per_task: What each task alone says. Shape ``[T, C]``.
        pair_conflict: Conflict of each pair of tasks, in units of the score, in the order of
            ``itertools.combinations(tasks, 2)``, whether or not it is a penalty. Shape
            ``[T (T - 1) / 2, C]``; ``None`` where the criterion does not tell.
        loss_increase: By how much of itself each task's loss changes when the channel goes, the
            root of the mean square over the batches, to first order; not negative. Shape
            ``[T, C]``; ``None`` where the criterion does not know it, or a loss is 0.
    """

    total: Tensor
    per_task: Tensor
    pair_conflict: Tensor | None = None
    loss_increase: Tensor | None = None

    @classmethod
    def blind(cls, total: Tensor) -> GroupScores:
        """Make the record of a criterion that does not tell tasks apart."""
        return cls(total, total[None])

    @property
    def conflict(self) -> Tensor | None:
        """The conflict of all pairs together. Shape ``[C]``; ``None`` without such a term."""
        return None if self.pair_conflict is None else self.pair_conflict.sum(0)

    def of(self, channels: slice | Tensor) -> GroupScores:
        """Return a copy, on the CPU, of what is said of some of the channels."""
        parts = (self.total, self.per_task, self.pair_conflict, self.loss_increase)
        return GroupScores(
            *(None if p is None else p[..., channels].detach().cpu().clone() for p in parts)  # type: ignore[arg-type]
        )


@dataclass(frozen=True, eq=False)
class ChannelScores:
    """Scores of all channels; a lower score goes first.

    ``scores[group.name]`` is the record of one group.

    Attributes:
        criterion: Name of the criterion.
        tasks: Row names of ``per_task``; ``("all",)`` for criteria blind to tasks.
        groups: ``{group name: its scores}``, in the groups' order.
        n_batches: How many calibration batches were used, by all processes together.
        correlation: How alike the effects behind the scores are within a group, 0 to 1, where
            scores are mean squares of effects that add up. See
            :func:`~taskprune.importance.accumulation.accumulated`; with 0 scores simply add up.
        free: ``{group name: channel numbers}`` of those that were found to cost nothing, whatever
            the criterion says, see :mod:`taskprune.allocation`.
        reweighted: Returns what the criterion would have said had the tasks other weights, from
            what it has seen; ``None`` where it keeps no tasks apart, or does not know.
    """

    criterion: str
    tasks: tuple[str, ...]
    groups: Mapping[str, GroupScores]
    n_batches: int = 0
    correlation: float = 0.0
    free: Mapping[str, IntArray] = field(default_factory=dict)
    reweighted: Callable[[Mapping[str, float]], ChannelScores] | None = None

    def __getitem__(self, group: str) -> GroupScores:
        if group not in self.groups:
            raise InputError(
                f"The scores know no group `{group}`. Score and solve with the same groups."
            )
        return self.groups[group]

    @property
    def knows_conflict(self) -> bool:
        """Whether the criterion says where tasks disagree."""
        return any(own.pair_conflict is not None for own in self.groups.values())

    @property
    def knows_losses(self) -> bool:
        """Whether the criterion says what channels mean to the tasks' losses."""
        return any(own.loss_increase is not None for own in self.groups.values())


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
