"""Networks in quantisation-aware training lose channels, and their ranges with them."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import taskprune
from taskprune.coupling import couple
from taskprune.graph import trace

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    quantization = pytest.importorskip("torch.ao.quantization")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


class Quantised(nn.Module):
    """Two convolutions with norms between stubs, ready to be fused."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = quantization.QuantStub(), quantization.DeQuantStub()
        self.c1, self.b1, self.r1 = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU()
        self.c2, self.b2, self.r2 = nn.Conv2d(12, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()
        self.head = nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.r1(self.b1(self.c1(self.quant(x))))
        return self.dequant(self.head(self.r2(self.b2(self.c2(x)))))


def image() -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def settings(name: str) -> Any:
    if name in ("x86", "qnnpack"):
        return quantization.get_default_qat_qconfig(name)
    fake = quantization.FakeQuantize
    return quantization.QConfig(
        activation=fake.with_args(
            observer=quantization.MovingAverageMinMaxObserver, quant_min=0, quant_max=255
        ),
        weight=fake.with_args(
            observer=quantization.MovingAveragePerChannelMinMaxObserver,
            quant_min=-128,
            quant_max=127,
            dtype=torch.qint8,
            qscheme=torch.per_channel_symmetric,
            ch_axis=0,
        ),
    )


def prepared(name: str, *, fused: bool, batches: int = 2) -> nn.Module:
    torch.manual_seed(0)
    model: Any = Quantised().train()
    if fused:
        model = quantization.fuse_modules_qat(model, [["c1", "b1", "r1"], ["c2", "b2", "r2"]])
    model.qconfig = settings(name)
    model = quantization.prepare_qat(model)
    for _ in range(batches):
        model(image())
    return model  # type: ignore[no-any-return]


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "apart"])
@pytest.mark.parametrize("name", ["x86", "qnnpack", "observers of their own"])
def test_channels_go_with_their_ranges(name: str, fused: bool) -> None:
    """Per channel, per tensor, and watched by observers that are modules."""
    model = prepared(name, fused=fused)
    groups = couple(trace(model, image()))
    assert sorted(group.n_channels for group in groups) == [12, 16]
    result = taskprune.prune(model, None, 0.4, example_inputs=image(), importance="magnitude")
    assert result.report.removed("params") > 0.38
    layer: Any = result.model.get_submodule("c1")
    rows = len(layer.weight)
    assert rows < 12
    assert len(layer.weight_fake_quant.scale) == (1 if name == "qnnpack" else rows)
    result.model.train()(image()).sum().backward()


@pytest.mark.parametrize("name", ["x86", "qnnpack"])
def test_ranges_that_nothing_has_filled_yet_are_left_to_the_first_batch(name: str) -> None:
    model = prepared(name, fused=True, batches=0)
    result = taskprune.prune(model, None, 0.4, example_inputs=image(), importance="magnitude")
    assert result.report.removed("params") > 0.38
    result.model.train()(image()).sum().backward()


def test_watching_leaves_no_trace_in_the_original() -> None:
    model = prepared("x86", fused=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    taskprune.prune(model, None, 0.3, example_inputs=image(), importance="magnitude")
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


class CountedChannels(nn.Module):
    """Integer buffers with an entry for each channel, one of them a table of positions as well."""

    shift: Tensor
    order: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(14, 2, 1)
        self.register_buffer("shift", torch.arange(6).view(1, 6, 1, 1))
        self.register_buffer("order", torch.arange(8).flip(0))

    def forward(self, x: Tensor) -> Any:
        a, b = self.a(x) * self.shift, self.b(x)
        b = b[:, self.order] + self.order[:, None, None]
        return self.head(torch.cat([a, b], 1))


def test_integers_of_which_there_is_one_a_channel_go_with_it_unless_they_are_positions() -> None:
    model = CountedChannels()
    groups = couple(trace(model, image()))
    assert {group.name: group.n_channels for group in groups} == {"a": 6}
    assert "shift" in {member.name for member in groups["a"].members}
    result = taskprune.prune(model, None, 0.1, example_inputs=image(), importance="magnitude")
    kept = result.plan.kept["a"]
    assert result.model.get_buffer("shift").shape == (1, kept, 1, 1)
    assert len(result.model.get_buffer("order")) == 8
