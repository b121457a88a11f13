"""Nets with a reader of each kind, their tasks, and plans that drop a third of everything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from taskprune import Task
from taskprune.calling.forward import call_inputs
from taskprune.calling.outputs import flatten_outputs
from taskprune.coupling import couple
from taskprune.graph import trace
from taskprune.plan.plan import PruningPlan, build_plan


class TwoHeads(nn.Module):
    """Convolutions with norms, a shared trunk, two heads; one conv is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.trunk = nn.Conv2d(12, 9, 3, stride=2, padding=1)
        self.again = nn.Conv2d(9, 9, 1)
        self.grouped = nn.Conv2d(9, 6, 3, padding=1, groups=3)
        self.up = nn.ConvTranspose2d(6, 8, 2, stride=2)
        self.dense = nn.Conv2d(8, 1, 1)
        self.label = nn.Linear(9, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(self.trunk(x))
        x = x + F.relu(self.again(F.relu(self.again(x))))
        return {
            "dense": self.dense(F.relu(self.up(F.relu(self.grouped(x))))),
            "label": self.label(x.mean((2, 3))),
        }


class Tokens(nn.Module):
    """Attention, layer norms, a product with a bare parameter, a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 12)
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
        self.norm = nn.LayerNorm(12)
        self.expand = nn.Linear(12, 18)
        self.contract = nn.Parameter(0.2 * torch.randn(18, 12))
        self.state = nn.GRU(12, 7, batch_first=True)
        self.out = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = x + F.gelu(self.expand(self.norm(x))) @ self.contract
        made: Tensor = self.out(self.state(x)[0])
        return made


class Widths(nn.Module):
    """Attention twice, with a fixed number of heads: its widths go, of the second one packed."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.q, self.k, self.v, self.mix = (
            nn.Linear(5 if n == 0 else 12, 12) for n in range(5)
        )
        self.norm, self.qkv, self.out = nn.LayerNorm(12), nn.Linear(12, 36), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.embed(x))
        q, k, v = (
            layer(x).view(*x.shape[:2], 2, -1).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        y = F.scaled_dot_product_attention(q, k, v, scale=0.7)
        x = self.norm(x + self.mix(y.transpose(1, 2).flatten(2)))
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 2, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y = (q * 0.7 @ k.transpose(-2, -1)).softmax(-1) @ v
        made: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return made


class Chosen(nn.Module):
    """Behind the top-k rows of teacher and student are different tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 12)
        self.score = nn.Linear(12, 1)
        self.inner = nn.Linear(12, 15)
        self.out = nn.Linear(15, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.embed(x))
        best = self.score(x).topk(3, dim=1).indices
        x = x.gather(1, best.expand(-1, -1, x.shape[2]))
        made: Tensor = self.out(F.relu(self.inner(x)))
        return made


class Routed(nn.Module):
    """Each token goes to one expert, whose matrices and biases are picked out of stacks.

    None goes to the last.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.router, self.out = nn.Linear(5, 12), nn.Linear(12, 4), nn.Linear(12, 3)
        self.router.bias.data[3] = -100
        self.up = nn.Parameter(0.3 * torch.randn(4, 16, 12))
        self.up_bias = nn.Parameter(0.3 * torch.randn(4, 16))
        self.down = nn.Parameter(0.3 * torch.randn(4, 16, 12))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).relu()
        flat = x.flatten(0, 1)
        chosen = self.router(flat).argmax(-1)
        y = torch.zeros_like(flat)
        for expert in chosen.unique():
            token = torch.where(chosen == expert)[0]
            inner = F.linear(flat[token], self.up[expert], self.up_bias[expert]).relu()
            y = y.index_add(0, token, inner @ self.down[expert])
        made: Tensor = self.out(x + y.view_as(x))
        return made


class Picked(nn.Module):
    """Matrices are picked out of stacks in every way; what they make is weighed by a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.gate, self.out = nn.Linear(5, 12), nn.Linear(12, 3), nn.Linear(12, 3)
        self.up, self.turned = (nn.Parameter(0.3 * torch.randn(3, 16, 12)) for _ in range(2))
        self.up_bias = nn.Parameter(0.3 * torch.randn(3, 16))
        self.down = nn.Parameter(0.3 * torch.randn(3, 16, 12))
        self.deep = nn.Parameter(0.3 * torch.randn(2, 3, 12, 12))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).relu()
        gate = self.gate(x).softmax(-1)
        first, second, third = self.turned.unbind(0)
        y = F.linear(x, self.up[0], self.up_bias[0]), F.linear(x, self.up[-2], self.up_bias[1])
        made = [*y, F.linear(x, self.up.select(0, 2), self.up_bias[torch.tensor(2)])]
        ways = x @ first.mT, F.linear(x, second), x @ third.t()
        made = [(m + way).relu() for m, way in zip(made, ways, strict=False)]
        made = [m @ down for m, down in zip(made, self.down, strict=True)]
        made = [(F.linear(m, self.deep[0, n]) + x).relu() for n, m in enumerate(made)]
        made = [F.linear(m, self.deep[1][n, :]) * gate[..., n : n + 1] for n, m in enumerate(made)]
        result: Tensor = self.out(x + sum(made))
        return result


class ThereAndBack(nn.Module):
    """Two weights that are read along both of their dims: there, and transposed back."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 9, 1)
        self.code = nn.Conv2d(9, 12, 3, padding=1)
        self.up = nn.Linear(9, 15)
        self.out = nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.conv_transpose2d(F.relu(self.code(x)), self.code.weight, padding=1)
        x = (x + y).flatten(2).mT
        x = x + F.linear(F.relu(self.up(x)), self.up.weight.t())
        made: Tensor = self.out(x)
        return made


def images(n_batches: int = 4, size: int = 12, batch: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(batch, 3, size, size, generator=generator, dtype=torch.float64)
        for _ in range(n_batches)
    ]


def sequences(n_batches: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(4, 11, 5, generator=generator, dtype=torch.float64) for _ in range(n_batches)
    ]


def made(kind: Callable[[], nn.Module]) -> nn.Module:
    """Build a net in float64 with randomised norms, the same each time."""
    state = torch.get_rng_state()
    torch.manual_seed(0)
    net = kind().double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = 0.1 * torch.randn(module.num_features, dtype=torch.float64)
            module.running_var = 0.5 + torch.rand(module.num_features, dtype=torch.float64)
    torch.set_rng_state(state)
    return net.eval()


def third(model: nn.Module, example: Any, share: float = 0.34) -> PruningPlan:
    """Plan to drop the first channels of each group."""
    groups = couple(trace(model, example, forward=call_inputs))
    drop = {
        group.name: np.arange(max(1, int(share * group.n_channels)))
        for group in groups
        if group.n_channels > 1
    }
    return build_plan(groups, drop)


def tasks() -> dict[str, Task]:
    """Return tasks of :class:`TwoHeads`; their labels are made from the batch."""
    return {
        "dense": Task(
            lambda outputs, batch: F.binary_cross_entropy_with_logits(
                outputs["dense"], (batch.sum(1, keepdim=True) > 1).double()
            ),
            outputs="dense",
        ),
        "label": Task(
            lambda outputs, batch: F.cross_entropy(
                outputs["label"], batch.mean((1, 2, 3)).abs().mul(100).long() % 4
            ),
            outputs="label",
        ),
    }


SQUARE = Task(lambda outputs, _: (outputs - 1).square().mean())


def outputs_of(model: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        return flatten_outputs(model.eval()(inputs))


def distance(model: nn.Module, teacher: nn.Module, data: list[Tensor]) -> float:
    worst = 0.0
    for batch in data:
        wanted = outputs_of(teacher, batch)
        for name, found in outputs_of(model, batch).items():
            worst = max(worst, float((found - wanted[name]).abs().max()))
    return worst
