"""Small nets, data and comparisons for the tests of the front door."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from taskprune import PruneSettings, Task
from taskprune.testing import randomise_

Batch = tuple[Tensor, Tensor, Tensor]


class TwoTaskNet(nn.Module):
    """A residual trunk and two heads: a class for the image, a map of values."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.inner = nn.Conv2d(width, width + 8, 3, padding=1)
        self.outer = nn.Conv2d(width + 8, width, 3, padding=1)
        self.kind = nn.Sequential(nn.Linear(width, 20), nn.ReLU(), nn.Linear(20, 4))
        self.map = nn.Sequential(nn.Conv2d(width, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 1, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.outer(F.relu(self.inner(x))))
        return {"kind": self.kind(x.mean((2, 3))), "map": self.map(x)}


class Plain(nn.Module):
    """Convolutions and norms in a row, one output."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 40, 3, padding=1),
            nn.BatchNorm2d(40),
            nn.ReLU(),
            nn.Conv2d(40, 16, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, 5),
        )

    def forward(self, x: Tensor) -> Any:
        return self.layers(x)


class Dense(nn.Module):
    """Concatenations and a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 24, 3, padding=1)
        self.b = nn.Conv2d(24, 20, 3, padding=1)
        self.depth = nn.Conv2d(44, 44, 3, padding=1, groups=44)
        self.norm = nn.BatchNorm2d(44)
        self.mix = nn.Conv2d(44, 32, 1)
        self.head = nn.Conv2d(32, 2, 1)

    def forward(self, x: Tensor) -> Any:
        a = F.relu(self.a(x))
        x = torch.cat([a, F.relu(self.b(a))], 1)
        return self.head(F.relu(self.mix(self.norm(self.depth(x)))))


class TwoInputs(nn.Module):
    """Takes an image and, by name, a scale."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Plain()

    def forward(self, image: Tensor, scale: Tensor) -> Any:
        return self.body(image * scale)


def two_task_net(seed: int = 0, width: int = 24) -> TwoTaskNet:
    torch.manual_seed(seed)
    net = TwoTaskNet(width)
    randomise_(net, seed)
    return net


def images(n: int = 4, size: int = 8, seed: int = 1) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def batches(n: int = 3, *, seed: int = 1) -> list[Batch]:
    """Images with the labels that a simple rule gives them: brightest quarter, mean colour."""
    found = []
    for number in range(n):
        x = images(8, seed=100 * seed + number)
        quarters = F.avg_pool2d(x[:, :1], 4).flatten(1)
        found.append((x, quarters.argmax(1), x.mean(1, keepdim=True)))
    return found


def kind_loss(outputs: Any, batch: Batch) -> Tensor:
    return F.cross_entropy(outputs["kind"], batch[1])


def map_loss(outputs: Any, batch: Batch) -> Tensor:
    return F.mse_loss(outputs["map"], batch[2])


def two_tasks() -> dict[str, Task]:
    return {"kind": Task(kind_loss, outputs="kind"), "map": Task(map_loss, outputs="map")}


def worn(model: nn.Module) -> nn.Module:
    """Put a model in a state that is easy to spoil: mixed modes, gradients, hooks, attributes."""
    for number, (_, module) in enumerate(model.named_modules()):
        module.training = number % 2 == 0
        module.number = number
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number % 3 != 0)
        if number % 2:
            parameter.grad = torch.full_like(parameter, float(number))
    for module in model.children():
        module.register_forward_hook(_hook)
    return model


def _hook(module: nn.Module, inputs: Any, output: Any) -> None:
    """Does nothing, and must still be there."""


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def mean_losses(model: nn.Module, data: list[Batch]) -> Tensor:
    """Mean loss of each task on ``data``, in eval mode. Shape ``[2]``."""
    model.eval()
    with torch.no_grad():
        losses = [
            torch.stack([loss(model(batch[0]), batch) for batch in data]).mean()
            for loss in (kind_loss, map_loss)
        ]
    return torch.stack(losses)


def assert_trains(model: nn.Module) -> torch.optim.Optimizer:
    """Take one step and assert that every parameter received a gradient and moved."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    before = [p.detach().clone() for p in model.parameters()]
    assert_step(model, optimizer)
    assert all(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    return optimizer


def assert_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    batch = batches(1)[0]
    optimizer.zero_grad()
    outputs = model(batch[0])
    torch.autograd.backward(kind_loss(outputs, batch) + map_loss(outputs, batch))
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    optimizer.step()


def settled(keywords: dict[str, Any]) -> dict[str, Any]:
    """Gather those of ``prune``'s keywords that are fields of its settings."""
    names = {field.name for field in fields(PruneSettings)}
    settings = {name: value for name, value in keywords.items() if name in names}
    rest = {name: value for name, value in keywords.items() if name not in names}
    return {**rest, "settings": PruneSettings(**settings)} if settings else rest
