"""Predicted peak memory of activations equals that of the tensors that were alive."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from taskprune.cost import ActivationMemory
from taskprune.coupling import couple
from taskprune.graph import trace
from taskprune.importance import importance_by_name, score
from taskprune.plan.plan import build_plan
from taskprune.rewrite import apply_plan
from taskprune.solver import solve
from taskprune.solver.budget import Budget
from taskprune.testing import random_drop


class LiveBytes(TorchDispatchMode):
    """Adds up the memory of all tensors that operators made and nobody has let go of."""

    def __init__(self, given: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.given = {tensor.untyped_storage()._cdata for tensor in given}
        self.bytes: dict[int, int] = {}
        self.holders: dict[int, set[int]] = {}
        self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                memory = tensor.untyped_storage()
                if memory._cdata not in self.given:
                    self.bytes[memory._cdata] = memory.nbytes()
                    self.holders.setdefault(memory._cdata, set()).add(id(tensor))
                    weakref.finalize(tensor, self.release, memory._cdata, id(tensor))
        self.peak = max(self.peak, sum(self.bytes[m] for m, held in self.holders.items() if held))
        return result

    def release(self, memory: int, holder: int) -> None:
        self.holders[memory].discard(holder)


def measured_peak(model: nn.Module, inputs: Tensor) -> int:
    tracker = LiveBytes([*model.parameters(), *model.buffers(), inputs])
    with torch.no_grad(), tracker:
        model(inputs)
    return tracker.peak


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(width, 2 * width, 3, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(inplace=True),
            nn.Conv2d(2 * width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.inner(x)
        return result


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.left, self.right = nn.Conv2d(6, 4, 1), nn.Conv2d(6, 10, 3, padding=1)
        self.head = nn.Linear(14 * 36, 5)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(torch.cat(self.parts(self.stem(x)), 1).flatten(1))
        return result

    def parts(self, x: Tensor) -> list[Tensor]:
        return [self.left(x), self.right(x)]


NETS: dict[str, Callable[[], nn.Module]] = {
    "chain": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, groups=4)
    ),
    "views": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 9), nn.Linear(9, 2)
    ),
    "residual": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), Residual(8), nn.AvgPool2d(2), Residual(8), nn.Conv2d(8, 2, 1)
    ),
    "branches": Branches,
    "norms": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(1, 8), nn.GELU(), nn.Conv2d(8, 4, 1)
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", NETS)
def test_predicted_peak_equals_the_measured_one_before_and_after_pruning(
    name: str, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    model = NETS[name]().to(dtype).eval()
    inputs = torch.randn(2, 3, 8, 8, dtype=dtype)
    groups = couple(trace(model, inputs))
    cost = ActivationMemory(groups)
    assert cost.value() == measured_peak(model, inputs)
    for seed, ratio in enumerate((0.2, 0.5, 0.9)):
        plan = build_plan(groups, random_drop(groups, ratio, seed=seed))
        smaller = apply_plan(model, plan)
        assert cost.value(plan.kept) == measured_peak(smaller, inputs)


@pytest.mark.parametrize("bound", [0.8, 0.5])
def test_a_bound_on_the_peak_is_met_and_not_by_much(bound: float) -> None:
    torch.manual_seed(0)
    model = NETS["residual"]().eval()
    inputs = torch.randn(1, 3, 8, 8)
    groups = couple(trace(model, inputs))
    scores = score(model, groups, {}, (), importance=importance_by_name("magnitude"))
    plan = solve(groups, scores, Budget(activation_memory=bound))
    before, after = plan.costs["activation_memory"]
    assert before == measured_peak(model, inputs)
    assert after == measured_peak(apply_plan(model, plan), inputs)
    assert (bound - 0.15) * before <= after <= bound * before
