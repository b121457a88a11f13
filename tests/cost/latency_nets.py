"""Small nets with layers of all kinds, and a timer that only calculates."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor, nn

from taskprune.cost.operator_call import OperatorCall, TensorSpec


class Merged(nn.Module):
    """Two branches side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3)
        self.left, self.right = nn.Conv2d(16, 8, 1), nn.Conv2d(16, 24, 1)
        self.out = nn.Conv2d(32, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        result: Tensor = self.out(torch.cat([self.left(x), self.right(x)], 1))
        return result


NETS: dict[str, Callable[[], nn.Module]] = {
    "chain": lambda: nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.Flatten(),
        nn.Linear(512, 8), nn.GELU(), nn.Linear(8, 3),
    ),
    "depthwise": lambda: nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, groups=16), nn.SiLU(), nn.Conv2d(16, 8, 1),
        nn.ConvTranspose2d(8, 8, 2, stride=2, groups=8), nn.Conv2d(8, 2, 1),
    ),
    "norms": lambda: nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.GroupNorm(1, 16), nn.Conv2d(16, 32, 3, groups=4), nn.Flatten(2),
        nn.Linear(16, 8), nn.LayerNorm(8), nn.Linear(8, 3),
    ),
    "merged": Merged,
}  # fmt: skip
INPUTS = torch.zeros(2, 3, 8, 8)


def multiply_adds(call: OperatorCall) -> int:
    """Return a time in nanoseconds that is exactly proportional to the work of a layer."""
    if call.operator == "aten.convolution.default":
        return 100 * int(prod(call.arguments["weight"].shape))
    if call.operator == "aten.addmm.default":
        return 100 * int(prod(call.arguments["mat2"].shape))
    shapes = [v.shape for v in call.arguments.values() if isinstance(v, TensorSpec)]
    return sum(shape[1] for shape in shapes[:1] if len(shape) > 1)
