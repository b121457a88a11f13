"""Channels that cost nothing, what reads them, and scores by which they go first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from taskprune.allocation.dependence import Said
from taskprune.compensation.reads import Geometry
from taskprune.cost import count_params
from taskprune.coupling.groups import CouplingGroups, IntArray
from taskprune.importance.scores import ChannelScores
from taskprune.plan.plan import PruningPlan
from taskprune.replace import replaced_modules
from taskprune.rewrite.surgery import copy_with, named_tensors
from taskprune.solver.blocks import in_multiples
from taskprune.solver.budget import Budget
from taskprune.solver.removable import removable
from taskprune.solver.safety import Safety


@dataclass(frozen=True, eq=False, slots=True)
class TakenOver:
    """What a reader takes over from free channels.

    Attributes:
        geometry: How it reads.
        said: What they say, for each block.
        shifted: Name of the bias or running mean that takes what is constant; empty if none can.
        sign: Of the shift.
    """

    geometry: Geometry
    said: tuple[Said, ...]
    shifted: str
    sign: int


@dataclass(frozen=True, eq=False, slots=True)
class FreeChannels:
    """Channels that can all go together without any output noticing.

    Attributes:
        channels: ``{group name: channel numbers}``, ascending; groups without any are left out.
        readers: What those take over that read them, by name of the parameter.
    """

    channels: Mapping[str, IntArray] = field(default_factory=dict)
    readers: Mapping[str, TakenOver] = field(default_factory=dict)

    def first(self, scores: ChannelScores) -> ChannelScores:
        """Return scores by which these channels go before all others, whose scores stay."""
        known = {
            name: gone
            for name, gone in self.channels.items()
            # An earlier step may have left groups of other channels.
            if name in scores.groups and len(scores[name].total) > gone[-1]
        }
        if not known:
            return scores
        # Criteria give 0 to others as well, and less where a channel does harm.
        totals = torch.cat([own.total for own in scores.groups.values()])
        is_lowest = bool(totals.min() > 0)
        lowest = 0.0 if is_lowest else float(totals.min() - 1e-9 * totals.abs().max())
        groups = dict(scores.groups)
        for name, gone in known.items():
            own, where = groups[name], torch.from_numpy(gone)
            rest = {
                part: value.index_fill(-1, where, 0)
                for part in ("per_task", "pair_conflict", "loss_increase")
                if (value := getattr(own, part)) is not None
            }
            groups[name] = replace(own, total=own.total.index_fill(-1, where, lowest), **rest)
        return replace(scores, groups=groups, free=known)

    def among(self, plan: PruningPlan) -> dict[str, int]:
        """Return how many of those are free that a plan drops, by group."""
        return {
            d.name: len(np.intersect1d(d.drop, self.channels[d.name]))
            for d in plan.groups
            if d.name in self.channels
        }

    def after(self, plan: PruningPlan) -> FreeChannels:
        """Return those that a plan leaves, by their numbers in what is left."""
        found = {}
        for decision in plan.groups:
            if decision.name in self.channels:
                kept = np.setdiff1d(np.arange(decision.n_channels), decision.drop)
                left = np.flatnonzero(np.isin(kept, self.channels[decision.name]))
                if len(left):
                    found[decision.name] = left
        return FreeChannels(found)

    def folded(self, model: nn.Module, plan: PruningPlan) -> tuple[nn.Module, PruningPlan]:
        """Let readers take over what those say that a plan drops.

        Args:
            model: The model in which they were found; it is left as it was.
            plan: What goes.

        Returns:
            A model with the same outputs and the plan for it: copies, but where nothing is taken
            over.
        """
        with replaced_modules(model, plan.replacements), torch.no_grad():
            tensors = named_tensors(model)
            values: dict[str, Tensor] = {}
            for kept in plan.tensors:
                reader = self.readers.get(kept.name)
                if reader is not None and kept.dim == reader.geometry.dim:
                    stays = torch.zeros(kept.size, dtype=torch.bool, device="cpu")
                    stays[list(kept.keep)] = True
                    _take_over(kept.name, reader, ~stays, tensors, values)
        if not values:
            return model, plan
        copied = copy_with(
            model, lambda name, data: values.get(name, data).to(data), plan.replacements
        )
        return copied, replace(plan, replacements=())


def only_free(groups: CouplingGroups, scores: ChannelScores, safety: Safety) -> Budget:
    """Return the bound that lets go what is free and nothing else, within the limits.

    Args:
        groups: The groups.
        scores: From :meth:`FreeChannels.first`.
        safety: The limits.
    """
    kept = groups.full_counts()
    for part in removable(groups, scores, safety):
        name = part.group.name
        n_free = int(np.isin(part.order, scores.free.get(name, ())).sum())
        ends = in_multiples(part, safety.multiple).ends
        kept[name] -= int(ends[ends <= n_free].max(initial=0))
    return Budget(params=count_params(groups, kept))


def _take_over(
    name: str,
    reader: TakenOver,
    dropped: Tensor,
    tensors: Mapping[str, Tensor],
    values: dict[str, Tensor],
) -> None:
    """Add to `values` what becomes of a reader, and of what takes its shift."""
    geometry, old = reader.geometry, tensors[name].detach()
    blocks = geometry.blocks(old.double()).clone()
    goes = geometry.block_of(dropped).expand(len(blocks), -1)
    shift = blocks.new_zeros(blocks.shape[:2])
    changed = False
    for number, said in enumerate(reader.said):
        own = said.of(goes[number][said.gone])
        if not bool(own.matrix.any() or own.constant.any()):
            continue
        changed = True
        gone = own.gone.to(old.device)
        said_by = blocks[number][:, gone]
        blocks[number][:, gone] = 0
        blocks[number][:, own.by.to(old.device)] += torch.einsum(
            "ofk,sf->osk", said_by, own.matrix.to(old.device)
        )
        shift[number] = said_by.sum(2) @ own.constant.to(old.device)
    if not changed:
        return
    values[name] = geometry.weight(blocks)
    if reader.shifted and bool(shift.any()):
        before = values.get(reader.shifted, tensors[reader.shifted].detach().double())
        values[reader.shifted] = before + reader.sign * shift.reshape(-1)
