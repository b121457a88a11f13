"""From entries of parameters to channels: sums over each channel's entries without loops.

All channels of all groups get one running number. For every dim of every parameter in which some
group has entries, a vector holds the number of the channel that each position belongs to, so that
sums over channels are sums over the other dims followed by one ``index_add``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from taskprune.coupling.groups import CouplingGroups, IntArray
from taskprune.errors import PlanMismatchError
from taskprune.importance.scores import GroupScores

NO_CHANNEL = -1


@dataclass(frozen=True, eq=False, slots=True)
class ParameterAxis:
    """One dim of one parameter that holds channels.

    Attributes:
        dim: The axis.
        channel: Running channel number of each position, ``-1`` where there is none. Shape
            ``[size of the dim]``, int64.
        counted: True for entries that an earlier dim of the same parameter already gives to the
            same channel (the diagonal of a square weight inside one residual stream). Broadcasts
            to the parameter's shape; ``None`` where there is no such entry.
    """

    dim: int
    channel: Tensor
    counted: Tensor | None


class ChannelIndex:
    """Running numbers of all channels, and which parameter entries each of them holds.

    Args:
        groups: The coupling groups.

    Attributes:
        n_channels: Channels of all groups together.
        slices: ``{group name: its running numbers}``, in the groups' order.
        axes: ``{parameter name: its dims that hold channels}``. Buffers are left out.
    """

    def __init__(self, groups: CouplingGroups) -> None:
        self.slices: dict[str, slice] = {}
        start = 0
        for group in groups:
            self.slices[group.name] = slice(start, start + group.n_channels)
            start += group.n_channels
        self.n_channels = start
        self.axes = {
            name: _axes(vectors, len(groups.shapes[name]))
            for name, vectors in sorted(self._vectors(groups).items())
        }

    def _vectors(self, groups: CouplingGroups) -> dict[str, dict[int, IntArray]]:
        vectors: dict[str, dict[int, IntArray]] = {}
        for group in groups:
            numbers = np.arange(
                self.slices[group.name].start, self.slices[group.name].stop, dtype=np.int64
            )
            for member in group.members:
                if member.name not in groups.parameter_names:
                    continue
                size = groups.shapes[member.name][member.dim]
                vector = vectors.setdefault(member.name, {}).setdefault(
                    member.dim, np.full(size, NO_CHANNEL, dtype=np.int64)
                )
                vector[member.index] = numbers[:, None]
        return vectors

    def find(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Pick the parameters that hold channels, in the index's order.

        Raises:
            PlanMismatchError: One is missing: the groups were made for another model.
        """
        missing = [name for name in self.axes if name not in parameters]
        if missing:
            raise PlanMismatchError(
                f"The groups have entries in a parameter `{missing[0]}` ({len(missing)} in all) "
                "that this model does not have. Trace and couple the model that is scored."
            )
        return {name: parameters[name] for name in self.axes}

    def sums(self, entries: Mapping[str, Tensor | None], device: torch.device) -> Tensor:
        """Sum ``entries`` over each channel's entries, every entry once.

        Args:
            entries: ``{parameter name: values of the parameter's shape}``; names left out or
                ``None`` count as zero.
            device: Where to add up.

        Returns:
            Sums in running order. Shape ``[n_channels]``, float64.
        """
        total = torch.zeros(self.n_channels + 1, dtype=torch.float64, device=device)
        parts: list[Tensor] = []
        numbers: list[Tensor] = []
        for name, axes in self.axes.items():
            values = entries.get(name)
            if values is None:
                continue
            for axis in axes:
                own = (
                    values
                    if axis.counted is None
                    else values.masked_fill(axis.counted.to(values.device), 0)
                )
                rest = [d for d in range(own.ndim) if d != axis.dim]
                # torch reads an empty list of dims as "all of them".
                reduced = own.sum(rest) if rest else own
                parts.append(reduced.to(device=device, dtype=torch.float64))
                numbers.append(axis.channel)
        if parts:
            # Positions without a channel have number -1 and land in the spare last place.
            where = torch.cat(numbers).to(device)
            total.index_add_(0, where.where(where >= 0, self.n_channels), torch.cat(parts))
        return total[: self.n_channels]

    def split(self, running: GroupScores) -> dict[str, GroupScores]:
        """Cut the scores of all channels, in running order, into ``{group name: its part}``."""
        return {name: running.of(part) for name, part in self.slices.items()}


def _axes(vectors: Mapping[int, IntArray], n_dims: int) -> tuple[ParameterAxis, ...]:
    axes: list[ParameterAxis] = []
    for dim, vector in sorted(vectors.items()):
        counted: Tensor | None = None
        own = _along(vector, dim, n_dims)
        for earlier in axes:
            if np.intersect1d(vector[vector >= 0], earlier.channel.numpy()).size:
                same = (own == _along(earlier.channel.numpy(), earlier.dim, n_dims)) & (own >= 0)
                counted = same if counted is None else counted | same
        axes.append(ParameterAxis(dim, torch.from_numpy(vector), counted))
    return tuple(axes)


def _along(vector: IntArray, dim: int, n_dims: int) -> Tensor:
    """View a vector along one dim so that it broadcasts against a parameter."""
    shape = [1] * n_dims
    shape[dim] = -1
    return torch.from_numpy(vector).reshape(shape)
