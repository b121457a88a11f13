"""The stage ``solve``: choose the channels that go, so that the budget is met.

Within a group all channels cost the same, so they go by score alone. What is left to choose is how
many of each group go: the multipliers of several bounds first, then landing on the bounds exactly.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np

from taskprune.cost import Cost, LatencyCost, modality_costs
from taskprune.cost.names import kind_of
from taskprune.coupling.groups import CouplingGroups, IntArray
from taskprune.errors import InfeasibleBudgetError, InputError
from taskprune.importance.scores import ChannelScores
from taskprune.plan.plan import PruningPlan, build_plan
from taskprune.plan.rationale import make_rationale
from taskprune.solver.account import Account
from taskprune.solver.blocks import FloatArray, in_multiples, order_keys
from taskprune.solver.budget import ALWAYS, COUNTED, Budget
from taskprune.solver.infeasible import check_ahead, infeasible
from taskprune.solver.landing import MISS, exchange, fill, put_back, remove, step_together
from taskprune.solver.loss_budget import affordable, allowed_loss, predicted_loss
from taskprune.solver.multipliers import balanced
from taskprune.solver.removable import SAVES_NO_TIME, bound_limits, removable, without
from taskprune.solver.safety import Safety
from taskprune.solver.step_context import ALONE, StepContext

_log = logging.getLogger("taskprune")

DEFAULT_SAFETY = Safety()


def solve(
    groups: CouplingGroups,
    scores: ChannelScores,
    budget: Budget,
    *,
    safety: Safety = DEFAULT_SAFETY,
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
        **{name: COUNTED[name](groups) for name in COUNTED if name in (*ALWAYS, *budget.bounds)},
        **modality_costs(groups, budget.bounds),
        **(costs or {}),
    }
    unknown = sorted(set(budget.bounds) - set(models))
    if unknown:
        raise InputError(
            f"The budget bounds `{unknown[0]}`, which must be measured first. Pass it in `costs=`."
        )
    check_ahead(groups, scores, models, budget, safety, context)
    parts = removable(groups, scores, safety, context)
    timed = models.get("latency_ns")
    if isinstance(timed, LatencyCost) and set(budget.bounds) == {"latency_ns"}:
        parts = without(parts, timed.flat, SAVES_NO_TIME)
    allowed = allowed_loss(safety, scores, context)
    originals = {name: model.value() for name, model in models.items()}
    limits = context.limits(budget, originals, batch_size=groups.batch_size)
    account = Account(parts, models, limits)
    keys = _order(account)
    _meet(account, groups, safety, context)
    predicted = predicted_loss(scores, _dropped(account))
    if any(predicted[task] > limit for task, limit in allowed.items()):
        # What the budget asks for is more than a task can afford: only then do limits bind.
        parts = affordable(parts, scores, allowed, keys)
        account = Account(parts, models, limits)
        _meet(account, groups, safety, context)
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


def _order(account: Account) -> list[FloatArray]:
    """Return the keys by which the first channels of each group go."""
    prices = np.maximum(account.prices(), 1e-30)  # what saves nothing goes last
    return [
        order_keys(part.scores, np.full(len(part.scores), price), account.power)
        for part, price in zip(account.parts, prices.tolist(), strict=True)
    ]


def _meet(account: Account, groups: CouplingGroups, safety: Safety, context: StepContext) -> None:
    """Let channels go until the budget is met.

    Raises:
        InfeasibleBudgetError: The limits leave too little to remove.
    """
    multiples = [in_multiples(part, safety.multiple) for part in account.parts]
    is_coarse = safety.multiple > 1
    singles = [in_multiples(part, 1) for part in account.parts] if is_coarse else multiples
    if len(account.exceeded) > 1:
        account.move_to(balanced(account, multiples))
    remove(account, multiples)
    if is_coarse:
        # Where multiples alone cannot reach the target, the target comes first.
        remove(account, singles)
    while account.excess() > 0 and (
        step_together(account, multiples) or step_together(account, singles)
    ):
        remove(account, multiples)
        remove(account, singles)
    if account.excess() > 0:
        raise InfeasibleBudgetError(infeasible(groups, account, safety, context))
    put_back(account, multiples)
    exchange(account, multiples)
    if is_coarse and account.miss() > MISS:
        fill(account, safety.multiple)
        exchange(account, singles)


def _dropped(account: Account) -> dict[str, IntArray]:
    return {
        part.group.name: np.sort(part.order[:n])
        for part, n in zip(account.parts, account.removed.tolist(), strict=True)
        if n
    }
