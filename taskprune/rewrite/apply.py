"""Replaying a plan on a model."""

from __future__ import annotations

from typing import Any

from torch import nn

from taskprune.coupling.groups import CouplingGroups
from taskprune.errors import InputError
from taskprune.forward import Forward, call_inputs
from taskprune.plan import PruningPlan
from taskprune.replace import replace_modules
from taskprune.rewrite.surgery import UndoLog, cut, duplicate, shrinking, tensor_shapes
from taskprune.rewrite.verification import VerificationReport, verify_against_masked


def apply_plan(
    model: nn.Module,
    plan: PruningPlan,
    *,
    example_inputs: Any = None,
    forward: Forward | None = None,
    groups: CouplingGroups | None = None,
    verify: bool = True,
    inplace: bool = False,
) -> nn.Module:
    """Return ``model`` with all the channels removed that ``plan`` drops.

    The result is an ordinary module of the same class with smaller tensors. Parameters keep their
    ``requires_grad``, dtype, device, memory format and ties; standard modules tell their new sizes.

    Args:
        model: The model the plan was made for, or a fresh one of the same build.
        plan: From ``taskprune.solve``, a file, or :func:`taskprune.plan.build_plan`.
        example_inputs: What to verify on. Without them nothing is compared.
        forward: ``(model, example_inputs) -> outputs``. Default: inputs are a tensor, a tuple of
            arguments or a dict of keywords.
        groups: The coupling groups, if at hand. Only needed to verify groups across which the code
            computes a statistic of its own; their channels are then checked by permutation.
        verify: Compare with the masked original.
        inplace: Shrink ``model`` itself in place of a copy. Optimizers then need
            :func:`taskprune.rewrite.remap_optimizer`.

    Raises:
        InputError: ``model`` is a wrapper or cannot be copied.
        PlanMismatchError: The plan was made for another model.
        VerificationError: The result differs from the masked original; ``model`` is unchanged.
    """
    return apply_and_verify(
        model,
        plan,
        example_inputs=example_inputs,
        forward=forward,
        groups=groups,
        verify=verify,
        inplace=inplace,
    )[0]


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

    The report is ``None`` where nothing was compared: without example inputs, or on request.
    """
    check_bare(model)
    comparing = verify and example_inputs is not None
    original = duplicate(model) if comparing and inplace else model
    smaller = model if inplace else duplicate(model, borrowing=shrinking(plan))
    undo = UndoLog()
    try:
        undo.add(replace_modules(smaller, plan.replacements))
        plan.check_fits(tensor_shapes(smaller))
        cut(smaller, plan, undo)
        report = (
            verify_against_masked(
                original,
                smaller,
                plan,
                inputs=example_inputs,
                forward=forward or call_inputs,
                groups=groups,
            )
            if comparing
            else None
        )
    except BaseException:
        undo.roll_back()
        raise
    return smaller, report


def check_bare(model: nn.Module) -> None:
    """Check that ``model`` is a module and no wrapper around one.

    Raises:
        InputError: It is; the message says what to pass instead.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"Expected a `torch.nn.Module`. Found {type(model).__name__}.")
    # `torch.compile` and the data-parallel wrappers keep the model under one of these names.
    for inner in ("_orig_mod", "module"):
        if list(model._modules) == [inner] and type(model).__module__.startswith("torch."):
            raise InputError(
                f"Expected the model itself. Found it wrapped in {type(model).__name__}: pass "
                f"`model.{inner}` and wrap the result again."
            )
