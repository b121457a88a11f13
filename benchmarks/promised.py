"""A promise and what was measured of it, and the network that most are measured on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from taskprune import Budget, ChannelScores, PruningPlan, Safety, Task, solve
from taskprune.coupling import couple
from taskprune.driving.data import RoadScenes, loader
from taskprune.driving.tasks import driving_tasks, forward
from taskprune.driving.teacher import load_teacher
from taskprune.graph import trace
from taskprune.importance import Importance, output_owners, score
from taskprune.restore import flushed_denormals


@dataclass(frozen=True)
class Guarantee:
    """One line of the table.

    Attributes:
        promise: What is promised.
        measured: The figure.
        asked: What the figure has to be.
        holds: Whether it is.
    """

    promise: str
    measured: str
    asked: str
    holds: bool

    @classmethod
    def equal(cls, promise: str, measured: float, asked: float) -> Guarantee:
        return cls(promise, _written(measured), _written(asked), measured == asked)

    @classmethod
    def below(cls, promise: str, measured: float, most: float) -> Guarantee:
        return cls(promise, _written(measured), f"≤ {_written(most)}", measured <= most)

    @classmethod
    def above(cls, promise: str, measured: float, least: float) -> Guarantee:
        return cls(promise, _written(measured), f"≥ {_written(least)}", measured >= least)


def _written(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3g}"


class Bundled:
    """The bundled network, traced and coupled once, with a few batches of scenes."""

    def __init__(self) -> None:
        self.model, self.tasks, self.forward = load_teacher().eval(), driving_tasks(), forward
        self.batches = list(loader(RoadScenes(8, seed=1000), batch_size=2, shuffle=False, seed=0))
        owners = output_owners(self.model, self.tasks, self.batches[0], forward=forward)
        graph = trace(self.model, self.batches[0], forward=forward, tasks=owners)
        self.groups = couple(graph)

    def scores(
        self,
        importance: str | Importance = "task_taylor",
        *,
        tasks: Mapping[str, Task] | None = None,
        data: Any = None,
        **options: Any,
    ) -> ChannelScores:
        """Score with these tasks and batches; the net's own where none are given."""
        with flushed_denormals():
            return score(
                self.model,
                self.groups,
                tasks or self.tasks,
                self.batches if data is None else data,
                importance=importance,
                forward=self.forward,
                **options,
            )

    def plan(self, macs: float, scores: ChannelScores, safety: Safety | None = None) -> PruningPlan:
        """Solve for this share of the multiply-adds."""
        return solve(self.groups, scores, Budget(macs=macs), safety=safety or Safety())
