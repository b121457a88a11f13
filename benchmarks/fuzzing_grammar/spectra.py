"""Blocks of complex numbers and Fourier transforms."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fuzzing_grammar.parts import Draw, block, conv, norm, space


@block("map")
class Fourier(nn.Module):
    """Fast Fourier convolutions, filters in the frequency domain, spectral features."""

    def __init__(self, shape: torch.Size, draw: Draw) -> None:
        super().__init__()
        rank, width = len(shape) - 2, draw.width()
        self.how = draw.one("parts", "filter", "filter by channel", "amplitude", "whole")
        self.spread = nn.Sequential(conv(rank, shape[1], width), norm(draw, width, rank))
        self.mix = conv(rank, 2 * width, 2 * width, 1)
        self.scale = nn.Parameter(torch.ones(width, *([1] * rank), 2))
        self.single = nn.Parameter(torch.ones(*([1] * rank), 2))

    def forward(self, x: Tensor) -> Any:
        x = self.spread(x)
        dims, size = space(x), x.shape[2:]
        if self.how == "whole":
            return torch.fft.fftn(x, dim=dims).real
        spectrum = torch.fft.rfftn(x, dim=dims, norm="ortho")
        if self.how == "amplitude":
            y = spectrum.abs() + 0.1 * spectrum.real
            return F.interpolate(y, size=size)
        if self.how == "parts":
            y = F.relu(self.mix(torch.cat([spectrum.real, spectrum.imag], 1)))
            real, imaginary = y.chunk(2, 1)
            spectrum = torch.complex(real, imaginary)
        else:
            weight = self.single if self.how == "filter" else self.scale
            spectrum = spectrum * torch.view_as_complex(weight.contiguous())
        return torch.fft.irfftn(spectrum, s=size, dim=dims, norm="ortho")


@block("map")
class Complex(nn.Module):
    """Two maps as one of complex numbers: products, phases, pairs laid side by side."""

    def __init__(self, shape: torch.Size, draw: Draw) -> None:
        super().__init__()
        rank, width = len(shape) - 2, draw.width(2)
        self.how = draw.one("product", "polar", "pairs", "magnitude", "conjugate")
        self.a, self.b = conv(rank, shape[1], width), conv(rank, shape[1], width)

    def forward(self, x: Tensor) -> Any:
        a, b = self.a(x), self.b(x)
        if self.how == "pairs":
            pairs = torch.view_as_complex(torch.stack([a, b], -1))
            return torch.view_as_real(pairs * (0.6 + 0.8j)).movedim(-1, 1).flatten(1, 2)
        if self.how == "polar":
            return torch.polar(a.sigmoid(), b).real
        number = torch.complex(a, b)
        if self.how == "product":
            return torch.cat([(number * number).real, (number * number).imag], 1)
        if self.how == "conjugate":
            return (number * number.conj()).real
        return number.abs()
