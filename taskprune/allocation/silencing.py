"""Take channels out of a model for one forward: no rewrite, and everything given back.

Their entries are zeroed, and on request the weights that read them are changed so that the
channels that stay say what they said: least squares on the readers' inputs, from second moments
taken once (:class:`Moments`). That is the channel map of compensation without weights of rows,
held-out rows or errors of earlier readers: a measure of what cannot be mended.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from taskprune.compensation.reading_calls import Read, ReadingMode
from taskprune.compensation.reads import ConvGeometry, ProductGeometry, TransposedGeometry
from taskprune.coupling.groups import CouplingGroup, CouplingGroups, IntArray, TensorSlice

RIDGE = 1e-3
"""Of the map, relative to the mean square of the channels that stay."""

ROWS = 4096
"""Rows of one call's input to take moments of at most, evenly spaced."""

WIDEST = 2048
"""Inputs of a reader up to which it is mended."""


@dataclass(eq=False)
class Moments:
    """Second moments of what readers read, as sums over rows.

    Attributes:
        products: By name of the reading parameter. Shape ``[C, C]``, float64.
    """

    products: dict[str, Tensor] = field(default_factory=dict)

    @contextmanager
    def taken(self, model: nn.Module, groups: CouplingGroups) -> Iterator[None]:
        """Add up what the forwards inside read."""
        parameters = dict(model.named_parameters())
        dims = {
            member.name: (member.dim,)
            for group in groups
            for member in group.members
            if _reads(member, parameters)
        }
        with ReadingMode(parameters, dims, self):
            yield

    def about_to_read(self, reads: tuple[Read, ...]) -> None:
        """Nothing: rows are looked at afterwards."""

    def has_called(self, *_: Any) -> None:
        """Nothing: other calls read no channels."""

    def has_read(self, reads: tuple[Read, ...]) -> None:
        """Add the rows of one call."""
        for read in reads:
            rows = None if read.block else _rows(read)
            if rows is None or rows.shape[1] > WIDEST:
                continue
            if len(rows) > ROWS:
                rows = rows[
                    torch.linspace(0, len(rows) - 1, ROWS, device="cpu").long().to(rows.device)
                ]
            rows = rows.detach().double()
            before = self.products.get(read.name)
            own = rows.T @ rows
            self.products[read.name] = own if before is None else before + own


@contextmanager
def silenced(
    parameters: Mapping[str, Tensor],
    group: CouplingGroup,
    channels: IntArray,
    moments: Moments | None = None,
) -> Iterator[None]:
    """Take some channels of a group out meanwhile, in memory of its own.

    Where a norm takes a statistic across the channels, what makes them stays: over all channels the
    statistic is nearer to that over those that stay than with zeros among them.

    Args:
        parameters: The model's, by name.
        group: The group.
        channels: Which of its channels. Shape ``[n]``.
        moments: Of what its readers read; with them these are mended.
    """
    before: dict[str, Tensor] = {}
    try:
        for member in group.members:
            parameter = parameters.get(member.name)
            if parameter is None or (group.crossed_by and member.produces and parameter.ndim > 1):
                continue
            before.setdefault(member.name, parameter.data)
            gone = torch.from_numpy(member.index[channels].reshape(-1)).to(parameter.device)
            products = moments.products.get(member.name) if moments else None
            data = parameter.data
            if products is not None and _reads(member, parameters):
                data = _mended(data, member.dim, gone, products)
            parameter.data = data.index_fill(member.dim, gone, 0)
        yield
    finally:
        for name, data in before.items():
            parameters[name].data = data


def _mended(weight: Tensor, dim: int, gone: Tensor, products: Tensor) -> Tensor:
    """Return the weight whose other inputs say what those that go said."""
    if weight.shape[dim] != len(products):
        return weight
    stays = torch.ones(len(products), dtype=torch.bool, device=weight.device)
    stays[gone] = False
    kept = stays.nonzero().flatten()
    if not len(kept):
        return weight
    own = products[kept][:, kept]
    ridge = RIDGE * own.diagonal().mean()
    if not bool(ridge > 0):
        return weight
    factor, failed = torch.linalg.cholesky_ex(
        own + ridge * torch.eye(len(kept), device="cpu").to(own)
    )
    if bool(failed):
        return weight
    said = torch.cholesky_solve(products[kept][:, gone], factor)  # [kept, gone]
    moved = weight.movedim(dim, -1).double()
    change = torch.zeros_like(moved)
    change[..., kept] = moved[..., gone] @ said.T
    return (moved + change).movedim(-1, dim).to(weight.dtype).contiguous()


def _reads(member: TensorSlice, parameters: Mapping[str, Tensor]) -> bool:
    return not member.produces and member.name in parameters and parameters[member.name].ndim > 1


def _rows(read: Read) -> Tensor | None:
    """Return what a call reads as rows of channels; ``None`` where it reads them in blocks."""
    geometry = read.geometry
    if isinstance(geometry, ProductGeometry):
        return read.x.reshape(-1, read.x.shape[-1])
    if isinstance(geometry, ConvGeometry | TransposedGeometry) and geometry.groups == 1:
        rank = len(geometry.kernel)
        return read.x.movedim(-rank - 1, -1).reshape(-1, read.x.shape[-rank - 1])
    return None
