"""Channels that cost nothing: dead, constant, or linear in others wherever they are read.

Networks that were trained are full of them: channels that a rectifier never lets through, that a
norm has scaled to nothing, that say what others say. What reads them takes over exactly what they
said (:meth:`FreeChannels.folded`), so they go first, whatever a criterion makes of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from taskprune.allocation.dependence import TOLERANCE, Inputs, Said
from taskprune.allocation.input_rows import InputRows
from taskprune.calling.wrappers import bare
from taskprune.compensation import Survey
from taskprune.compensation.reads import ConvGeometry, Geometry, ProductGeometry, StackGeometry
from taskprune.compensation.survey import Reader
from taskprune.cost import count_params
from taskprune.coupling.groups import CouplingGroup, CouplingGroups, IntArray
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
        if not self.channels:
            return scores
        # Criteria give 0 to others as well, and less where a channel does harm.
        totals = torch.cat([own.total for own in scores.groups.values()])
        lowest = float(totals.min() - 1e-9 * totals.abs().max())
        lowest = min(0.0, lowest) if bool(totals.min() <= 0) else 0.0
        groups = dict(scores.groups)
        for name, gone in self.channels.items():
            if name not in groups or len(groups[name].total) <= gone[-1]:
                continue  # an earlier step left groups of other channels
            own, where = groups[name], torch.from_numpy(gone)
            rest = {
                part: value.index_fill(-1, where, 0)
                for part in ("per_task", "pair_conflict", "loss_increase")
                if (value := getattr(own, part)) is not None
            }
            groups[name] = replace(own, total=own.total.index_fill(-1, where, lowest), **rest)
        return replace(scores, groups=groups)

    def budget(self, groups: CouplingGroups, scores: ChannelScores, safety: Safety) -> Budget:
        """Return the bound that lets go what is free and nothing else, within the limits.

        Args:
            groups: The groups.
            scores: From :meth:`first`.
            safety: The limits.
        """
        kept = groups.full_counts()
        for part in removable(groups, scores, safety):
            name = part.group.name
            n_free = int(np.isin(part.order, self.channels.get(name, ())).sum())
            ends = in_multiples(part, safety.multiple).ends
            kept[name] -= int(ends[ends <= n_free].max(initial=0))
        return Budget(params=count_params(groups, kept))

    def told(self, plan: PruningPlan) -> PruningPlan:
        """Return a plan of one step whose reasons say how many channels are free."""
        dropped = self.among(plan)
        rationale = tuple(replace(why, n_free=dropped.get(why.group, 0)) for why in plan.rationale)
        return replace(plan, rationale=rationale)

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


def find_free(
    model: nn.Module, groups: CouplingGroups, survey: Survey, inputs: InputRows
) -> FreeChannels:
    """Find channels that say nothing but what those say that stay.

    A channel is free if at every parameter that reads it, all that it says is a sum of what
    channels say that stay, and of a constant where the reader has somewhere to put one: a bias or
    the mean of a norm, and no padding, whose zeros are not that constant.

    Channels across which a statistic is taken, that are added up where no parameter reads them, or
    that something reads which cannot be re-weighted, are never free. Behind few rows, fewer than
    one and a half times as many as channels, only constants are.

    Args:
        model: The model.
        groups: Its groups.
        survey: What is known of its readers.
        inputs: What they read.
    """
    survey.finish()
    rows = inputs.gathered()
    offsets = dict(zip((g.name for g in groups), _starts(groups), strict=True))
    waiting = torch.zeros(sum(g.n_channels for g in groups), dtype=torch.bool, device="cpu")
    for group in groups:
        if _can_be_free(group, survey.readers, rows):
            waiting[offsets[group.name] : offsets[group.name] + group.n_channels] = True
    if not bool(waiting.any()):
        return FreeChannels()
    with replaced_modules(bare(model), groups.replacements), torch.no_grad():
        tensors = named_tensors(bare(model))
        blocks = {
            name: _blocks(survey.readers[name], own, tensors[name], _numbers(groups, offsets, name))
            for name, own in rows.items()
            if survey.readers[name].geometry is not None
        }
    going = _chosen([own for parts in blocks.values() for own in parts], waiting)
    _leave_one(groups, offsets, going)
    said = {name: [own.said(going) for own in parts] for name, parts in blocks.items()}
    for name, parts in said.items():
        for own, (what, missing) in zip(blocks[name], parts, strict=True):
            going[own.numbers[what.gone[missing > TOLERANCE]]] = False
    if not bool(going.any()):
        return FreeChannels()
    return FreeChannels(
        {
            group.name: found.numpy()
            for group in groups
            if len(found := going[offsets[group.name] :][: group.n_channels].nonzero().flatten())
        },
        {
            name: _taken_over(
                survey.readers[name],
                [
                    w.of(going[own.numbers[w.gone]])
                    for own, (w, _) in zip(blocks[name], parts, strict=True)
                ],
            )
            for name, parts in said.items()
        },
    )


def _starts(groups: CouplingGroups) -> list[int]:
    sizes = [group.n_channels for group in groups]
    return [sum(sizes[:number]) for number in range(len(sizes))]


def _reading(group: CouplingGroup) -> list[tuple[str, int]]:
    return [(member.name, member.dim) for member in group.members if not member.produces]


def _can_be_free(
    group: CouplingGroup, readers: Mapping[str, Reader], rows: Mapping[str, object]
) -> bool:
    if group.crossed_by or group.statistics or group.contracted or group.readers:
        return False
    reading = _reading(group)
    return bool(reading) and all(
        name in rows
        and not readers[name].refused
        and (geometry := readers[name].geometry) is not None
        and geometry.dim == dim
        for name, dim in reading
    )


def _numbers(groups: CouplingGroups, offsets: Mapping[str, int], name: str) -> dict[int, Tensor]:
    """Return, for each dim that a parameter reads, the channel of each entry, -1 for none."""
    found: dict[int, Tensor] = {}
    for group in groups:
        for member in group.members:
            if member.name == name and not member.produces:
                size = groups.shapes[name][member.dim]
                own = found.setdefault(
                    member.dim, torch.full((size,), -1, dtype=torch.int64, device="cpu")
                )
                number = offsets[group.name] + np.arange(group.n_channels)
                own[torch.from_numpy(member.index)] = torch.from_numpy(number)[:, None]
    return found


def _blocks(
    reader: Reader,
    rows: tuple[Tensor, Tensor],
    weight: Tensor,
    numbers: Mapping[int, Tensor],
) -> list[Inputs]:
    geometry = reader.geometry
    assert geometry is not None
    weights = geometry.blocks(weight.detach()).to("cpu", torch.float64)
    entries = geometry.block_of(numbers[geometry.dim]).expand(len(weights), -1)
    return [
        Inputs(fitted.double(), held.double(), own, number, intercept=bool(_shift(reader)[0]))
        for fitted, held, own, number in zip(*rows, weights, entries, strict=True)
    ]


def _shift(reader: Reader) -> tuple[str, int]:
    """Return what takes a constant, and its sign; an empty name if nothing can exactly."""
    geometry = reader.geometry
    padded = isinstance(geometry, ConvGeometry) and any(map(any, geometry.padding))
    whole = isinstance(geometry, ProductGeometry | StackGeometry | ConvGeometry) and not padded
    if not whole:
        return "", 1
    return (reader.bias, 1) if reader.bias else (reader.norm, -1)


def _chosen(inputs: Sequence[Inputs], waiting: Tensor) -> Tensor:
    """Return which channels can go together: whatever says most on its own stays, one by one.

    That is a Cholesky factorisation with pivots, of all readers at once.
    """
    going = waiting.clone()
    for own in inputs:
        own.begin(going)
    of = [own.numbers[own.columns] for own in inputs]
    says = [own.own() for own in inputs]
    while True:
        most = torch.zeros(len(going), dtype=torch.float64, device="cpu")
        for numbers, values in zip(of, says, strict=True):
            most.scatter_reduce_(0, numbers, values.nan_to_num(torch.inf), "amax")
        most = most.where(going, 0)
        number = int(most.argmax()) if len(most) else 0
        if not len(most) or float(most[number]) <= TOLERANCE:
            return going
        going[number] = False
        for place, own in enumerate(inputs):
            if bool((of[place] == number).any()):
                own.stays(number)
                says[place] = own.own()


def _leave_one(groups: CouplingGroups, offsets: Mapping[str, int], going: Tensor) -> None:
    """Let one channel of each group stay, as one must."""
    for group in groups:
        own = going[offsets[group.name] : offsets[group.name] + group.n_channels]
        if bool(own.all()):
            own[0] = False


def _taken_over(reader: Reader, said: Sequence[Said]) -> TakenOver:
    assert reader.geometry is not None
    return TakenOver(reader.geometry, tuple(said), *_shift(reader))


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
