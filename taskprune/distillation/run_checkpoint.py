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
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from taskprune.distillation.batches import Position
from taskprune.distillation.kept_weights import BestWeights, Standing, WeightAverage
from taskprune.distillation.shards import part_for, whole
from taskprune.errors import CheckpointError, InputError, short
from taskprune.files import as_record, as_type, parse_json, read_sealed, write_sealed

FILE_NAME = "checkpoint.safetensors"
FORMAT = "taskprune.distillation/2"

_OPTIMIZER = "optimizer/"
_ADAMW_STATE = {"step", "exp_avg", "exp_avg_sq"}


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

    def state(
        self,
        step: int,
        position: Position,
        identity: Mapping[str, Any],
        history: str | None = None,
    ) -> RunState:
        """Return what is not a tensor."""
        scale = None if self.scaler is None else dict(self.scaler.state_dict())
        standing = None if self.best is None else self.best.standing
        return RunState(step, position, identity, scale, standing, history)


@dataclass(frozen=True)
class RunState:
    """What is not a tensor.

    Attributes:
        step: Optimizer steps done.
        position: The first batch not used yet.
        identity: What the run is; must be equal for it to go on.
        loss_scale: State of float16's loss scaling, if used.
        best: What the best weights were worth, if they are kept.
        history: Checksum of the records up to this step.
    """

    step: int
    position: Position
    identity: Mapping[str, Any]
    loss_scale: Mapping[str, int | float] | None
    best: Standing | None
    history: str | None


def save_run(path: Path, parts: RunParts, state: RunState, *, writes: bool = True) -> None:
    """Write the checkpoint; killed at any moment, the old or the new file is there, whole.

    Shards are gathered, so that the file is that of a run on one process. All processes of a
    sharded run must take part; one of them ``writes``.

    Raises:
        CheckpointError: The disk is full or the file cannot be written; the one before is kept.
    """
    tensors = {}
    for name, tensor in _tensors(parts).items():
        gathered = whole(tensor.detach())
        if writes:
            tensors[name] = gathered.cpu()
    if writes:
        write_sealed(path, tensors, {"taskprune": json.dumps(asdict(state))}, file_format=FORMAT)


def load_run(path: Path, parts: RunParts, identity: Mapping[str, Any]) -> RunState:
    """Give the run's objects their saved state and return the rest.

    The objects are untouched where an error is raised.

    Raises:
        CheckpointError: The file is damaged, something else, or of another run.
    """
    saved, texts = read_sealed(path, file_format=FORMAT)
    try:
        state = as_record(RunState, parse_json(texts.get("taskprune", "")), "the header")
        _check_identity(path, _extended(state, identity), identity)
        _check_state(state, parts, identity)
    except InputError as error:
        raise CheckpointError(
            f"`{path}` is no checkpoint of a distillation run. {error} Choose another `directory`."
        ) from error
    live = _tensors(parts)
    _check_tensors(path, parts, saved)
    with torch.no_grad():
        for name, tensor in live.items():
            if not name.startswith(_OPTIMIZER):
                tensor.copy_(part_for(saved[name], tensor))
    _load_optimizer(parts, saved)
    if parts.scaler is not None and state.loss_scale is not None:
        parts.scaler.load_state_dict(dict(state.loss_scale))
    if parts.best is not None:
        parts.best.standing = state.best
    return state


def _check_state(state: RunState, parts: RunParts, identity: Mapping[str, Any]) -> None:
    done, position = state.step, state.position
    if not 0 <= done <= identity["n_steps"] or min(position.epoch, position.batch) < 0:
        raise InputError(
            f"Expected a step of 0 to {identity['n_steps']}. Found {done}, at {position}."
        )
    if parts.scaler is not None:
        wanted = {name: type(value) for name, value in parts.scaler.state_dict().items()}
        scale = dict(state.loss_scale or {})
        if scale.keys() != wanted.keys():
            raise InputError(f"Expected a loss scale of {sorted(wanted)}. Found {short(scale)}.")
        for name, kind in wanted.items():
            as_type(kind, scale[name], f"`{name}` of the loss scale")
    if parts.best is not None and state.best is None:
        raise InputError("Expected what the best weights were worth. Found nothing.")


def _check_tensors(path: Path, parts: RunParts, saved: Mapping[str, Tensor]) -> None:
    """Check that what is saved is what the run has, by name, shape and type."""
    live = {name: t for name, t in _tensors(parts).items() if not name.startswith(_OPTIMIZER)}
    groups = parts.optimizer.param_groups
    trained = {id(parameter) for group in groups for parameter in group["params"]}
    for name, parameter in parts.model.named_parameters():
        entries = {key: f"{_OPTIMIZER}{name}/{key}" for key in _ADAMW_STATE}
        if id(parameter) in trained and not saved.keys().isdisjoint(entries.values()):
            live |= dict.fromkeys(entries.values(), parameter)
            step = saved.get(entries["step"], parameter)
            is_number = step.ndim == 0 and step.is_floating_point()
            live[entries["step"]] = step if is_number else torch.empty((), device="cpu")
    for name in sorted(live.keys() | saved.keys()):
        wanted, found = (_described(tensors.get(name)) for tensors in (live, saved))
        if wanted != found:
            raise CheckpointError(
                f"`{path}`: expected {wanted} for `{name}`. Found {found}. Choose another "
                "`directory`."
            )


def _described(tensor: Tensor | None) -> str:
    return "no tensor" if tensor is None else f"{tensor.dtype} of shape {tuple(tensor.shape)}"


def _extended(state: RunState, identity: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a run was; one that is finished may get more steps."""
    was, wanted = state.identity.get("n_steps"), identity["n_steps"]
    if isinstance(was, int) and state.step == was < wanted:
        return {**state.identity, "n_steps": wanted}
    return state.identity


def _check_identity(path: Path, found: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    expected = json.loads(json.dumps(identity))
    different = [key for key in expected if found.get(key) != expected[key]]
    if different:
        key = different[0]
        was = short(found[key]) if key in found else "not recorded"
        raise CheckpointError(
            f"`{path}` belongs to another run: `{key}` was {was} and now is "
            f"{short(expected[key])}. Choose another `directory`, or delete the file to start "
            "anew."
        )


def _tensors(parts: RunParts) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, parameter in parts.model.named_parameters():
        tensors[f"model/{name}"] = parameter
        for key, value in parts.optimizer.state.get(parameter, {}).items():
            tensors[f"{_OPTIMIZER}{name}/{key}"] = value
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
        if entry.startswith(_OPTIMIZER):
            name, _, key = entry.removeprefix(_OPTIMIZER).rpartition("/")
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
