"""Taking an optimizer's state along to the pruned model."""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from taskprune.calling.wrappers import bare
from taskprune.errors import InputError, PlanMismatchError
from taskprune.plan.decisions import KeptEntries
from taskprune.plan.plan import PruningPlan
from taskprune.replace import split_parameters
from taskprune.rewrite.surgery import kept_entries_by_name, named_tensors, select

OptimizerT = TypeVar("OptimizerT", bound=torch.optim.Optimizer)


def remap_optimizer(
    optimizer: OptimizerT, original: nn.Module, pruned: nn.Module, plan: PruningPlan
) -> OptimizerT:
    """Return an optimizer of ``pruned`` that goes on where the one of ``original`` was.

    Momentum, moments and every other state tensor of a parameter's shape lose the same entries as
    the parameter, and are split where a replaced module's packed parameter was. Settings, groups
    and their order stay. The given optimizer is left as it was. A learning-rate scheduler has to be
    made anew (``last_epoch=``) for the returned one.

    Args:
        optimizer: Any ``torch.optim`` optimizer over parameters of ``original``.
        original: The model before pruning; the same object as ``pruned`` after a rewrite in place.
        pruned: The result of :func:`taskprune.rewrite.apply_plan`.
        plan: The plan that was applied.

    Raises:
        InputError: The optimizer holds other parameters, or a state that cannot be cut.
        PlanMismatchError: ``pruned`` was not made by this plan.
    """
    original, pruned = bare(original), bare(pruned)
    check_pruned(pruned, plan)
    if original is pruned and plan.replacements:
        raise InputError(
            f"Expected a rewritten copy of the model. Found one rewritten in place, whose "
            f"`{plan.replacements[0].path}` was replaced, so that the parameters which the "
            "optimizer holds are gone. Make a new optimizer, or rewrite a copy (`inplace=False`)."
        )
    names = {id(tensor): name for name, tensor in named_tensors(original).items()}
    targets = named_tensors(pruned)
    kept = kept_entries_by_name(plan.tensors)

    def renamed(parameter: Tensor) -> str:
        if id(parameter) not in names:
            raise InputError(
                f"The optimizer holds a parameter of shape {tuple(parameter.shape)} that the "
                "original lacks. Pass the model whose parameters it was made with."
            )
        return names[id(parameter)]

    split = split_parameters(original, plan.replacements)

    def parts(parameter: Tensor) -> list[tuple[str, slice]]:
        name = renamed(parameter)
        return split.get(name, [(name, slice(None))])

    state: defaultdict[Tensor, Any] = defaultdict(dict)
    for parameter, entries in optimizer.state.items():
        if not isinstance(parameter, Tensor):
            raise InputError(
                f"Expected optimizer state per parameter. {type(optimizer).__name__} keeps some "
                f"under {parameter!r}. Make a new optimizer for the pruned model."
            )
        for name, rows in parts(parameter):
            state[targets[name]] = {
                key: _cut_state(
                    _rows_of_state(value, parameter, rows),
                    plan.shapes[name],
                    kept.get(name, []),
                    f"{name}/{key}",
                )
                for key, value in entries.items()
            }
    # `copy` goes through the optimizer's own __getstate__, which leaves out what schedulers and
    # hooks have attached to this object.
    remapped = copy.copy(optimizer)
    remapped.param_groups = [
        {**group, "params": [targets[name] for p in group["params"] for name, _ in parts(p)]}
        for group in optimizer.param_groups
    ]
    remapped.state = state
    return remapped


def check_pruned(pruned: nn.Module, plan: PruningPlan) -> None:
    """Check that a model has the shapes that a plan makes.

    Raises:
        PlanMismatchError: It has others.
    """
    expected = plan.pruned_shapes
    for name, tensor in named_tensors(pruned).items():
        if name in expected and tuple(tensor.shape) != expected[name]:
            raise PlanMismatchError(
                f"Expected `pruned` to be the result of this plan, with `{name}` of shape "
                f"{expected[name]}. Found {tuple(tensor.shape)}."
            )


def _rows_of_state(value: Any, parameter: Tensor, rows: slice) -> Any:
    """Return the part of a state that belongs to some rows of its parameter."""
    if isinstance(value, Tensor) and value.shape == parameter.shape:
        return value[rows]
    return value


def _cut_state(value: Any, shape: tuple[int, ...], kept: list[KeptEntries], where: str) -> Any:
    if not isinstance(value, Tensor):
        return copy.deepcopy(value)
    if tuple(value.shape) == tuple(shape):
        return select(value, kept) if kept else value.clone()
    if not kept or value.numel() == 1:
        return value.clone()
    raise InputError(
        f"Expected optimizer state of the parameter's shape {tuple(shape)}, or a single number. "
        f"Found `{where}` of shape {tuple(value.shape)}. Make a new optimizer for the pruned model."
    )
