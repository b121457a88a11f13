"""Operators of which each has a rule, in nets of all kinds; one without a rule is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import (
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
    pad_sequence,
    unpack_sequence,
)

import taskprune
from taskprune.coupling import couple
from taskprune.errors import InfeasibleBudgetError
from taskprune.graph import trace
from taskprune.testing import assert_rule_is_exact

MAP, VOLUME, SIGNAL, TOKENS = (2, 6, 8, 8), (2, 6, 4, 4, 4), (2, 6, 8), (2, 4, 6)

ON_MAPS: dict[str, Callable[[Any], Tensor]] = {
    "rfft2": lambda x: torch.fft.irfft2(torch.fft.rfft2(x, norm="ortho"), s=x.shape[-2:]),
    "fftn": lambda x: torch.fft.fftshift(torch.fft.fftn(x, dim=(2, 3)), dim=(2, 3)).abs(),
    "rfft padded": lambda x: torch.fft.rfft(x, dim=-1, n=10).imag,
    "hfft": lambda x: torch.fft.ihfft(torch.fft.hfft(x)).real,
    "angle": lambda x: torch.fft.rfft2(x).angle(),
    "conjugate": lambda x: (torch.fft.rfft2(x).conj() * torch.fft.fft2(x)[..., :5]).imag,
    "complex": lambda x: torch.view_as_real(torch.complex(x, x.tanh()) * (1 + 2j))[..., 1],
    "pairs": lambda x: torch.view_as_real(
        torch.view_as_complex(x.contiguous().unflatten(3, (-1, 2))) * (1 + 2j)
    ).flatten(3),
    "layers of shapes": nn.Sequential(nn.Unflatten(-1, (4, -1)), nn.Flatten(-2), nn.Flatten(2)),
    "layers of channels": nn.Sequential(nn.Unflatten(1, (2, 3)), nn.Flatten(1, 2)),
    "unpool": lambda x: nn.MaxUnpool2d(2)(*F.max_pool2d(x, 2, return_indices=True)),
    "unpool to size": lambda x: nn.MaxUnpool2d(2)(
        *F.max_pool2d(x, 2, return_indices=True), output_size=x.size()
    ),
    "circular padding": lambda x: F.pad(x, (1, 1, 2, 0), mode="circular"),
    "normalize": lambda x: F.normalize(x, dim=1),
    "normalize all": lambda x: F.normalize(x.flatten(1), dim=1).view_as(x),
    "windows": lambda x: x.unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2)),
    "affine grid": lambda x: F.grid_sample(
        x, F.affine_grid(torch.ones(2, 2, 3, dtype=x.dtype), x.shape, False), align_corners=False
    ),
    "looked up": lambda x: torch.linspace(0, 1, 8, dtype=x.dtype)[x.argmax(3)],
    "looked up twice": lambda x: torch.eye(8, dtype=x.dtype)[x.argmax(3), x.argmin(3)],
    "logsigmoid": F.logsigmoid,
    "threshold": lambda x: F.threshold(x, 0.1, 2.0),
    "hardtanh": lambda x: F.hardtanh(x, 0.5, 2.0),
    "both results": lambda x: x * torch.native_dropout(x, 0.0, True)[1],
}


@pytest.mark.parametrize("name", ON_MAPS)
def test_channels_of_maps_can_go(name: str) -> None:
    assert_rule_is_exact(ON_MAPS[name], [MAP])


@pytest.mark.parametrize("shape", [SIGNAL, MAP, VOLUME], ids=["1d", "2d", "3d"])
def test_what_is_unpooled_has_the_channels_of_its_indices(shape: tuple[int, ...]) -> None:
    rank = len(shape) - 2
    pool, unpool = getattr(F, f"max_pool{rank}d"), getattr(F, f"max_unpool{rank}d")

    def both(x: Tensor, y: Tensor) -> Any:
        return unpool(pool(y, 2), pool(x, 2, return_indices=True)[1], 2)

    assert_rule_is_exact(both, [shape, shape])


def test_a_transform_along_channels_keeps_them() -> None:
    report = assert_rule_is_exact(lambda x: torch.fft.fft(x, dim=1).real, [MAP], may_freeze=True)
    reasons = {reason for check in report.checks for reason in check.reasons}
    assert "aten._fft_r2c.default: is Fourier-transformed as a whole" in reasons


class Bilinear(nn.Module):
    def __init__(self, *, bias: bool) -> None:
        super().__init__()
        self.layer = nn.Bilinear(6, 6, 5, bias=bias)

    def forward(self, x: Tensor) -> Any:
        return self.layer(x, x.tanh())


@pytest.mark.parametrize("bias", [True, False])
def test_both_inputs_and_the_output_of_a_bilinear_layer_can_go(bias: bool) -> None:
    assert_rule_is_exact(Bilinear(bias=bias), [TOKENS], channel_dim=2)
    x = torch.randn(3, 7)
    net = nn.Sequential(nn.Linear(7, 6), nn.ReLU(), Bilinear(bias=bias), nn.ReLU(), nn.Linear(5, 2))
    assert couple(trace(net, x))["2.layer"].n_channels == 5


LENGTHS = torch.tensor([3, 4])


def _packed(x: Tensor, *, first: bool) -> Any:
    return pack_padded_sequence(x, LENGTHS, batch_first=first, enforce_sorted=False)


ON_SEQUENCES: dict[str, Callable[[Tensor], Tensor]] = {
    "packed": lambda x: pad_packed_sequence(_packed(x, first=True), batch_first=True)[0],
    "time first": lambda x: pad_packed_sequence(_packed(x.movedim(0, 1), first=False))[0].movedim(
        0, 1
    ),
    "padded with ones": lambda x: pad_packed_sequence(
        _packed(x, first=True), batch_first=True, padding_value=1.0, total_length=5
    )[0],
    "of a list": lambda x: pad_packed_sequence(pack_sequence([x[0], x[1, :2]]), True)[0],
    "padded list": lambda x: pad_sequence([x[0], x[1, :2]], batch_first=True),
    "unpacked": lambda x: torch.stack(unpack_sequence(pack_sequence([x[0], x[1]]))),
}


@pytest.mark.parametrize("name", ON_SEQUENCES)
def test_features_of_packed_sequences_can_go(name: str) -> None:
    assert_rule_is_exact(ON_SEQUENCES[name], [TOKENS], channel_dim=2)


class Recurrent(nn.Module):
    def __init__(self, kind: Any, **options: Any) -> None:
        super().__init__()
        self.layer = kind(6, 5, 2, batch_first=True, **options)

    def forward(self, x: Tensor) -> Any:
        return pad_packed_sequence(self.layer(_packed(x, first=True))[0], batch_first=True)[0]


@pytest.mark.parametrize(
    ("kind", "options"),
    [(nn.LSTM, {"bidirectional": True}), (nn.LSTM, {"proj_size": 3}), (nn.GRU, {}), (nn.RNN, {})],
    ids=["both ways", "projected", "gru", "plain"],
)
def test_recurrent_layers_take_packed_sequences(kind: Any, options: Any) -> None:
    report = assert_rule_is_exact(Recurrent(kind, **options), [TOKENS], channel_dim=2)
    assert all(check.n_channels == 6 for check in report.checks)


def without_gradients(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Torch refuses `out=` where a gradient is asked for."""
    return torch.no_grad()(function)


def _empty(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.empty(0, dtype=dtype)


WRITTEN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "like an input": lambda x, y: torch.add(x, y, out=torch.empty_like(x)),
    "made by size": lambda x, y: torch.mul(x, y, out=x.new_empty(x.shape)),
    "grown": lambda x, y: torch.mul(x, y, out=_empty()),
    "cat": lambda x, y: torch.cat([x, y], 1, out=_empty()),
    "input itself": lambda x, y: torch.tanh(x, out=x) * y,
    "over zeros": lambda x, y: torch.where(x > 0, x, y + 1, out=torch.zeros_like(x)),
    "sum": lambda x, y: torch.sum(x, 1, keepdim=True, out=_empty()) * y,
    "two results": lambda x, y: torch.max(x, 3, out=(_empty(), _empty(torch.int64)))[0] * y[..., 0],
    "part of another": lambda x, y: _side_by_side(x, y),
}


def _side_by_side(x: Tensor, y: Tensor) -> Tensor:
    both = x.new_empty(x.shape[0], x.shape[1] + y.shape[1], *x.shape[2:])
    torch.mul(x, 2, out=both[:, : x.shape[1]])
    torch.add(y, 1, out=both[:, x.shape[1] :])
    return both


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_to_out_has_the_channels_of_what_is_returned(name: str) -> None:
    assert_rule_is_exact(without_gradients(WRITTEN[name]), [MAP, MAP])


class PassesUnknown(nn.Module):
    """Two layers meet, one of them behind an operator without a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Any:
        return self.head(torch.special.bessel_j1(self.a(x)) + self.b(x))


def test_the_operator_without_a_rule_is_named_also_for_what_meets_its_result() -> None:
    x = torch.randn(2, 3, 8, 8)
    frozen = {g.name: g.reasons[0] for g in couple(trace(PassesUnknown(), x)).frozen}
    for name in ("a", "b"):
        assert frozen[name].kind == "unknown"
        assert "aten.special_bessel_j1.default" in frozen[name].detail
    with pytest.raises(InfeasibleBudgetError, match=r"aten\.special_bessel_j1\.default"):
        taskprune.prune(PassesUnknown(), None, 0.3, example_inputs=x, importance="magnitude")


class AsksForEntries(nn.Module):
    """Code that looks whether there is anything to do, as detection heads and observers do."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 5, 1), nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        if x.numel() > 0 and self.b.weight.numel() != 0:
            x = self.b(x)
        return self.head(x)


def test_that_a_tensor_has_entries_holds_whatever_goes() -> None:
    groups = couple(trace(AsksForEntries(), torch.randn(2, 3, 4, 4)))
    assert {group.name: group.n_channels for group in groups} == {"a": 6, "b": 5}
