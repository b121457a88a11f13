"""Scores of single generated scenes, by the bundled driving net and the points of its frontier."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from subjects import driving_n
from torch import Tensor, nn

from taskprune import load_checkpoint
from taskprune.driving.batch import DrivingBatch
from taskprune.driving.data import RoadScenes, loader
from taskprune.driving.metrics import DRIVABLE_THRESHOLD, LANE_THRESHOLD
from taskprune.restore import evaluating, flushed_denormals
from taskprune.rewrite.checkpoint import read_header

SEED = 7000
"""Of scenes that nothing was pruned, trained or judged on."""

TASKS = ("detection", "drivable", "lane")

CONFIDENT = 0.3
"""Score from which a detection counts."""


@torch.no_grad()
def driving_scores(model: nn.Module, batch: DrivingBatch) -> dict[str, Tensor]:
    """Return a score in 0..1 of every scene: IoU of both masks, and which part of boxes is found.

    Where no lane is there and none was found the IoU is 1; a scene without boxes is not labelled.
    """
    outputs = model(batch.images)
    assert batch.drivable is not None
    assert batch.lane is not None
    return {
        "detection": _found(outputs["detection"], batch),
        "drivable": _iou(outputs["drivable"], batch.drivable, DRIVABLE_THRESHOLD),
        "lane": _iou(outputs["lane"], batch.lane, LANE_THRESHOLD),
    }


def _iou(logits: Tensor, mask: Tensor, threshold: float) -> Tensor:
    found = (logits >= math.log(threshold / (1 - threshold))).flatten(1)
    truth = (mask > 0.5).flatten(1)
    both, either = (found & truth).sum(1).double(), (found | truth).sum(1).double()
    return torch.where(either > 0, both / either.clamp_min(1), 1.0)


def _found(detection: dict[str, Tensor], batch: DrivingBatch) -> Tensor:
    assert batch.boxes is not None
    assert batch.labels is not None
    parts = []
    for boxes, logits, truth, labels in zip(
        detection["boxes"], detection["logits"], batch.boxes, batch.labels, strict=True
    ):
        if not len(truth):
            parts.append(math.nan)
            continue
        sure = logits.sigmoid()[:, labels.long()] >= CONFIDENT  # [queries, boxes]
        near = _overlap(boxes, truth) >= 0.5
        parts.append(float((sure & near).any(0).double().mean()))
    return torch.tensor(parts, dtype=torch.float64)


def _overlap(first: Tensor, second: Tensor) -> Tensor:
    """Return the IoU of boxes (cx, cy, w, h). Shape ``[first, second]``."""
    low = [boxes[:, :2] - boxes[:, 2:] / 2 for boxes in (first, second)]
    high = [boxes[:, :2] + boxes[:, 2:] / 2 for boxes in (first, second)]
    inside = torch.minimum(high[0][:, None], high[1]) - torch.maximum(low[0][:, None], low[1])
    both = inside.clamp_min(0).prod(-1)
    areas = [boxes[:, 2:].prod(-1) for boxes in (first, second)]
    return both / (areas[0][:, None] + areas[1] - both)


def pool(n: int, folder: Path) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
    """Return each task's scores of `n` scenes, by the teacher and by every point in a folder.

    Scored once, and kept in the folder. The largest point comes first.
    """
    kept = folder / f"scores_{n}.npy"
    if not kept.exists():
        np.save(kept, _scored(n, folder))
    scores = np.load(kept)
    return {task: (own[0], own[1:]) for task, own in zip(TASKS, scores, strict=True)}


def _scored(n: int, folder: Path) -> NDArray[Any]:
    """Return scores of shape ``[tasks, models, n]``."""
    teacher = driving_n().teacher(0)
    macs = {path: read_header(path).plan.costs["macs"][1] for path in folder.glob("*.safetensors")}
    paths = sorted(macs, key=lambda path: -macs[path])
    models = [teacher, *(load_checkpoint(path, teacher) for path in paths)]
    found: dict[str, list[list[Tensor]]] = {}
    batches = loader(RoadScenes(n, seed=SEED), batch_size=8, shuffle=False, seed=0)
    with flushed_denormals():
        for batch in track(batches, "scoring scenes", total=-(-n // 8)):
            for number, model in enumerate(models):
                with evaluating(model):
                    scores = driving_scores(model, batch)
                for task, own in scores.items():
                    found.setdefault(task, [[] for _ in models])[number].append(own)
    by_task = [torch.stack([torch.cat(own) for own in found[task]]) for task in TASKS]
    return torch.stack(by_task).numpy()
