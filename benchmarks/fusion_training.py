"""Train the camera-LiDAR net by its recipe; record what it reaches after how much processor time.

    python benchmarks/fusion_training.py
    python benchmarks/fusion_training.py --weights FILE    # keep the net as well

On unseen scenes, in good weather and with either sensor degraded. Goes on with a run that was
stopped. Processor time is that of all threads, measured over some steps; on another machine, or
beside other work, a step takes another time.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from protocol import record, show
from rich.console import Console

from taskprune.cost import measure_macs, measure_params
from taskprune.driving.fusion import (
    Degradation,
    judge,
    save_fusion_net,
    scene_batches,
    train_fusion_net,
)
from taskprune.driving.fusion.recipe import RECIPE

N_BATCHES = 20
"""Batches of eight validation scenes."""

N_TIMED = 10
"""Steps whose processor time is measured."""

WEATHER = {
    "good weather": Degradation(),
    "camera degraded": Degradation(camera=0.8),
    "LiDAR degraded": Degradation(lidar=0.8),
}


def headlines(figures: dict[str, dict[str, float]]) -> dict[str, float]:
    """Return the figures that tables show, in points."""
    flat = {**figures["detection"], **figures["drivable"]}
    return {name: round(100 * value, 2) for name, value in flat.items()}


def seconds_per_step() -> float:
    """Return the processor time of a step, the making of its scenes included."""
    train_fusion_net(steps=1)  # what only the first step does
    started = time.process_time()
    train_fusion_net(steps=N_TIMED)
    return (time.process_time() - started) / N_TIMED


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=RECIPE.steps)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", type=Path, help="file for the trained net")
    parser.add_argument("--out", type=Path, default=Path("runs/fusion_training"))
    args = parser.parse_args()
    net = train_fusion_net(
        seed=args.seed, steps=args.steps, out=args.out, resume=True, console=Console()
    )
    rows: list[dict[str, Any]] = []
    for name, degradation in WEATHER.items():
        batches = scene_batches("validation", N_BATCHES, degradation=degradation)
        rows.append({"weather": name, **headlines(judge(net, batches))})
    show("the trained net", rows)
    [example] = scene_batches("validation", 1, batch_size=1)
    seconds = seconds_per_step()
    content = {
        "recipe": asdict(replace(RECIPE, seed=args.seed, steps=args.steps)),
        "scenes": args.steps * RECIPE.batch_size,
        "cpu_seconds_per_step": round(seconds, 3),
        "cpu_minutes": round(seconds * args.steps / 60, 2),
        "n_validation": 8 * N_BATCHES,
        "params": measure_params(net),
        "macs": measure_macs(net, (example.images, example.points, example.projection)),
        "weather": rows,
    }
    path = record("fusion_training", content)
    if args.weights is not None:
        save_fusion_net(net, args.weights)
        card = {
            "net": "FusionNet, scale n",
            "data": "TwoSensorScenes, no scene twice",
            **json.loads(path.read_text(encoding="utf-8")),
        }
        text = json.dumps(card, indent=1)
        args.weights.with_suffix(".json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
