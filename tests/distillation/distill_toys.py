"""Small two-task nets and data for the distillation tests."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from taskprune.calling.task import Task
from taskprune.distillation import StepRecord
from taskprune.distillation.history import Callback

Batch = tuple[Tensor, Tensor | None, Tensor | None]


class Interrupted(BaseException):
    """Stands for Ctrl-C."""


def interrupt_at(step: int) -> Callback:
    def callback(record: StepRecord, student: nn.Module) -> None:
        if record.step == step:
            raise Interrupted

    return callback


class TwoTaskNet(nn.Module):
    """A shared backbone with two resolutions and two heads; dropout and batch norm on request."""

    def __init__(self, width: int = 6, *, norm: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh())
        self.stage = nn.Sequential(
            nn.Conv2d(4, width, 3, stride=2, padding=1),
            nn.BatchNorm2d(width) if norm else nn.Identity(),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
        )
        self.near = nn.Sequential(nn.Conv2d(width, 3, 1), nn.ReLU(), nn.Conv2d(3, 1, 1))
        self.far = nn.Conv2d(width, 1, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.stage(self.stem(images))
        return {"near": self.near(features), "far": self.far(features)}


def randomise(model: nn.Module, seed: int) -> nn.Module:
    """Give parameters and norm statistics values that hide no mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in model.named_buffers():
            if buffer.is_floating_point():
                noise = torch.randn(buffer.shape, generator=generator)
                buffer.copy_(noise.abs() + 0.5 if name.endswith("var") else noise)
    return model


def make_net(seed: int, width: int = 6, *, norm: bool = False, dropout: float = 0.0) -> TwoTaskNet:
    net = TwoTaskNet(width, norm=norm, dropout=dropout)
    randomise(net, seed)
    return net


def sliced(teacher: TwoTaskNet, keep: Sequence[int]) -> TwoTaskNet:
    """Return a student with the teacher's channels ``keep`` at the end of the backbone."""
    student = TwoTaskNet(len(keep))
    index = torch.tensor(keep)
    tensors = copy.deepcopy(teacher.state_dict())
    for name in ("stage.0.weight", "stage.0.bias"):
        tensors[name] = tensors[name][index]
    for name in ("near.0.weight", "far.weight"):
        tensors[name] = tensors[name][:, index]
    student.load_state_dict(tensors)
    return student


def near_loss(outputs: Any, batch: Batch) -> Tensor | None:
    return None if batch[1] is None else (outputs["near"] - batch[1]).square().mean()


def far_loss(outputs: Any, batch: Batch) -> Tensor | None:
    return None if batch[2] is None else (outputs["far"] - batch[2]).abs().mean()


def make_tasks() -> dict[str, Task]:
    return {"near": Task(near_loss), "far": Task(far_loss, weight=0.5)}


class MinusLoss:
    """Minus the loss of a task: higher is better."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def reset(self) -> None:
        self.values: list[float] = []

    def update(self, outputs: Any, batch: Any, /) -> None:
        loss = self.task.loss(outputs, batch)
        assert loss is not None
        self.values.append(-float(loss))

    def compute(self) -> float:
        return sum(self.values) / len(self.values)


def watched() -> dict[str, Task]:
    """Return the tasks with a metric each."""
    return {
        name: Task(task.loss, weight=task.weight, metric=MinusLoss(task))
        for name, task in make_tasks().items()
    }


class Scenes(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Random images, augmented with the global generator like many data sets."""

    def __init__(self, n: int, *, augment: bool = True) -> None:
        generator = torch.Generator().manual_seed(11)
        self.images = torch.randn(n, 3, 8, 8, generator=generator)
        self.near = torch.randn(n, 1, 4, 4, generator=generator)
        self.far = torch.randn(n, 1, 4, 4, generator=generator)
        self.augment = augment

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        noise = 0.1 * torch.randn(3, 8, 8) if self.augment else 0.0
        return self.images[index] + noise, self.near[index], self.far[index]


def make_loader(n: int = 10, batch_size: int = 2, *, augment: bool = True) -> DataLoader[Any]:
    return DataLoader(Scenes(n, augment=augment), batch_size=batch_size, shuffle=True)


def make_batches(n: int = 4, batch_size: int = 2) -> list[Batch]:
    scenes = Scenes(n * batch_size, augment=False)
    cut = [slice(i * batch_size, (i + 1) * batch_size) for i in range(n)]
    return [(scenes.images[s], scenes.near[s], scenes.far[s]) for s in cut]


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_state(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(tensor, second[name]) for name, tensor in first.items()
    )


def n_hooks(model: nn.Module) -> int:
    """Return how many forward hooks there are."""
    return sum(len(module._forward_hooks) for module in model.modules())
