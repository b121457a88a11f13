"""Write and read the whole state of a training run in one safetensors file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer

from taskprune.distillation import WeightAverage
from taskprune.driving.netfile import load_weights, read_tensors, write_tensors
from taskprune.driving.training.settings import TrainSettings
from taskprune.errors import CheckpointError

FORMAT = "taskprune-driving-training-1"


@dataclass
class Run:
    """Everything that moves while training.

    Attributes:
        net: The net being trained.
        average: Its moving average.
        optimizer: AdamW over the net's parameters.
        settings: The recipe; does not move, but a checkpoint belongs to one.
        step: Steps done.
        elapsed_s: Seconds spent, over all resumed parts.
    """

    net: nn.Module
    average: WeightAverage
    optimizer: Optimizer
    settings: TrainSettings
    step: int = 0
    elapsed_s: float = 0.0


def save_run(run: Run, path: Path) -> None:
    """Write the run; a kill at any moment leaves a whole file."""
    tensors = {f"net.{name}": value for name, value in run.net.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in run.average.tensors.items()}
    for name, parameter in run.net.named_parameters():
        for key, value in run.optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = value
    counters = {
        "step": run.step,
        "elapsed_s": run.elapsed_s,
        "settings": asdict(run.settings),
    }
    write_tensors(path, tensors, metadata={"format": FORMAT, "run": json.dumps(counters)})


def load_run(run: Run, path: Path) -> None:
    """Put the saved state into `run`.

    Raises:
        CheckpointError: The file is missing or damaged, or was written by a run with another net
            or recipe.
    """
    tensors, metadata = read_tensors(path)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"`{path}` must be a training checkpoint of format {FORMAT}. "
            f"Found {metadata.get('format')!r}. Pass the file that `train` wrote, or start anew."
        )
    counters = json.loads(metadata["run"])
    wanted = asdict(run.settings)
    changed = sorted(k for k in wanted if wanted[k] != counters["settings"].get(k))
    if changed:
        found = {k: counters["settings"].get(k) for k in changed}
        raise CheckpointError(
            f"A run can only be resumed with its own settings. `{path}` was written with {found}, "
            f"asked for { ({k: wanted[k] for k in changed}) }. Repeat the first command, or start "
            "anew in another folder."
        )
    weights = {n.removeprefix("net."): t for n, t in tensors.items() if n.startswith("net.")}
    load_weights(run.net, weights, source=path)
    for name, average in run.average.tensors.items():
        average.copy_(tensors[f"average.{name}"])
    for name, parameter in run.net.named_parameters():
        if f"optimizer.step.{name}" not in tensors:
            continue
        state = {"step": tensors[f"optimizer.step.{name}"]}
        for key in ("exp_avg", "exp_avg_sq"):
            # In the parameter's own memory layout, as the optimizer would have made it.
            state[key] = torch.empty_like(parameter).copy_(tensors[f"optimizer.{key}.{name}"])
        run.optimizer.state[parameter] = state
    run.step, run.elapsed_s = counters["step"], counters["elapsed_s"]
