r"""Which step of several a choice of channels is for, and what the steps before have done.

Scores hold for the model that they were taken on: the more of it goes, the less they say about what
remains. Scoring again after every step follows the model down (Molchanov et al., arXiv:1906.10771,
prune in this way). After step :math:`i` of :math:`n` a bounded cost is at most

.. math:: B_i = B_0 \, (B_n / B_0)^{i / n}

with :math:`B_0` that of the original and :math:`B_n` the budget, so that every step removes the
same fraction of what is left.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from taskprune.coupling.groups import CouplingGroup
from taskprune.errors import InputError
from taskprune.solver.budget import Budget
from taskprune.solver.safety import Safety

STEP = 0.88
"""Part of the multiply-adds that one step leaves, where nobody says how many steps there are. With
channels that stay re-weighted, smaller steps gained nothing more on three networks, and larger ones
lost up to five points of a task."""


def steps_towards(costs: Mapping[str, tuple[int, int]]) -> int:
    """Return in how many steps to get to a plan's costs.

    Args:
        costs: ``{name: (before, after)}`` of the whole way, multiply-adds among them if known.
    """
    before, after = costs["macs"] if "macs" in costs else next(iter(costs.values()))
    left = max(after, 1) / max(before, 1)
    return max(1, math.ceil(math.log(left) / math.log(STEP) - 1e-9))


@dataclass(frozen=True, eq=False, slots=True)
class StepContext:
    """One step on the way to a budget; without arguments the only one.

    Budgets and limits are those of all steps together: fractions are of the original.

    Attributes:
        step: Which step, from 1.
        steps: How many there are; the last has the whole budget.
        looks_ahead: Whether a budget of the last step that is out of reach is to raise now.
        original: Costs of the original; empty for the first step, which starts from it.
        batch_size: Samples in the batch that these are counted on.
        kept: ``{group name: (channels of the original, channels before this step)}``.
        spent: What the steps before have used of each task's ``max_loss_increase``.
    """

    step: int = 1
    steps: int = 1
    looks_ahead: bool = False
    original: Mapping[str, int] = field(default_factory=dict)
    batch_size: int = 0
    kept: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    spent: Mapping[str, float] = field(default_factory=dict)

    @property
    def lead(self) -> str:
        """What begins a message about this step: nothing where it asks for the whole budget."""
        is_whole = self.step == self.steps and not self.original
        return "" if is_whole else f"Step {self.step} of {self.steps}: "

    def limits(
        self, budget: Budget, costs: Mapping[str, int], *, batch_size: int
    ) -> dict[str, int]:
        """Return the bounds of this step as whole numbers.

        Args:
            budget: What may remain after the last step.
            costs: Of the model at hand; MACs of a whole batch.
            batch_size: Samples in that batch.

        Raises:
            InputError: The traced batch has another size than in the first step.
        """
        if self.original and batch_size != self.batch_size:
            raise InputError(
                f"Every step is traced on the first batch of the data, which must have the same "
                f"size each time. Found {batch_size} samples after {self.batch_size}: pass a "
                "`DataLoader` with `drop_last=True`, or a list of batches."
            )
        start = self.original or costs
        final = budget.limits(start, batch_size=batch_size)
        if self.step == self.steps:
            return final
        share = self.step / self.steps
        return {
            name: math.floor(start[name] ** (1 - share) * limit**share)
            for name, limit in final.items()
        }

    def loss_limits(self, safety: Safety, tasks: Sequence[str]) -> dict[str, float]:
        """Return what is left of ``max_loss_increase`` by task; empty where there is no limit."""
        limits = safety.loss_limits(tasks)
        return {task: max(0.0, limit - self.spent.get(task, 0.0)) for task, limit in limits.items()}

    def most_removable(self, group: CouplingGroup, fraction: float) -> int:
        """Return how many channels of a group may go where at most this fraction of them may."""
        original, now = self.kept.get(group.name, (group.n_channels, group.n_channels))
        return max(0, int(fraction * original + 1e-9) - (original - now))

    def is_whole(self, group: CouplingGroup) -> bool:
        """Whether no earlier step has taken channels from a group."""
        original, now = self.kept.get(group.name, (group.n_channels, group.n_channels))
        return now == original


ALONE = StepContext()
"""The only step there is."""
