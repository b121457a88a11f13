"""Find channels that cost nothing: dead, constant, or linear in others wherever they are read.

Networks that were trained are full of them: channels that a rectifier never lets through, that a
norm has scaled to nothing, that say what others say. What reads them takes over exactly what they
said, so they go first, whatever a criterion makes of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from taskprune.allocation.dependence import TOLERANCE, Inputs
from taskprune.allocation.free_channels import FreeChannels, TakenOver
from taskprune.allocation.input_rows import InputRows
from taskprune.calling.forward import Forward, call_batch
from taskprune.calling.inputs import check_loaders, task_batches
from taskprune.calling.task import Task, check_tasks
from taskprune.calling.wrappers import bare, uncompiled
from taskprune.compensation import Survey
from taskprune.compensation.reads import ConvGeometry, Geometry, ProductGeometry, StackGeometry
from taskprune.compensation.survey import BATCHES_KEPT, Reader, dims_read
from taskprune.coupling.groups import CouplingGroup, CouplingGroups
from taskprune.errors import InputError
from taskprune.importance.projections import output_tasks
from taskprune.replace import replaced_modules
from taskprune.restore.process import preserved_rng
from taskprune.rewrite.surgery import named_tensors


def find_free(
    model: nn.Module,
    groups: CouplingGroups,
    data: Iterable[Any] | Mapping[str, Iterable[Any]],
    *,
    tasks: Mapping[str, Task] | None = None,
    forward: Forward = call_batch,
) -> FreeChannels:
    """Find channels that say nothing but what those say that stay.

    A channel is free if at every parameter that reads it, all that it says is a sum of what
    channels say that stay, and of a constant where the reader has somewhere to put one: a bias or
    the mean of a norm, and no padding, whose zeros are not that constant.

    Channels across which a statistic is taken, that are added up where no parameter reads them, or
    that something reads which cannot be re-weighted, are never free. Behind fewer than
    twice as many rows as channels only constants are.

    Args:
        model: The model; it is left as it was.
        groups: Its groups.
        data: Batches, or a loader for each task; up to eight of each are looked at.
        tasks: The tasks by name, if batches are theirs.
        forward: ``(model, batch) -> outputs``.

    Raises:
        InputError: There are no batches, or none of the outputs hangs on the weights.
        TraceError: The model rejects a batch.
        LossError: A task's loss is not a finite scalar attached to the model.
    """
    model, inputs = bare(model), InputRows()
    named = check_tasks(tasks) if tasks else {}
    loaders = check_loaders(data, named) if isinstance(data, Mapping) else None
    batches = list(
        islice(data, BATCHES_KEPT) if loaders is None else task_batches(loaders, BATCHES_KEPT)
    )
    if not batches:
        raise InputError("What channels say is looked at on batches. Found none: pass `data=`.")
    with torch.inference_mode(False), preserved_rng():
        with uncompiled(model), replaced_modules(model, groups.replacements):
            counted = named or output_tasks(model, batches[0], forward=forward)
        survey = Survey(dims_read(groups), counted, forward=forward, on_read=inputs.take)
        survey.look(model, batches, replacements=groups.replacements)
        return free_among(model, groups, survey, inputs)


def free_among(
    model: nn.Module, groups: CouplingGroups, survey: Survey, inputs: InputRows
) -> FreeChannels:
    """Do what :func:`find_free` does after a survey, which scoring can make on its way.

    Args:
        model: The model.
        groups: Its groups.
        survey: What is known of its readers.
        inputs: What they read.
    """
    survey.finish()
    rows = inputs.gathered()
    survey.on_read = None  # which holds them
    offsets = dict(zip((g.name for g in groups), _starts(groups), strict=True))
    waiting = torch.zeros(sum(g.n_channels for g in groups), dtype=torch.bool, device="cpu")
    for group in groups:
        if _can_be_free(group, survey.readers, rows):
            waiting[offsets[group.name] : offsets[group.name] + group.n_channels] = True
    if not bool(waiting.any()):
        return FreeChannels()
    with replaced_modules(bare(model), groups.replacements), torch.no_grad():
        tensors = named_tensors(bare(model))
        shifts = {name: _shift(survey.readers[name]) for name in rows}
        blocks = {
            name: _blocks(
                geometry,
                own,
                tensors[name],
                _numbers(groups, offsets, name)[geometry.dim],
                intercept=bool(shifts[name][0]),
            )
            for name, own in rows.items()
            if (geometry := survey.readers[name].geometry) and not survey.readers[name].refused
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
            name: TakenOver(
                geometry,
                tuple(
                    what.of(going[own.numbers[what.gone]])
                    for own, (what, _) in zip(blocks[name], parts, strict=True)
                ),
                *shifts[name],
            )
            for name, parts in said.items()
            if (geometry := survey.readers[name].geometry)
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
    geometry: Geometry,
    rows: tuple[Tensor, Tensor],
    weight: Tensor,
    numbers: Tensor,
    *,
    intercept: bool,
) -> list[Inputs]:
    weights = geometry.blocks(weight.detach()).to("cpu", torch.float64)
    entries = geometry.block_of(numbers).expand(len(weights), -1)
    return [
        Inputs(fitted.double(), held.double(), own, number, intercept=intercept)
        for fitted, held, own, number in zip(*rows, weights, entries, strict=True)
    ]


def _shift(reader: Reader) -> tuple[str, int]:
    """Return what takes a constant, and its sign; an empty name if nothing can exactly."""
    geometry = reader.geometry
    padded = isinstance(geometry, ConvGeometry) and any(map(any, geometry.padding))
    whole = isinstance(geometry, ProductGeometry | StackGeometry | ConvGeometry) and not padded
    name = reader.bias or reader.norm
    return (name if whole and reader.shifts_alone else "", 1 if reader.bias else -1)


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
