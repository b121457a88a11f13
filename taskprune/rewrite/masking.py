"""The masked original: the model as it was, with all removed channels silenced."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn

from taskprune.coupling.groups import CouplingGroups
from taskprune.plan.plan import PruningPlan
from taskprune.replace import reference_replacements, split_parameters
from taskprune.rewrite.loading import Values
from taskprune.rewrite.norms import KeptStatistics, keep_mask
from taskprune.rewrite.surgery import copy_with, skeleton, tensor_shapes


def silencing(
    model: nn.Module, plan: PruningPlan, *, only: Collection[tuple[str, int]] | None = None
) -> Values:
    """Return what a model's tensors hold once every entry that the plan removes is zero.

    The plan speaks of tensors after its replacements; these are those of the model as it is
    written, so that it stands for the replaced modules as well, but for those of
    :func:`~taskprune.replace.reference_replacements`.

    Args:
        model: The original.
        plan: What is removed.
        only: Zero along these ``(name, dim)`` of the plan alone.

    Raises:
        PlanMismatchError: The model has nothing to replace where it should.
    """
    apart = set(plan.replacements) - set(reference_replacements(plan.replacements))
    written = {
        part: (name, rows)
        for name, parts in split_parameters(model, apart).items()
        for part, rows in parts
    }
    zeroed: dict[str, list[tuple[slice, int, Tensor]]] = {}
    for kept in plan.tensors:
        if only is None or (kept.name, kept.dim) in only:
            name, rows = written.get(kept.name, (kept.name, slice(None)))
            dropped = (~keep_mask(kept)).nonzero().flatten()
            zeroed.setdefault(name, []).append((rows, kept.dim, dropped))

    def values(name: str, data: Tensor) -> Tensor:
        if name not in zeroed:
            return data
        silenced = data.clone()  # of an expanded view of fewer values as well
        for rows, dim, dropped in zeroed[name]:
            silenced[rows].index_fill_(dim, dropped.to(data.device), 0)
        return silenced

    return values


def reading_dims(groups: CouplingGroups) -> frozenset[tuple[str, int]]:
    """Return the ``(name, dim)`` whose entries read channels and nowhere make them."""
    members = [member for group in groups for member in group.members]
    making = {(member.name, member.dim) for member in members if member.produces}
    return frozenset((m.name, m.dim) for m in members) - making


def kept_statistics(masked: nn.Module, plan: PruningPlan) -> KeptStatistics:
    """Return the context in which ``masked`` runs exactly like the pruned model."""
    return KeptStatistics(masked, plan.tensors, plan.activations)


def masked_copy(model: nn.Module, plan: PruningPlan) -> nn.Module:
    """Return the masked original, whose norms take statistics over the kept channels.

    Calls of the module itself are covered; a method of it called from outside runs without the
    adjusted norms.
    """
    plan.check_fits(tensor_shapes(skeleton(model, plan.replacements)))
    masked = copy_with(model, silencing(model, plan), reference_replacements(plan.replacements))
    running: list[KeptStatistics] = []

    def begin(module: nn.Module, _: object) -> None:
        running.append(kept_statistics(module, plan))
        running[-1].__enter__()

    def end(*_: object) -> None:
        running.pop().__exit__(None, None, None)

    masked.register_forward_pre_hook(begin)
    masked.register_forward_hook(end, always_call=True)
    return masked
