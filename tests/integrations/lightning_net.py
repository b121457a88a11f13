"""A module as people write it for Lightning, and the same with checkpoints that hold its plan."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from architectures.torchvision_import import import_torchvision
from torch import Tensor, nn
from torch.nn import functional as F

if importlib.util.find_spec("torchvision"):
    import_torchvision()  # which Lightning's metrics import as well, as it is

from taskprune.integrations.lightning import Prunable, pl

__all__ = ["Net", "Whole", "pl"]


class Whole(pl.LightningModule):  # type: ignore[misc]
    """A module that nobody prepared."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.first = nn.Linear(6, width)
        self.last = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu())  # type: ignore[no-any-return]

    def training_step(self, batch: Any, _: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]


class Net(Prunable, Whole):
    """The same, prepared."""
