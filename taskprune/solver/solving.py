"""The stage ``solve``: choose the channels that go, so that the budget is met.

Within a group all channels cost the same, so they go by score alone. What is left to choose is how
many of each group go: the multipliers of several bounds first, then landing on the bounds exactly.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from taskprune.cost import ActivationMemory, Cost, CostModel, modality_costs
from taskprune.cost.names import kind_of
from taskprune.coupling.groups import CouplingGroups, IntArray
from taskprune.errors import InfeasibleBudgetError, InputError
from taskprune.importance.scores import ChannelScores
from taskprune.plan.plan import PruningPlan, build_plan
from taskprune.plan.rationale import make_rationale
from taskprune.solver.account import Account
from taskprune.solver.blocks import FloatArray, in_multiples, order_keys
from taskprune.solver.budget import Budget
from taskprune.solver.exchange import exchange
from taskprune.solver.infeasible import check_ahead, infeasible
from taskprune.solver.landing import MISS, fill, put_back, remove, step_together
from taskprune.solver.loss_budget import affordable, allowed_loss, predicted_loss
from taskprune.solver.multipliers import balanced
from taskprune.solver.removable import bound_limits, removable
from taskprune.solver.safety import Safety
from taskprune.solver.step_context import ALONE, StepContext

_log = logging.getLogger("taskprune")

DEFAULT_SAFETY = Safety()


@dataclass(frozen=True)
class CostPower:
    """How much a channel's price counts: the order is by ``score / saving ** power``.

    Attributes:
        params: Where only parameters are bounded. 0 is the plain order of scores. Score per
            parameter was no better in our trials, and worse where half of the parameters or more
            went: cheap channels with low scores are many, and their effects add up to more than
            first order predicts.
        macs: Where multiply-adds are bounded. 1 is score per saving. Here the price has to count:
            a few layers hold most of the compute, and the plain order passes them by, removing
            twice as many parameters for the same multiply-adds.

    Scores are squared effects, so 2 would set an effect against a saving (for scores from 0 on the
    order is that of ``sqrt(score) / saving``). In one-shot trials on the bundled `n` network 0 was
    worse than the rest where multiply-adds were bounded; from 0.5 to 3 the metrics differed by far
    less than calibrations do, so they give no reason to leave 1. A higher power keeps more
    parameters at equal multiply-adds.
    """

    params: float = 0.0
    macs: float = 1.0

    def __post_init__(self) -> None:
        for power in (self.params, self.macs):
            if not 0 <= power < float("inf"):
                raise InputError(f"A cost power must be a number from 0 on. Found {power!r}.")

    def of(self, cost: str) -> float:
        """Return the power where a cost is bounded; all but parameters have that of `macs`."""
        return self.params if kind_of(cost) == "params" else self.macs


DEFAULT_POWER = CostPower()


def solve(
    groups: CouplingGroups,
    scores: ChannelScores,
    budget: Budget,
    *,
    safety: Safety = DEFAULT_SAFETY,
    cost_power: CostPower = DEFAULT_POWER,
    costs: Mapping[str, Cost] | None = None,
    context: StepContext = ALONE,
) -> PruningPlan:
    """Choose which channels go. Same arguments, same plan.

    Args:
        groups: The model's coupling groups.
        scores: Scores of all their channels; a lower score goes first.
        budget: What may remain. The result never costs more, and less only by what the smallest
            channels that could be put back are too large for.
        safety: Limits that hold whatever the scores say.
        cost_power: How much a channel's price counts in the order.
        costs: Further costs by name that the budget may bound, such as ``latency_ns``, a
            :class:`~taskprune.cost.LatencyCost`.
        context: Where this is a step of several, which one, and what the others have done.

    Returns:
        The plan, with parameters and multiply-adds before and after, both exact. Groups that ran
        into a limit are logged; :func:`~taskprune.solver.removable.bound_limits` returns them.

    Raises:
        InputError: The scores are not those of these groups, or these have no modality of the
            budget's.
        InfeasibleBudgetError: The limits leave too little to remove; says what can be reached and
            what holds most.
    """
    models: dict[str, Cost] = {
        "params": CostModel.of_params(groups),
        "macs": CostModel.of_macs(groups),
        **modality_costs(groups, budget.bounds),
        **(costs or {}),
    }
    if "activation_memory" in budget.bounds:
        models.setdefault("activation_memory", ActivationMemory(groups))
    unknown = sorted(set(budget.bounds) - set(models))
    if unknown:
        raise InputError(
            f"The budget bounds `{unknown[0]}`, which must be measured first. Pass it in `costs=`."
        )
    check_ahead(groups, scores, models, budget, safety, context)
    parts = removable(groups, scores, safety, context)
    allowed = allowed_loss(safety, scores, context)
    originals = {name: model.value() for name, model in models.items()}
    limits = context.limits(budget, originals, batch_size=groups.batch_size)
    account = Account(parts, models, limits)
    keys = _order(account, cost_power)
    _meet(account, groups, safety, cost_power, context)
    predicted = predicted_loss(scores, _dropped(account))
    if any(predicted[task] > limit for task, limit in allowed.items()):
        # What the budget asks for is more than a task can afford: only then do limits bind.
        parts = affordable(parts, scores, allowed, keys)
        account = Account(parts, models, limits)
        _meet(account, groups, safety, cost_power, context)
    drop = _dropped(account)
    names = [group.name for group in groups]
    kept = account.full - account.removed
    bounds = bound_limits(parts, dict(zip(names, kept.tolist(), strict=True)), safety)
    for bound in bounds:
        _log.info("`%s` keeps %d channels: held by %s", bound.group, bound.n_kept, bound.limit)
    spent = {name: (originals[name], model.value(kept)) for name, model in models.items()}
    # Those of single modalities are parts of what is told anyway.
    further = {n: models[n] for n in account.limits if kind_of(n) not in ("params", "macs")}
    rationale = make_rationale(groups, scores, drop, {b.group: b.limit for b in bounds}, further)
    return build_plan(groups, drop, spent, rationale)


def _power(account: Account, cost_power: CostPower) -> float:
    exceeded = [name for name in account.limits if account.shortfall(name) > 0]
    return max(cost_power.of(name) for name in exceeded or account.limits)


def _order(account: Account, cost_power: CostPower) -> list[FloatArray]:
    """Return the keys by which the first channels of each group go."""
    power = _power(account, cost_power)
    prices = np.maximum(account.prices(), 1e-30)  # what saves nothing goes last
    return [
        order_keys(part.scores, np.full(len(part.scores), price), power)
        for part, price in zip(account.parts, prices.tolist(), strict=True)
    ]


def _meet(
    account: Account,
    groups: CouplingGroups,
    safety: Safety,
    cost_power: CostPower,
    context: StepContext,
) -> None:
    """Let channels go until the budget is met.

    Raises:
        InfeasibleBudgetError: The limits leave too little to remove.
    """
    multiples = [in_multiples(part, safety.multiple) for part in account.parts]
    is_coarse = safety.multiple > 1
    singles = [in_multiples(part, 1) for part in account.parts] if is_coarse else multiples
    exceeded = [name for name in account.limits if account.shortfall(name) > 0]
    power = _power(account, cost_power)
    if len(exceeded) > 1:
        powers = np.array([cost_power.of(name) for name in exceeded])
        account.move_to(balanced(account, multiples, exceeded, powers))
    remove(account, multiples, power)
    if is_coarse:
        # Where multiples alone cannot reach the target, the target comes first.
        remove(account, singles, power)
    while account.excess() > 0 and (
        step_together(account, multiples) or step_together(account, singles)
    ):
        remove(account, multiples, power)
        remove(account, singles, power)
    if account.excess() > 0:
        raise InfeasibleBudgetError(infeasible(groups, account, safety, context))
    put_back(account, multiples)
    exchange(account, multiples, power)
    if is_coarse and account.miss() > MISS:
        fill(account, safety.multiple)
        exchange(account, singles, power)


def _dropped(account: Account) -> dict[str, IntArray]:
    return {
        part.group.name: np.sort(part.order[:n])
        for part, n in zip(account.parts, account.removed.tolist(), strict=True)
        if n
    }
