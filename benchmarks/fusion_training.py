"""Train the camera-LiDAR net by its recipe; record what it reaches after how much processor time.

    python benchmarks/fusion_training.py
    python benchmarks/fusion_training.py --weights FILE    # keep the net as well

On unseen scenes, in good weather and with either sensor degraded. Processor time is that of all
threads; on another machine, or beside other work, a step takes another time.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from protocol import record, show
from rich.console import Console
from torch import nn

from taskprune.cost import measure_macs, measure_params
from taskprune.driving.fusion import (
    Degradation,
    FusionBatch,
    fusion_kind,
    judge,
    save_fusion_net,
    scene_batches,
    train_fusion_net,
)
from taskprune.driving.fusion.recipe import GRID, RECIPE

N_BATCHES = 20
"""Batches of eight validation scenes."""

WEATHER = {
    "good weather": Degradation(),
    "camera degraded": Degradation(camera=0.8),
    "LiDAR degraded": Degradation(lidar=0.8),
}


class Stopwatch:
    """Judges the net on the way and leaves the time that takes out."""

    def __init__(self) -> None:
        self.started = time.process_time()
        self.rows: list[dict[str, float]] = []

    def __call__(
        self, net: nn.Module, batches: Iterable[FusionBatch]
    ) -> dict[str, dict[str, float]]:
        minutes = (time.process_time() - self.started) / 60
        before = time.process_time()
        figures = judge(net, batches)
        self.rows.append({"CPU minutes": minutes, **headlines(figures)})
        self.started += time.process_time() - before
        return figures


def headlines(figures: dict[str, dict[str, float]]) -> dict[str, float]:
    """Return the figures that tables show, in points."""
    flat = {**figures["detection"], **figures["drivable"]}
    return {name: round(100 * value, 2) for name, value in flat.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=RECIPE.steps)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", type=Path, help="file for the trained net")
    parser.add_argument("--out", type=Path, default=Path("runs/fusion_training"))
    args = parser.parse_args()
    validation = scene_batches("validation", N_BATCHES)
    watch = Stopwatch()
    net = train_fusion_net(
        seed=args.seed,
        steps=args.steps,
        out=args.out,
        kind=replace(fusion_kind(GRID), evaluate=watch),
        validation=validation,
        console=Console(),
    )
    rows: list[dict[str, Any]] = []
    for name, degradation in WEATHER.items():
        batches = scene_batches("validation", N_BATCHES, degradation=degradation)
        rows.append({"weather": name, **headlines(judge(net, batches))})
    show("on the way", watch.rows)
    show("the trained net", rows)
    example = validation[0]
    one = (example.images[:1], example.points[:1], example.projection[:1])
    content = {
        "recipe": asdict(replace(RECIPE, seed=args.seed, steps=args.steps)),
        "frames": args.steps * RECIPE.batch_size,
        "validation": f"{8 * N_BATCHES} unseen scenes",
        "params": measure_params(net),
        "macs": measure_macs(net, one),
        "on_the_way": watch.rows,
        "weather": rows,
    }
    record("fusion_training", content)
    if args.weights is not None:
        save_fusion_net(net, args.weights)
        card = {"net": "FusionNet, scale n", "data": "TwoSensorScenes, no scene twice", **content}
        text = json.dumps({**card, "torch": torch.__version__}, indent=2)
        args.weights.with_suffix(".json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
