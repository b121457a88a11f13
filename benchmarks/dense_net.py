"""The second network of the benchmarks: a residual encoder, one decoder, three dense heads.

Unlike the bundled network it has no detector and no attention: drivable area, lane lines and a mask
of all objects, about 0.8 M parameters. It is trained here, on generated scenes or on a data set
in BDD100K's layout, and kept under ``runs/``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from taskprune import Task
from taskprune.driving.batch import DrivingBatch
from taskprune.driving.data import BDD100K, RoadScenes, loader, standard_augment
from taskprune.driving.data.sample import DrivingSample
from taskprune.driving.fusion.camera import CameraBranch
from taskprune.driving.losses import drivable_loss, lane_loss
from taskprune.driving.losses.masks import tversky_loss
from taskprune.driving.nets.conv import ConvUnit
from taskprune.restore import flushed_denormals, preserved_rng

SIZE = (160, 96)
TRAIN_STEPS = 400
BATCH_SIZE = 16
RUNS = Path("runs") / "benchmarks"


def head(width: int) -> nn.Sequential:
    return nn.Sequential(ConvUnit(width, 24, kernel=3, act="relu"), nn.Conv2d(24, 1, 1))


class DenseNet(nn.Module):
    """The camera branch of the fusion net with three heads: logits ``[B, H, W]`` of dense tasks."""

    def __init__(self) -> None:
        super().__init__()
        self.camera = CameraBranch((24, 40, 72, 128), depth=2, out=48)
        self.heads = nn.ModuleDict({name: head(48) for name in ("drivable", "lane", "objects")})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        shared = self.camera(images)
        size = images.shape[2:]
        return {
            name: F.interpolate(part(shared), size=size, mode="bilinear", align_corners=False)[:, 0]
            for name, part in self.heads.items()
        }


def object_mask(batch: DrivingBatch) -> Tensor | None:
    """Return 1 inside of boxes. Shape ``[B, H, W]``."""
    if batch.boxes is None:
        return None
    height, width = batch.images.shape[2:]
    mask = torch.zeros(len(batch), height, width, device=batch.images.device)
    for row, boxes in enumerate(batch.boxes):
        for cx, cy, w, h in boxes.tolist():
            left, right = math.floor((cx - w / 2) * width), math.ceil((cx + w / 2) * width)
            top, bottom = math.floor((cy - h / 2) * height), math.ceil((cy + h / 2) * height)
            mask[row, max(top, 0) : bottom, max(left, 0) : right] = 1
    return mask


def objects_loss(outputs: Mapping[str, Any], batch: DrivingBatch) -> Tensor | None:
    mask = object_mask(batch)
    if mask is None:
        return None
    logits = outputs["objects"]
    entropy = F.binary_cross_entropy_with_logits(logits, mask)
    return 8 * entropy + 8 * tversky_loss(logits, mask)


class PooledIoU:
    """IoU of the foreground over all pixels of all images.

    Args:
        output: Name of the logits.
        threshold: Probability from which a pixel counts as foreground.
    """

    def __init__(self, output: str, threshold: float = 0.5) -> None:
        self.output, self.threshold = output, threshold
        self.reset()

    def reset(self) -> None:
        self.hit = self.union = 0

    @torch.no_grad()
    def update(self, outputs: Mapping[str, Any], batch: DrivingBatch, /) -> None:
        mask = object_mask(batch) if self.output == "objects" else getattr(batch, self.output)
        if mask is None:
            return
        found, truth = outputs[self.output].sigmoid() >= self.threshold, mask > 0.5
        self.hit += int((found & truth).sum())
        self.union += int((found | truth).sum())

    def compute(self) -> float:
        return self.hit / max(1, self.union)


def dense_tasks() -> dict[str, Task]:
    return {
        "drivable": Task(drivable_loss, outputs="drivable", metric=PooledIoU("drivable")),
        "lane": Task(lane_loss, outputs="lane", metric=PooledIoU("lane", 0.8)),
        "objects": Task(objects_loss, outputs="objects", metric=PooledIoU("objects")),
    }


def scenes(n: int, *, seed: int, data: Path | None, split: str) -> Dataset[DrivingSample]:
    """Return fresh generated scenes, or the images of a data set."""
    if data is None:
        return RoadScenes(n, seed=seed, size=SIZE)
    return BDD100K(data, split, size=SIZE)


def trained(seed: int, *, data: Path | None = None, steps: int = TRAIN_STEPS) -> DenseNet:
    """Return the net trained from this seed; the second time it is read from ``runs/``."""
    source = "scenes" if data is None else data.name
    path = RUNS / f"dense_camera_{source}_{seed}_{steps}.safetensors"
    with preserved_rng():
        torch.manual_seed(seed)
        net = DenseNet()
    if path.exists():
        net.load_state_dict(load_file(path))
        return net.eval()
    fit(net, seed, data=data, steps=steps)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(net.state_dict(), path)
    return net.eval()


def fit(net: nn.Module, seed: int, *, data: Path | None, steps: int) -> None:
    """Train on the plain sum of the tasks' losses: AdamW, warm-up and cosine."""
    batches = loader(
        scenes(steps * BATCH_SIZE, seed=10_000 + seed, data=data, split="train"),
        batch_size=BATCH_SIZE,
        shuffle=True,
        seed=seed,
        augment=standard_augment(),
    )
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=1e-4)
    net.train()
    with flushed_denormals():
        step = 0
        progress = track(range(steps), description="training the dense net")
        epochs = iter(progress)
        while step < steps:
            for batch in batches:
                if next(epochs, None) is None:
                    break
                rate = 2e-3 * min(1, (step + 1) / 50) * (1 + math.cos(math.pi * step / steps)) / 2
                for group in optimizer.param_groups:
                    group["lr"] = rate
                outputs = net(batch.images)
                losses = [task.loss(outputs, batch) for task in dense_tasks().values()]
                optimizer.zero_grad()
                total = torch.stack([loss for loss in losses if loss is not None]).sum()
                torch.autograd.backward(total)
                torch.nn.utils.clip_grad_norm_(net.parameters(), 10.0)
                optimizer.step()
                step += 1


if __name__ == "__main__":
    trained(0)
