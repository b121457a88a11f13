"""The masked original: the model as it was, with all removed channels silenced."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from taskprune.coupling.groups import CouplingGroups
from taskprune.plan.plan import PruningPlan
from taskprune.rewrite.norms import KeptStatistics, keep_mask
from taskprune.rewrite.surgery import named_tensors, replaced_copy, tensor_shapes


def zero_dropped(
    model: nn.Module, plan: PruningPlan, *, only: Collection[tuple[str, int]] | None = None
) -> nn.Module:
    """Return a copy with every entry that the plan removes set to zero, buffers included.

    Args:
        model: The original.
        plan: What is removed.
        only: Zero along these ``(name, dim)`` alone.

    Raises:
        PlanMismatchError: The plan was made for another model.
    """
    silenced = [kept for kept in plan.tensors if only is None or (kept.name, kept.dim) in only]
    masked = replaced_copy(model, plan.replacements, borrowing={kept.name for kept in silenced})
    plan.check_fits(tensor_shapes(masked))
    tensors = named_tensors(masked)
    for kept in silenced:
        data = tensors[kept.name].data
        dropped = (~keep_mask(kept)).nonzero().flatten().to(data.device)
        # Out of place: a buffer may be an expanded view of fewer values.
        tensors[kept.name].data = data.index_fill(kept.dim, dropped, 0)
    return masked


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
    masked = zero_dropped(model, plan)
    running: list[KeptStatistics] = []

    def begin(module: nn.Module, _: object) -> None:
        running.append(kept_statistics(module, plan))
        running[-1].__enter__()

    def end(*_: object) -> None:
        running.pop().__exit__(None, None, None)

    masked.register_forward_pre_hook(begin)
    masked.register_forward_hook(end, always_call=True)
    return masked
