"""Replaying a plan on a model."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from torch import nn

from taskprune.calling.forward import Forward, Forwards, call_inputs, one_forward
from taskprune.calling.meta import without_values
from taskprune.calling.wrappers import bare
from taskprune.coupling.groups import CouplingGroups
from taskprune.plan.plan import PruningPlan
from taskprune.replace import replace_modules, split_parameters
from taskprune.restore.process import without_cached_casts
from taskprune.rewrite.rescaling import rescaled_weights
from taskprune.rewrite.surgery import (
    UndoLog,
    cut,
    give_data,
    give_own_memory,
    skeleton,
    tensor_shapes,
)
from taskprune.rewrite.verification import verify_against_masked
from taskprune.rewrite.verification_report import VerificationReport
from taskprune.rewrite.weight_norm import folded_gains

_log = logging.getLogger("taskprune")


def apply_plan(
    model: nn.Module,
    plan: PruningPlan,
    *,
    example_inputs: Any = None,
    forward: Forwards | None = None,
    groups: CouplingGroups | None = None,
    verify: bool = True,
    inplace: bool = False,
) -> nn.Module:
    """Return ``model`` with all the channels removed that ``plan`` drops.

    The result is an ordinary module of the same class with smaller tensors. Parameters keep their
    ``requires_grad``, dtype, device, memory format and ties; standard modules tell their new sizes.

    Args:
        model: The model the plan was made for, or a fresh one of the same build. It is taken out of
            ``torch.compile`` and data-parallel wrappers; wrap the result again.
        plan: From ``taskprune.solve``, a file, or :func:`taskprune.plan.build_plan`.
        example_inputs: What to verify on. Without them nothing is compared.
        forward: ``(model, example_inputs) -> outputs``, or several as in
            :func:`taskprune.trace`. Default: inputs are a tensor, a tuple of arguments or a dict of
            keywords.
        groups: The coupling groups, if at hand. Only needed to verify groups across which the code
            computes a statistic of its own; their channels are then checked by permutation.
        verify: Compare with the masked original. Skipped, with a message, on the meta device.
        inplace: Shrink ``model`` itself in place of a copy. Optimizers then need
            :func:`taskprune.rewrite.remap_optimizer`.

    Raises:
        InputError: ``model`` is sharded or cannot be copied.
        PlanMismatchError: The plan was made for another model.
        VerificationError: The result differs from the masked original; ``model`` is unchanged.
    """
    return apply_and_verify(
        model,
        plan,
        example_inputs=example_inputs,
        forward=one_forward(forward),
        groups=groups,
        verify=verify,
        inplace=inplace,
    )[0]


@without_cached_casts()
def apply_and_verify(
    model: nn.Module,
    plan: PruningPlan,
    *,
    example_inputs: Any = None,
    forward: Forward | None = None,
    groups: CouplingGroups | None = None,
    verify: bool = True,
    inplace: bool = False,
) -> tuple[nn.Module, VerificationReport | None]:
    """Do :func:`apply_plan` and return what was measured along with the model.

    The report is ``None`` where nothing was compared: without example inputs, on request, or where
    the model has no values to compare.
    """
    model = bare(model)
    comparing = verify and example_inputs is not None
    if comparing and (name := without_values(model)):
        _log.warning(
            "Not verified: `%s` is on the meta device and has no values to compare. Verify where "
            "the plan is applied to the real model.",
            name,
        )
        comparing = False
    original = skeleton(model) if comparing and inplace else model
    smaller = model if inplace else skeleton(model)
    split = split_parameters(model, plan.replacements).values()
    parts = {part for moved in split for part, _ in moved}
    undo = UndoLog()
    try:
        undo.add(replace_modules(smaller, plan.replacements))
        plan.check_fits(tensor_shapes(smaller))
        gains = folded_gains(smaller, plan.tensors)
        cut(smaller, plan, undo)
        for name, parameter in smaller.named_parameters():
            if name in gains:
                give_data(parameter, gains[name], undo)
        # What was cut is new. The rest still lies in the memory that it was borrowed from.
        new = {kept.name for kept in plan.tensors} | gains.keys()
        for name, parameter in smaller.named_parameters():
            borrows = name in parts or (not inplace and type(parameter) is nn.Parameter)
            if borrows and name not in new:
                give_own_memory(parameter)
        report = None
        if comparing:
            run = forward or call_inputs
            report = _verified(original, smaller, plan, example_inputs, run, groups)
    except BaseException:
        undo.roll_back()
        raise
    if report is not None and report.is_vacuous:
        _log.warning("%s. Verify on inputs that lead to other outputs.", report)
    return smaller, report


def _verified(
    original: nn.Module,
    smaller: nn.Module,
    plan: PruningPlan,
    inputs: Any,
    forward: Forward,
    groups: CouplingGroups | None,
) -> VerificationReport:
    report = verify_against_masked(
        original, smaller, plan, inputs=inputs, forward=forward, groups=groups
    )
    if groups is None:
        return report
    rescaled = rescaled_weights(
        original, smaller, plan, inputs=inputs, forward=forward, groups=groups
    )
    return replace(report, rescaled=rescaled)
