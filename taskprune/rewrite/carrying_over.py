"""Pruning a model in the middle of its training, with all that holds on to it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from taskprune.calling.wrappers import bare
from taskprune.errors import InputError
from taskprune.plan.plan import PruningPlan
from taskprune.rewrite.apply import apply_plan
from taskprune.rewrite.optimizer import check_pruned, remap_optimizer
from taskprune.rewrite.surgery import named_tensors


def carry_over(
    model: nn.Module,
    pruned: nn.Module,
    plan: PruningPlan,
    *,
    optimizers: Iterable[torch.optim.Optimizer] = (),
    averages: Iterable[nn.Module] = (),
) -> None:
    """Make the model that is being trained the pruned one, in place, with what trains it.

    The objects stay the same, so trainers, learning-rate schedulers, gradient scalers and hooks
    that hold them go on. An optimizer's state loses the same entries as its parameters. So do
    averages of the weights; what compensation added to the pruned weights is added to them.

    Nothing is changed before everything is known to fit.

    Args:
        model: The model in training.
        pruned: What ``taskprune.prune(model, ...)`` made of it; stays as it is.
        plan: The plan of that.
        optimizers: Optimizers over parameters of `model`.
        averages: Models of the same build that hold averages of its weights: the ``module`` of a
            ``torch.optim.swa_utils.AveragedModel``, or the like.

    Raises:
        InputError: `model` is inside ``DistributedDataParallel``, whose buckets have the old sizes;
            or an optimizer holds other parameters, or a state that cannot be cut.
        PlanMismatchError: `pruned` was not made by `plan`, or an average is of another model.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise InputError(
            "Expected a model that can change its sizes. Found one inside DistributedDataParallel, "
            "whose buckets of gradients cannot. Prune `model.module`, and wrap it again."
        )
    model, pruned = bare(model), bare(pruned)
    check_pruned(pruned, plan)
    optimizers, averages = list(optimizers), [bare(average) for average in averages]
    remapped = [remap_optimizer(optimizer, model, pruned, plan) for optimizer in optimizers]
    for average in averages:
        apply_plan(average, plan, verify=False)  # a copy, to see whether it fits
    apply_plan(model, plan, verify=False, inplace=True)
    added = _take_values(model, pruned)
    for average in averages:
        apply_plan(average, plan, verify=False, inplace=True)
        _add(average, added)
    names = {id(parameter): name for name, parameter in pruned.named_parameters()}
    own: dict[str, Tensor] = dict(model.named_parameters())
    for optimizer, other in zip(optimizers, remapped, strict=True):
        state = {own[names[id(p)]]: entries for p, entries in other.state.items()}
        optimizer.state.clear()
        optimizer.state.update(state)
        for group, new in zip(optimizer.param_groups, other.param_groups, strict=True):
            group["params"] = [own[names[id(parameter)]] for parameter in new["params"]]


def _take_values(model: nn.Module, pruned: nn.Module) -> dict[str, Tensor]:
    """Copy the pruned model's values; return what they add to those that were sliced."""
    values = named_tensors(pruned)
    added = {}
    with torch.no_grad():
        for name, tensor in named_tensors(model).items():
            value = values[name].to(tensor.device)
            if tensor.is_floating_point() and not torch.equal(tensor, value):
                added[name] = value - tensor
            tensor.copy_(value)
    return added


def _add(average: nn.Module, added: dict[str, Tensor]) -> None:
    tensors = named_tensors(average)
    with torch.no_grad():
        for name, difference in added.items():
            own = tensors[name]
            own.add_(difference.to(device=own.device, dtype=own.dtype))
