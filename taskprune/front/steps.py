"""Pruning step by step: each on the model that the steps before have left, one plan in the end."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from torch import nn

from taskprune.compensation import CompensationResult, compensate_surveyed
from taskprune.coupling.groups import CouplingGroups
from taskprune.errors import VerificationError
from taskprune.front.job import Examined, Job, Say, at_work, choose, examine
from taskprune.plan.composition import compose
from taskprune.plan.plan import PruningPlan
from taskprune.rewrite import VerificationReport, apply_and_verify
from taskprune.solver.infeasible import unread
from taskprune.solver.loss_budget import predicted_loss
from taskprune.solver.step_context import ALONE, StepContext, steps_towards

_log = logging.getLogger("taskprune")


@dataclass(frozen=True, eq=False, slots=True)
class Step:
    """One step and what it led to.

    Attributes:
        number: From 1.
        found: The model before this step.
        own: What this step takes from it.
        plan: What leads from the original to here.
        model: What is left.
        verification: How this step's model compares with the masked one that it was cut from,
            re-weighted if it was; ``None`` where it was not compared.
        compensation: What re-weighting the readers of removed channels did; ``None`` without it.
        metrics: Of `model` on the validation data, by task, where steps were chosen by them.
    """

    number: int
    found: Examined
    own: PruningPlan
    plan: PruningPlan
    model: nn.Module
    verification: VerificationReport | None
    compensation: CompensationResult | None
    metrics: Mapping[str, float] | None = None


Make: TypeAlias = Callable[[Examined, Say], Step]
"""Makes a step by the scores of what was examined, as often as it is called."""


def as_scored(found: Examined, make: Make, say: Say) -> Step:
    """Make the step that the scores ask for."""
    return make(found, say)


def in_steps(
    job: Job,
    model: nn.Module,
    *,
    looks_ahead: bool,
    trains: bool,
    verify: bool,
    chosen: Callable[[Examined, Make, Say], Step] = as_scored,
) -> Iterator[Step]:
    """Prune towards a budget; the next step is made when it is asked for.

    Whoever iterates may train ``step.model`` in place before asking for the next.

    Args:
        job: What is asked for.
        model: The original; left as it was.
        looks_ahead: Raise in the first step where the last cannot be made, before anything is
            trained. Else the steps go as far as they can.
        trains: Whether models are trained between steps.
        verify: Compare the model after each step with the masked one that it was cut from.
        chosen: Makes each step, or several to choose among.

    Raises:
        InfeasibleBudgetError: A step cannot be made.
    """
    steps = 1 if job.settings.steps == "auto" else job.settings.steps
    context = StepContext(steps=steps, looks_ahead=looks_ahead)
    at = _Standing(job, model, verify=verify, again=job.compensates and not trains)
    original: dict[str, int] = {}
    spent: Counter[str] = Counter()
    number = 0
    while number < steps:
        number += 1
        title = "Pruning" if steps == 1 else f"Pruning, step {number} of {steps}"
        with at_work(title) as say:
            surveys = job.compensates and (trains or number == 1)
            found = examine(job, at.current, say, surveys=surveys)
            seen = found if surveys else at.seen
            if seen is not None and seen is not found and at.plan is not None:
                free = seen.free.after(at.plan)
                found = replace(found, scores=free.first(found.scores), free=free)
            if number == 1 and (note := unread(found.groups, job.safety)):
                _log.warning("%s", note)
            if number == 1 and job.settings.steps == "auto":
                own = choose(job, found, context, say)
                steps = steps_towards(own.costs)
                context = replace(context, steps=steps)
                at = replace(at, ahead=(found, own) if steps == 1 else None)
            at = replace(at, groups=at.groups or found.groups, seen=seen, context=context)
            step = chosen(found, at.step, say)
        own, plan = step.own, step.plan
        original = original or {name: before for name, (before, _) in own.costs.items()}
        yield step
        spent.update(predicted_loss(found.scores, own.drop))
        context = StepContext(
            step=number + 1,
            steps=steps,
            original=original,
            batch_size=found.groups.batch_size,
            kept={d.name: (d.n_channels, d.n_kept) for d in plan.groups},
            spent=dict(spent),
        )
        at = replace(at, reached=step)


@dataclass(frozen=True, eq=False, slots=True)
class _Standing:
    """Where a run stands before a step.

    Attributes:
        job: What is asked for.
        model: The original.
        verify: As in :func:`in_steps`.
        again: Start from the original with the plan of all steps. Where nothing was trained on the
            way, all that was lost so far can still be made up for: the original knows what the
            removed channels said.
        groups: Those of the original.
        seen: What was last surveyed.
        reached: The step before; ``None`` in the first.
        context: What the solver is to know of the steps before.
        ahead: A plan that is known already, and what was examined for it.
    """

    job: Job
    model: nn.Module
    verify: bool
    again: bool
    groups: CouplingGroups | None = None
    seen: Examined | None = None
    reached: Step | None = None
    context: StepContext = ALONE
    ahead: tuple[Examined, PruningPlan] | None = None

    @property
    def current(self) -> nn.Module:
        return self.model if self.reached is None else self.reached.model

    @property
    def plan(self) -> PruningPlan | None:
        return None if self.reached is None else self.reached.plan

    def step(self, found: Examined, say: Say) -> Step:
        """Make the next one."""
        assert self.groups is not None
        if self.ahead is not None and self.ahead[0] is found:
            own = self.ahead[1]
        else:
            own = choose(self.job, found, self.context, say)
        plan = own if self.plan is None else compose(self.plan, own)
        start = (
            Cut(self.model, self.groups, plan)
            if self.again
            else Cut(self.current, found.groups, own)
        )
        done = start.carried_out(self.job, found, self.seen, say, verify=self.verify)
        return Step(self.context.step, found, own, plan, *done)


@dataclass(frozen=True, eq=False, slots=True)
class Cut:
    """What a step is cut from: the model, its groups, and the plan for it."""

    model: nn.Module
    groups: CouplingGroups
    plan: PruningPlan

    def carried_out(
        self, job: Job, found: Examined, seen: Examined | None, say: Say, *, verify: bool
    ) -> tuple[nn.Module, VerificationReport | None, CompensationResult | None]:
        """Return what the plan leaves, re-weighted where it was seen what its readers read."""
        original, plan, compensation = self.model, self.plan, None
        if seen is not None and seen.survey is not None:
            say("letting what stays say what goes said")
            original, plan = seen.free.folded(original, plan)
            compensation = compensate_surveyed(original, plan, seen.survey)
            if not verify:
                return compensation.model, None, compensation
            # What is cut must be the original but for the new weights: checked like any other.
            original, plan = compensation.original(original, plan), replace(plan, replacements=())
        say("rewriting and verifying" if verify else "rewriting")
        start = replace(self, model=original, plan=plan)
        return *start.rewritten(job, found, verify=verify), compensation

    def rewritten(
        self, job: Job, found: Examined, *, verify: bool
    ) -> tuple[nn.Module, VerificationReport | None]:
        """Return what the plan leaves.

        Raises:
            VerificationError: It differs; in strict mode also where nothing tells.
        """
        smaller, verification = apply_and_verify(
            self.model,
            self.plan,
            example_inputs=found.inputs.example,
            forward=found.inputs.on_example,
            groups=self.groups,
            verify=verify,
        )
        if job.settings.strict and verification is not None and verification.is_vacuous:
            raise VerificationError(
                f"Strict mode asks for a comparison that tells something, but {verification}. Pass "
                "`example_inputs=` that lead to other outputs, or drop `strict=True`."
            )
        return smaller, verification
