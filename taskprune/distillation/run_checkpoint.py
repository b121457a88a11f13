"""Save and load a training run: one safetensors file, replaced in one go.

Tensors are the student's parameters and buffers, the alignments' (adapters), AdamW's state, the
weight average and the best weights. What is not a tensor (step, position in the data, loss scale,
what the best weights were worth, what the run is) is JSON in the file's header, so there is no
second file that could be older or newer. Nothing is pickled. The learning rate is a function of the
step, and every generator is set from the seed and the position (``batches.py``), so neither has
state to save.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from taskprune.distillation.batches import Position
from taskprune.distillation.best_weights import BestWeights, Standing
from taskprune.distillation.kept_weights import WeightAverage
from taskprune.distillation.shards import part_for, whole
from taskprune.distillation.writing import replacing
from taskprune.errors import CheckpointError

FILE_NAME = "checkpoint.safetensors"
FORMAT = "taskprune.distillation/1"


@dataclass(frozen=True)
class RunParts:
    """The objects whose state makes up a run, alive.

    Attributes:
        model: The student with its alignments.
        optimizer: AdamW.
        scaler: Float16's loss scaling, if used.
        average: Of the student's weights, if there is one.
        best: The student's best weights, if they are kept.
    """

    model: nn.Module
    optimizer: Optimizer
    scaler: Any
    average: WeightAverage | None
    best: BestWeights | None

    def state(self, step: int, position: Position, identity: Mapping[str, Any]) -> RunState:
        """Return what is not a tensor."""
        scale = None if self.scaler is None else dict(self.scaler.state_dict())
        standing = None if self.best is None else self.best.standing
        return RunState(step, position, identity, scale, standing)


@dataclass(frozen=True)
class RunState:
    """What is not a tensor.

    Attributes:
        step: Optimizer steps done.
        position: The first batch not used yet.
        identity: What the run is; must be equal for it to go on.
        loss_scale: State of float16's loss scaling, if used.
        best: What the best weights were worth, if they are kept.
    """

    step: int
    position: Position
    identity: Mapping[str, Any]
    loss_scale: Mapping[str, Any] | None
    best: Standing | None


def save_run(path: Path, parts: RunParts, state: RunState, *, writes: bool = True) -> None:
    """Write the checkpoint; killed at any moment, the old or the new file is there, whole.

    Shards are gathered, so that the file is that of a run on one process. All processes of a
    sharded run must take part; one of them ``writes``.

    Raises:
        CheckpointError: The disk is full or the file cannot be written; the one before is kept.
    """
    header = {"format": FORMAT, **asdict(state)}
    tensors = {}
    for name, tensor in _tensors(parts).items():
        gathered = whole(tensor.detach())
        if writes:  # a copy, because a tensor that shares memory with another cannot be written
            tensors[name] = gathered.to("cpu", copy=True, memory_format=torch.contiguous_format)
    if not writes:
        return
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"taskprune": json.dumps(header)})
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())


def load_run(path: Path, parts: RunParts, identity: Mapping[str, Any]) -> RunState:
    """Give the run's objects their saved state and return the rest.

    The objects are untouched where an error is raised.

    Raises:
        CheckpointError: The file is damaged, something else, or of another run.
    """
    with _opened(path) as file:
        state = _state(path, file.metadata() or {})
        _check_identity(path, state.identity, identity)
        saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    live = _tensors(parts)
    for name, tensor in live.items():
        if name not in saved or saved[name].shape != tensor.shape:
            found = tuple(saved[name].shape) if name in saved else "none"
            raise CheckpointError(
                f"`{path}`: expected a tensor `{name}` of shape {tuple(tensor.shape)}. Found "
                f"{found}."
            )
    with torch.no_grad():
        for name, tensor in live.items():
            if not name.startswith("optimizer/"):
                tensor.copy_(part_for(saved[name], tensor))
    _load_optimizer(parts, saved)
    if parts.scaler is not None and state.loss_scale is not None:
        parts.scaler.load_state_dict(dict(state.loss_scale))
    if parts.best is not None:
        parts.best.standing = state.best
    return state


def _state(path: Path, metadata: Mapping[str, str]) -> RunState:
    try:
        header = json.loads(metadata["taskprune"])
        if header["format"] != FORMAT:
            raise CheckpointError(
                f"`{path}` has the format {header['format']!r}. Expected {FORMAT!r}: delete it, or "
                "read it with the version of taskprune that wrote it."
            )
        return RunState(
            header["step"],
            Position(**header["position"]),
            header["identity"],
            header["loss_scale"],
            None if header["best"] is None else Standing(**header["best"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"`{path}` is no checkpoint of a distillation run. Choose another `directory`."
        ) from error


def _check_identity(path: Path, found: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    expected = json.loads(json.dumps(identity))
    different = [key for key in expected if found.get(key) != expected[key]]
    if different:
        key = different[0]
        was = _short(found[key]) if key in found else "not recorded"
        raise CheckpointError(
            f"`{path}` belongs to another run: `{key}` was {was} and now is "
            f"{_short(expected[key])}. Choose another `directory`, or delete the file to start "
            "anew."
        )


def _tensors(parts: RunParts) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, parameter in parts.model.named_parameters():
        tensors[f"model/{name}"] = parameter
        for key, value in parts.optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{name}/{key}"] = value
    for name, buffer in parts.model.named_buffers():
        tensors[f"model/{name}"] = buffer
    for kind, kept in (("average", parts.average), ("best", parts.best)):
        for name, tensor in kept.tensors.items() if kept is not None else ():
            tensors[f"{kind}/{name}"] = tensor
    return tensors


def _load_optimizer(parts: RunParts, saved: Mapping[str, Tensor]) -> None:
    names = {parameter: name for name, parameter in parts.model.named_parameters()}
    live = dict(parts.model.named_parameters())
    by_parameter: dict[str, dict[str, Tensor]] = {}
    for entry, tensor in saved.items():
        if entry.startswith("optimizer/"):
            name, _, key = entry.removeprefix("optimizer/").rpartition("/")
            of_entry = tensor.shape == live[name].shape  # all of AdamW's but the step's number
            value = part_for(tensor, live[name]) if of_entry else tensor
            by_parameter.setdefault(name, {})[key] = value
    ordered = [p for group in parts.optimizer.param_groups for p in group["params"]]
    state = {
        number: by_parameter[names[parameter]]
        for number, parameter in enumerate(ordered)
        if names[parameter] in by_parameter
    }
    # Through the optimizer's own loader: it knows which entries belong on the parameter's device.
    parts.optimizer.load_state_dict({**parts.optimizer.state_dict(), "state": state})


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"`{path}` cannot be read as a checkpoint ({error}): cut off, or another kind of file. "
            "Delete it to start anew."
        ) from error


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
