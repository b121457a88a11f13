"""Grouped convolution whose groups need not be equally large.

``torch.nn.Conv2d(groups=g)`` cuts its input into ``g`` equal parts by position. Where the input is
a concatenation whose bounds fall inside of a part, no choice but the full width keeps the parts
equal. Here every group has a weight of its own, and takes as many channels as that has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from taskprune.replace.parts import part_of

_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)

KINDS: tuple[type[nn.Module], ...] = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
"""The classes it stands in for; not their subclasses, which may compute something else."""


class UnequalGroupsConv(nn.Module):
    """The function of a grouped convolution, with groups of any widths.

    Made by :meth:`from_torch` and equal to the original to the bit. Neighbouring groups of equal
    widths run as one grouped convolution, so that it costs what the original costs as long as all
    are equal, and no multiply-add is ever spent on padding.

    Attributes:
        weights: One a group: ``[out, in, *kernel]``, transposed ``[in, out, *kernel]``.
        biases: One a group, or ``None``.
        transposed: Whether it is a transposed convolution.
        stride, padding, output_padding, dilation, padding_mode: As in the original.
    """

    biases: nn.ParameterList | None
    transposed: bool
    stride: tuple[int, ...]
    padding: Any
    output_padding: tuple[int, ...]
    dilation: tuple[int, ...]
    padding_mode: str
    _reversed_padding_repeated_twice: list[int]

    def __init__(
        self,
        weights: Sequence[nn.Parameter],
        biases: Sequence[nn.Parameter] | None,
        *,
        settings: dict[str, Any],
    ) -> None:
        super().__init__()
        # What the user attached to the original, hooks included, stays in reach.
        vars(self).update(settings)
        self.weights = nn.ParameterList(weights)
        self.biases = None if biases is None else nn.ParameterList(biases)

    @classmethod
    def from_torch(cls, module: _ConvNd) -> UnequalGroupsConv:
        """Return an equal module, whose weights lie in the memory of the original's.

        Training flag, hooks, attributes, dtype, device, ``requires_grad`` and gradients are kept.
        """
        own = {"_parameters", "_buffers", "_modules", "in_channels", "out_channels", "groups"}
        settings = {name: value for name, value in vars(module).items() if name not in own}

        def split(name: str, parameter: Tensor) -> list[nn.Parameter]:
            return [part_of(parameter, rows) for _, rows in cls.parts_of(name, module)]

        bias = module.bias
        return cls(
            split("weight", module.weight),
            None if bias is None else split("bias", bias),
            settings=settings,
        )

    @staticmethod
    def parts_of(name: str, module: _ConvNd) -> list[tuple[str, slice]]:
        """Return which parameters ``weight`` or ``bias`` becomes, and which rows each has."""
        parameter: Tensor = getattr(module, name)
        rows = parameter.shape[0] // module.groups
        kind = {"weight": "weights", "bias": "biases"}[name]
        return [(f"{kind}.{g}", slice(g * rows, (g + 1) * rows)) for g in range(module.groups)]

    @property
    def groups(self) -> int:
        """Number of groups."""
        return len(self.weights)

    @property
    def in_channels(self) -> int:
        """How many channels all groups take together."""
        return sum(weight.shape[0 if self.transposed else 1] for weight in self.weights)

    @property
    def out_channels(self) -> int:
        """How many channels all groups make together."""
        return sum(weight.shape[1 if self.transposed else 0] for weight in self.weights)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Convolve; arguments and results are those of the original.

        Args:
            x: ``[batch, in_channels, *space]``, or without the batch.
            output_size: Of a transposed convolution, as in torch.
        """
        rank = self.weights[0].dim() - 2
        channels = x.dim() - rank - 1
        more: dict[str, Any] = {}
        padding = self.padding
        if self.transposed:
            more["output_padding"] = self._output_padding(x, output_size)
        elif self.padding_mode != "zeros":
            x = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        convolve = (_TRANSPOSED if self.transposed else _CONVOLUTIONS)[rank - 1]
        sizes = self._sizes()
        runs = list(self._runs(sizes))
        reads = 0 if self.transposed else 1
        widths = [_sum([sizes[g][reads] for g in run]) for run in runs]
        parts = torch.split(x, widths, channels) if len(runs) > 1 else (x,)
        made = [
            convolve(
                part,
                _joined([self.weights[g] for g in run]),
                None if self.biases is None else _joined([self.biases[g] for g in run]),
                stride=self.stride,
                padding=padding,
                dilation=self.dilation,
                groups=len(run),
                **more,
            )
            for part, run in zip(parts, runs, strict=True)
        ]
        return _joined(made, channels)

    def extra_repr(self) -> str:
        """Show widths and settings."""
        return (
            f"{self.in_channels}, {self.out_channels}, groups={self.groups}, "
            f"stride={self.stride}, transposed={self.transposed}"
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take the original's ``weight`` and ``bias`` as well, row by row."""
        for name, parts in (("weight", self.weights), ("bias", self.biases)):
            whole = state_dict.get(f"{prefix}{name}")
            rows = [len(part) for part in parts or ()]
            if isinstance(whole, Tensor) and sum(rows) == len(whole):
                kind = {"weight": "weights", "bias": "biases"}[name]
                del state_dict[f"{prefix}{name}"]
                for g, part in enumerate(torch.split(whole, rows)):
                    state_dict[f"{prefix}{kind}.{g}"] = part
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _sizes(self) -> list[tuple[int, int]]:
        """Return the first two sizes of every weight."""
        sizes = [(weight.shape[0], weight.shape[1]) for weight in self.weights]
        if torch._C._get_tracing_state() is None:
            return sizes
        # An export keeps the sizes as they are.
        return [(int(a), int(b)) for a, b in sizes]

    @staticmethod
    def _runs(sizes: list[tuple[int, int]]) -> Iterator[list[int]]:
        """Yield neighbouring groups of equal widths.

        Sizes that taskprune traces are no plain integers, and may differ one day: each is on its
        own.
        """
        plain = all(type(n) is int for pair in sizes for n in pair)
        for _, run in groupby(range(len(sizes)), lambda g: sizes[g] if plain else g):
            yield list(run)

    def _output_padding(self, x: Tensor, output_size: list[int] | None) -> Any:
        if output_size is None:
            return self.output_padding
        kernel = self.weights[0].shape[2:]
        wanted = list(output_size)[-len(kernel) :]
        space = x.shape[-len(kernel) :]
        return [
            wanted[d]
            - ((space[d] - 1) * self.stride[d] - 2 * self.padding[d])
            - self.dilation[d] * (kernel[d] - 1)
            - 1
            for d in range(len(kernel))
        ]


def _joined(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim)


def _sum(sizes: Sequence[int]) -> int:
    # Starts from the first: `0 + size` would be a new expression under a trace.
    total = sizes[0]
    for size in sizes[1:]:
        total = total + size
    return total
