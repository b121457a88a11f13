"""Training goes on after a model was cut in place, whatever still holds its old graph."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn

import taskprune
from taskprune.errors import VerificationError
from taskprune.plan.plan import PruningPlan


def net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 4, 1)
    ).to(dtype)


def images(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(1)).to(dtype)


def plan(model: nn.Module, dtype: torch.dtype = torch.float32) -> PruningPlan:
    return taskprune.prune(
        model, None, 0.4, example_inputs=images(dtype), importance="magnitude"
    ).plan


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    model.zero_grad()
    model(x).square().mean().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_training_goes_on_beside_a_live_loss(dtype: torch.dtype) -> None:
    model, x = net(dtype), images(dtype)
    chosen = plan(model, dtype)
    copied = taskprune.apply_plan(model, chosen, verify=False)
    loss = model(x).square().mean()
    loss.backward()
    seen: list[torch.Size] = []
    weight = model.get_submodule("0").get_parameter("weight")
    weight.register_hook(  # type: ignore[no-untyped-call]
        lambda gradient: seen.append(gradient.shape)
    )
    taskprune.apply_plan(model, chosen, example_inputs=x, inplace=True)
    assert weight is model.get_submodule("0").get_parameter("weight")
    assert weight.dtype == dtype
    found, expected = gradients(model, x), gradients(copied.train(), x)
    assert seen == [weight.shape]
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_an_undone_cut_leaves_a_model_that_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = net(), images()
    chosen = plan(model)
    loss = model(x).square().mean()
    before = gradients(net(), x)

    def fails(*_: Any, **__: Any) -> None:
        raise VerificationError("on purpose")

    monkeypatch.setattr("taskprune.rewrite.apply.verify_against_masked", fails)
    with pytest.raises(VerificationError):
        taskprune.apply_plan(model, chosen, example_inputs=x, inplace=True)
    loss.backward()
    found = [parameter.grad for parameter in model.parameters()]
    for one, other in zip(found, before, strict=True):
        assert one is not None
        torch.testing.assert_close(one, other)


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        yield
    finally:
        distributed.destroy_process_group()


def test_a_wrapped_model_can_be_wrapped_again(process_group: None) -> None:
    model, x = net(), images()
    chosen = plan(model)
    wrapped = nn.parallel.DistributedDataParallel(model)
    loss = wrapped(x).square().mean()
    loss.backward()
    taskprune.apply_plan(wrapped, chosen, inplace=True, verify=False)
    again = nn.parallel.DistributedDataParallel(model)
    for one, other in zip(
        gradients(again, x), gradients(taskprune.apply_plan(net(), chosen), x), strict=True
    ):
        torch.testing.assert_close(one, other)
