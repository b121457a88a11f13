"""Write and read the whole state of a training run in one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from taskprune.distillation import WeightAverage
from taskprune.driving.netfile import load_weights
from taskprune.driving.training.settings import TrainSettings
from taskprune.errors import CheckpointError, InputError
from taskprune.files import as_record, parse_json, read_sealed, write_sealed

FORMAT = "taskprune-driving-training-2"

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's tensors of a parameter, which are of its shape; its steps are one number."""


@dataclass(frozen=True)
class _Counters:
    """What is not a tensor, see :class:`Run`."""

    step: int
    elapsed_s: float
    settings: Mapping[str, Any]


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
    counters = _Counters(run.step, run.elapsed_s, asdict(run.settings))
    write_sealed(path, tensors, {"run": json.dumps(asdict(counters))}, file_format=FORMAT)


def load_run(run: Run, path: Path) -> None:
    """Put the saved state into `run`, which stays as it is where an error is raised.

    Raises:
        CheckpointError: The file is missing or damaged, or was written by a run with another net
            or recipe.
    """
    tensors, texts = read_sealed(path, file_format=FORMAT)
    try:
        counters = as_record(_Counters, parse_json(texts.get("run", "")), "the run")
    except InputError as error:
        raise CheckpointError(f"`{path}` is no training checkpoint: {error}") from error
    wanted = asdict(run.settings)
    changed = sorted(k for k in wanted if wanted[k] != counters.settings.get(k))
    if changed:
        found = {k: counters.settings.get(k) for k in changed}
        raise CheckpointError(
            f"A run can only be resumed with its own settings. `{path}` was written with {found}, "
            f"asked for { ({k: wanted[k] for k in changed}) }. Repeat the first command, or start "
            "anew in another folder."
        )
    _check_tensors(run, tensors, path)
    weights = {n.removeprefix("net."): t for n, t in tensors.items() if n.startswith("net.")}
    load_weights(run.net, weights, source=path)
    for name, average in run.average.tensors.items():
        average.copy_(tensors[f"average.{name}"])
    for name, parameter in run.net.named_parameters():
        if f"optimizer.step.{name}" not in tensors:
            continue
        state = {"step": tensors[f"optimizer.step.{name}"]}
        for key in MOMENTS:
            # In the parameter's own memory layout, as the optimizer would have made it.
            state[key] = torch.empty_like(parameter).copy_(tensors[f"optimizer.{key}.{name}"])
        run.optimizer.state[parameter] = state
    run.step, run.elapsed_s = counters.step, counters.elapsed_s


def _check_tensors(run: Run, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Check the average and the optimizer's state; the net's weights are checked as they load."""
    wanted = {f"average.{name}": value.shape for name, value in run.average.tensors.items()}
    for name, parameter in run.net.named_parameters():
        if f"optimizer.step.{name}" in tensors:
            wanted[f"optimizer.step.{name}"] = torch.Size()
            wanted |= {f"optimizer.{key}.{name}": parameter.shape for key in MOMENTS}
    found = {n: tensor.shape for n, tensor in tensors.items() if not n.startswith("net.")}
    if odd := sorted(n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n)):
        raise CheckpointError(
            f"`{path}` belongs to another net: {len(odd)} tensors are missing, unknown or of "
            f"another shape, such as `{odd[0]}`. Check scale and number of classes."
        )
