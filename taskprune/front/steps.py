"""Pruning step by step: each on the model that the steps before have left, one plan in the end."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

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
from taskprune.solver.step_context import StepContext, steps_towards

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
    """

    number: int
    found: Examined
    own: PruningPlan
    plan: PruningPlan
    model: nn.Module
    verification: VerificationReport | None
    compensation: CompensationResult | None


def in_steps(
    job: Job, model: nn.Module, *, looks_ahead: bool, trains: bool, verify: bool
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

    Raises:
        InfeasibleBudgetError: A step cannot be made.
    """
    steps = 1 if job.settings.steps == "auto" else job.settings.steps
    context = StepContext(steps=steps, looks_ahead=looks_ahead)
    current, plan, groups = model, None, None
    seen: Examined | None = None
    original: dict[str, int] = {}
    spent: Counter[str] = Counter()
    number = 0
    while number < steps:
        number += 1
        title = "Pruning" if steps == 1 else f"Pruning, step {number} of {steps}"
        with at_work(title) as say:
            surveys = job.compensates and (trains or number == 1)
            found = examine(job, current, say, surveys=surveys)
            seen = found if surveys else seen
            if seen is not None and seen is not found and plan is not None:
                free = seen.free.after(plan)
                found = replace(found, scores=free.first(found.scores), free=free)
            if number == 1 and (note := unread(found.groups, job.safety)):
                _log.warning("%s", note)
            own = choose(job, found, context, say)
            if number == 1 and job.settings.steps == "auto":
                steps = steps_towards(own.costs)
                context = replace(context, steps=steps)
                own = choose(job, found, context, say) if steps > 1 else own
            plan = own if plan is None else compose(plan, own)
            groups = groups or found.groups
            # Where nothing was trained on the way, all that was lost so far can still be made up
            # for: the original knows what the removed channels said.
            again = job.compensates and not trains
            start = Cut(model, groups, plan) if again else Cut(current, found.groups, own)
            current, verification, compensation = start.carried_out(
                job, found, seen, say, verify=verify
            )
        original = original or {name: before for name, (before, _) in own.costs.items()}
        yield Step(number, found, own, plan, current, verification, compensation)
        spent.update(predicted_loss(found.scores, own.drop))
        context = StepContext(
            step=number + 1,
            steps=steps,
            original=original,
            batch_size=found.groups.batch_size,
            kept={d.name: (d.n_channels, d.n_kept) for d in plan.groups},
            spent=dict(spent),
        )


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
