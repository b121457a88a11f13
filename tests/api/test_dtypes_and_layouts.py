"""Parameters as people have them: half, mixed, channels last, transposed, frozen, shared."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from front_nets import Plain, images, two_task_net
from torch import Tensor, nn

import taskprune


def pruned(net: nn.Module, inputs: Any = None, ratio: float = 0.3) -> taskprune.PruneResult:
    result = taskprune.prune(
        net,
        None,
        ratio,
        example_inputs=images(2) if inputs is None else inputs,
        importance="magnitude",
    )
    assert result.report.removed("params") >= ratio
    assert result.report.verification is not None
    return result


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_the_dtype_stays_and_the_result_is_exact(dtype: torch.dtype) -> None:
    result = pruned(two_task_net().to(dtype), images(2).to(dtype))
    assert {p.dtype for p in result.model.parameters()} == {dtype}
    assert result.report.verification is not None
    assert result.report.verification.dtype == "float64"
    assert result.report.verification.max_relative_error <= 1e-9


class Mixed(nn.Module):
    """A body in half precision between parts in single, with casts written out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Conv2d(3, 16, 3), nn.Conv2d(24, 2, 1)
        self.b = nn.Conv2d(16, 24, 1).to(torch.bfloat16)

    def forward(self, x: Tensor) -> Any:
        return self.c(self.b(self.a(x).to(torch.bfloat16)).float())


def test_dtypes_may_differ_between_modules() -> None:
    result = pruned(Mixed())
    assert [p.dtype for p in result.model.parameters()] == [p.dtype for p in Mixed().parameters()]


def test_channels_last_stays() -> None:
    net = two_task_net()
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    result = pruned(net, images(2).to(memory_format=torch.channels_last))
    weights = [p for p in result.model.parameters() if p.ndim == 4 and p.shape[2] > 1]
    assert weights
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)


def test_parameters_need_not_be_contiguous() -> None:
    net = Plain()
    head: Any = net.layers[9]
    head.weight = nn.Parameter(torch.randn(16, 5).t())
    assert not head.weight.is_contiguous()
    result = pruned(net)
    assert result.model(images(2)).shape == (2, 5)


def test_frozen_parameters_go_and_stay_frozen() -> None:
    net = two_task_net().requires_grad_(False)
    net.outer.requires_grad_(True)
    smaller = pruned(net).model
    flags = {name: p.requires_grad for name, p in smaller.named_parameters()}
    assert flags == {name: p.requires_grad for name, p in net.named_parameters()}
    assert smaller.get_parameter("inner.weight").shape[0] < net.inner.out_channels


@pytest.mark.parametrize("region", [torch.no_grad, torch.inference_mode], ids=lambda r: r.__name__)
def test_parts_of_a_forward_may_run_without_gradients(region: Any) -> None:
    class Region(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 1), nn.Conv2d(24, 2, 1)

        def forward(self, x: Tensor) -> Any:
            with region():
                x = self.b(self.a(x))
            return self.c(x.clone())

    result = pruned(Region())
    assert result.report.frozen
    assert not [line for line in result.report.frozen if line.kind == "unknown"]


def test_parameters_shared_by_modules_stay_shared() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 16)
            self.b.weight = self.a.weight
            self.head = nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Any:
            return self.head(self.b(self.a(self.first(x)).relu()).relu())

    smaller: Any = pruned(Shared(), torch.randn(2, 6)).model
    assert smaller.a.weight is smaller.b.weight
    assert smaller.a.weight.shape[0] < 16
    assert smaller.b.out_features == smaller.b.weight.shape[0]


def test_buffers_outside_of_the_state_dict_shrink_and_stay_outside() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 3)
            self.register_buffer("scale", torch.rand(16) + 0.5, persistent=False)

        def forward(self, x: Tensor) -> Any:
            return self.b(self.a(x) * self.scale)

    smaller: Any = pruned(Scaled(), torch.randn(2, 6)).model
    assert smaller.scale.shape == smaller.a.bias.shape
    assert "scale" not in smaller.state_dict()
