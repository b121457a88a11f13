"""Pruning step by step: each on the model that the steps before have left, one plan in the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from taskprune.front.job import Examined, Job, at_work, choose, examine
from taskprune.plan.composition import compose
from taskprune.plan.plan import PruningPlan
from taskprune.rewrite import VerificationReport, apply_and_verify
from taskprune.solver.loss_budget import predicted_loss
from taskprune.solver.step_context import StepContext


@dataclass(frozen=True, eq=False, slots=True)
class Step:
    """One step and what it led to.

    Attributes:
        number: From 1.
        found: The model before this step.
        own: What this step takes from it.
        plan: What leads from the original to here.
        model: What is left.
        verification: How this step's model compares with the one before; ``None`` where it was not
            compared.
    """

    number: int
    found: Examined
    own: PruningPlan
    plan: PruningPlan
    model: nn.Module
    verification: VerificationReport | None


def in_steps(job: Job, model: nn.Module, *, looks_ahead: bool, verify: bool) -> Iterator[Step]:
    """Prune towards a budget; the next step is made when it is asked for.

    Whoever iterates may train ``step.model`` in place before asking for the next.

    Args:
        job: What is asked for.
        model: The original; left as it was.
        looks_ahead: Raise in the first step where the last cannot be made, before anything is
            trained. Else the steps go as far as they can.
        verify: Compare the model after each step with the masked one before.

    Raises:
        InfeasibleBudgetError: A step cannot be made.
    """
    steps = job.settings.steps
    context = StepContext(steps=steps, looks_ahead=looks_ahead)
    current, plan = model, None
    original: dict[str, int] = {}
    spent: Counter[str] = Counter()
    for number in range(1, steps + 1):
        title = "Pruning" if steps == 1 else f"Pruning, step {number} of {steps}"
        with at_work(title) as say:
            found = examine(job, current, say)
            own = choose(job, found, context, say)
            say("rewriting and verifying" if verify else "rewriting")
            current, verification = apply_and_verify(
                current,
                own,
                example_inputs=found.inputs.example,
                forward=found.inputs.on_example,
                groups=found.groups,
                verify=verify,
            )
        original = original or {name: before for name, (before, _) in own.costs.items()}
        plan = own if plan is None else compose(plan, own)
        yield Step(number, found, own, plan, current, verification)
        spent.update(predicted_loss(found.scores, own.drop))
        context = StepContext(
            step=number + 1,
            steps=steps,
            original=original,
            batch_size=found.groups.batch_size,
            kept={d.name: (d.n_channels, d.n_kept) for d in plan.groups},
            spent=dict(spent),
        )
