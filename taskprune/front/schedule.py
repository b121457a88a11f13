r"""Pruning in several steps, each on the model that the steps before have left.

Scores hold for the model that they were taken on: the more of it goes, the less they say about what
remains. Scoring again after every step follows the model down (Molchanov et al., arXiv:1906.10771,
prune in this way). After step :math:`i` of :math:`n` a bounded cost is at most

.. math:: B_i = B_0 \, (B_n / B_0)^{i / n}

with :math:`B_0` that of the original and :math:`B_n` the budget, so that every step removes the
same fraction of what is left.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, TypeAlias

from torch import nn

from taskprune.coupling.groups import CouplingGroup
from taskprune.errors import InputError
from taskprune.plan.composition import compose
from taskprune.plan.plan import PruningPlan
from taskprune.solver.budget import Budget
from taskprune.solver.loss_budget import predicted_loss
from taskprune.solver.safety import Safety

if TYPE_CHECKING:
    from taskprune.front.result import PruneResult


@dataclass(frozen=True)
class StepBudget(Budget):
    """What may remain after one step on the way to a budget.

    Attributes:
        step: Which step, from 1.
        steps: How many there are; the last has the whole budget.
        original: Costs of the original; empty for the first step, which starts from it.
        batch_size: Samples in the batch that these are counted on.
        looks_ahead: Whether a budget of the last step that is out of reach is to raise now.
    """

    step: int = 1
    steps: int = 1
    original: Mapping[str, int] = field(default_factory=dict)
    batch_size: int = 0
    looks_ahead: bool = False

    @classmethod
    def of(
        cls,
        budget: Budget,
        *,
        step: int,
        steps: int,
        original: Mapping[str, int],
        batch_size: int,
        looks_ahead: bool = False,
    ) -> StepBudget:
        """Make the budget of one step from that of all."""
        given = {each.name: getattr(budget, each.name) for each in fields(budget)}
        return cls(
            **given,
            step=step,
            steps=steps,
            original=original,
            batch_size=batch_size,
            looks_ahead=looks_ahead,
        )

    @property
    def ahead(self) -> Budget | None:
        """The budget of the last step; see :attr:`Budget.ahead`."""
        if not self.looks_ahead or self.step == self.steps:
            return None
        return replace(self, step=self.steps, looks_ahead=False)

    @property
    def lead(self) -> str:
        """Which step this is of; see :attr:`Budget.lead`."""
        # The last one asks for the whole budget: seen from the first, it is no step.
        is_whole = self.step == self.steps and not self.original
        return "" if is_whole else f"Step {self.step} of {self.steps}: "

    def whole(self, original: Mapping[str, int]) -> Mapping[str, int]:
        """Return the costs of the model before the first step; see :meth:`Budget.whole`."""
        return self.original or original

    def limits(self, original: Mapping[str, int], *, batch_size: int = 1) -> dict[str, int]:
        """Return the bounds of this step as whole numbers; see :meth:`Budget.limits`.

        Raises:
            InputError: The traced batch has another size than in the first step.
        """
        if self.original and batch_size != self.batch_size:
            raise InputError(
                f"Every step is traced on the first batch of the data, which must have the same "
                f"size each time. Found {batch_size} samples after {self.batch_size}: pass a "
                "`DataLoader` with `drop_last=True`, or a list of batches."
            )
        start = self.whole(original)
        final = super().limits(start, batch_size=batch_size)
        if self.step == self.steps:
            return final
        share = self.step / self.steps
        return {
            name: math.floor(start[name] ** (1 - share) * limit**share)
            for name, limit in final.items()
        }


@dataclass(frozen=True)
class StepSafety(Safety):
    """Limits of one step that add up to those of all: fractions are of the original's channels.

    Attributes:
        kept: ``{group name: (channels of the original, channels before this step)}``.
        spent: What the steps before have used of each task's ``max_loss_increase``.
    """

    kept: Mapping[str, tuple[int, int]] = field(default_factory=dict, repr=False)
    spent: Mapping[str, float] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        """Show the limits that were asked for."""
        return str(Safety(**{each.name: getattr(self, each.name) for each in fields(Safety)}))

    @classmethod
    def of(cls, safety: Safety, plan: PruningPlan | None, spent: Mapping[str, float]) -> StepSafety:
        """Make the limits of a step from those of all, and what the steps before have done."""
        whole = {each.name: getattr(safety, each.name) for each in fields(safety)}
        decisions = plan.groups if plan else ()
        return cls(**whole, kept={d.name: (d.n_channels, d.n_kept) for d in decisions}, spent=spent)

    def loss_limits(self, tasks: Sequence[str]) -> dict[str, float]:
        """Return what is left of ``max_loss_increase``; see :meth:`Safety.loss_limits`."""
        limits = super().loss_limits(tasks)
        return {task: max(0.0, limit - self.spent.get(task, 0.0)) for task, limit in limits.items()}

    def most_removable(self, group: CouplingGroup, fraction: float) -> int:
        """Return how many channels of a group may go; see :meth:`Safety.most_removable`."""
        original, now = self.kept.get(group.name, (group.n_channels, group.n_channels))
        return max(0, int(fraction * original + 1e-9) - (original - now))


@dataclass(frozen=True, eq=False, slots=True)
class Step:
    """One step and what it led to.

    Attributes:
        number: From 1.
        result: What pruning the model before this step returned; its plan is for that model.
        plan: What leads from the original to here.
    """

    number: int
    result: PruneResult
    plan: PruningPlan


PruneTo: TypeAlias = Callable[[nn.Module, Budget, Safety], "PruneResult"]
"""Prunes a model, in one step, to a budget and within limits."""


def pruned_in_steps(
    model: nn.Module,
    prune_to: PruneTo,
    budget: Budget,
    safety: Safety,
    *,
    steps: int,
    looks_ahead: bool = False,
) -> Iterator[Step]:
    """Prune step by step towards a budget; the next step is made when it is asked for.

    Whoever iterates may train ``step.result.model`` in place before asking for the next.

    Args:
        model: The original; left as it was.
        prune_to: Makes one step.
        budget: What may remain at the end, relative to the original.
        safety: Limits of all steps together.
        steps: How many there are.
        looks_ahead: Raise in the first step where the last cannot be made, before anything is
            trained. Else the steps go as far as they can.

    Raises:
        InfeasibleBudgetError: A step cannot be made.
    """
    current: nn.Module = model
    plan: PruningPlan | None = None
    original: dict[str, int] = {}
    batch_size = 0
    spent: Counter[str] = Counter()
    for number in range(1, steps + 1):
        target = StepBudget.of(
            budget,
            step=number,
            steps=steps,
            original=original,
            batch_size=batch_size,
            looks_ahead=looks_ahead and number == 1,
        )
        result = prune_to(current, target, StepSafety.of(safety, plan, dict(spent)))
        spent.update(predicted_loss(result.scores, result.plan.drop))
        if plan is None:
            original = {name: before for name, (before, _) in result.plan.costs.items()}
            batch_size = result.groups.batch_size
            plan = result.plan
        else:
            plan = compose(plan, result.plan)
        current = result.model
        yield Step(number, result, plan)


def check_steps(steps: object) -> int:
    """Return the number of steps.

    Raises:
        InputError: It is not a whole number from 1 on.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InputError(f"`steps` must be a whole number of at least 1. Found {steps!r}.")
    return steps
