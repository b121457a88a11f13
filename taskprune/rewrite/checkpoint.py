"""A pruned model in one file: weights and plan, nothing pickled.

The file is in the safetensors format; the plan stands in its header. Loading rebuilds the original
class, replays the plan and puts the weights in, so the file holds no code and is safe to open.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from taskprune.calling.wrappers import bare
from taskprune.errors import CheckpointError, InputError, PlanMismatchError, short
from taskprune.files import (
    as_record,
    as_type,
    parse_json,
    read_sealed,
    read_texts,
    write_sealed,
)
from taskprune.plan.plan import PruningPlan
from taskprune.rewrite import apply_plan
from taskprune.rewrite.surgery import memory_format, named_tensors, tensor_shapes

FORMAT = "taskprune.checkpoint/2"
"""Name and version of what the file holds."""

_LAYOUTS = {
    "channels_last": (4, torch.channels_last),
    "channels_last_3d": (5, torch.channels_last_3d),
}
"""Layouts that are stored, and the dims of tensors that have them."""


@dataclass(frozen=True)
class CheckpointHeader:
    """What a checkpoint says about itself.

    Attributes:
        plan: The plan that makes the model out of the original.
        metadata: What was passed to :func:`save_checkpoint`.
        model_class: Qualified name of the model's class, for people.
        version: The taskprune that wrote the file.
    """

    plan: PruningPlan
    metadata: Mapping[str, Any]
    model_class: str
    version: str


@dataclass(frozen=True)
class _Details:
    """What the file says of the model beside its plan.

    Attributes:
        model_class: See :class:`CheckpointHeader`.
        memory_formats: Layouts of the tensors that are not contiguous, by name.
    """

    model_class: str
    memory_formats: Mapping[str, str]


def save_checkpoint(
    path: str | Path,
    model: nn.Module,
    plan: PruningPlan,
    *,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a pruned model to one ``.safetensors`` file.

    The file appears under its name only when it is complete; a file that was there before is
    replaced then. Tied tensors are stored once. As in a ``state_dict``, buffers registered with
    ``persistent=False`` are left out.

    Args:
        path: The file to write, in an existing folder.
        model: The pruned model, perhaps trained further; taken out of ``torch.compile`` and
            data-parallel wrappers.
        plan: The plan that made it; :func:`~taskprune.plan.compose` makes one of several.
        metadata: Anything JSON can hold, to be read back from :func:`read_header`.

    Raises:
        CheckpointError: The plan is not the model's, or the file cannot be written.
        InputError: ``metadata`` cannot be stored as JSON.
    """
    path = Path(path)
    model = bare(model)
    _check_made_by(model, plan)
    tensors = _stored_tensors(model)
    names = {layout: name for name, (_, layout) in _LAYOUTS.items()}
    layouts = {name: names.get(memory_format(tensor)) for name, tensor in tensors.items()}
    details = _Details(
        model_class=f"{type(model).__module__}.{type(model).__qualname__}",
        memory_formats={name: layout for name, layout in layouts.items() if layout},
    )
    texts = {
        "taskprune": json.dumps(asdict(details)),
        "plan": plan.to_json(),
        "metadata": _metadata_text(metadata or {}),
    }
    write_sealed(path, tensors, texts, file_format=FORMAT)


def load_checkpoint(path: str | Path, model: nn.Module | Callable[[], nn.Module]) -> nn.Module:
    """Read a pruned model.

    Args:
        path: A file from :func:`save_checkpoint`.
        model: What makes the *original* model, for example its class or ``lambda: Net(width=64)``;
            or such a model, which stays as it is. Its weights do not matter.

    Returns:
        The pruned model, on the original's device, with the stored weights and dtypes: its outputs
        equal those of the saved one to the bit.

    Raises:
        CheckpointError: The file is missing, damaged or foreign, or the original is another one.
    """
    path = Path(path)
    stored, texts = read_sealed(path, file_format=FORMAT)
    header, details = _header(path, texts)
    layouts = _checked_layouts(path, header.plan, stored, details)
    given = isinstance(model, nn.Module)
    original = bare(model if isinstance(model, nn.Module) else model())
    try:
        pruned = apply_plan(original, header.plan, verify=False, inplace=not given)
    except PlanMismatchError as error:
        raise CheckpointError(
            f"`{path}` holds a pruned {header.model_class}, which does not fit the model given "
            f"({type(original).__name__}): {error}"
        ) from error
    expected = _stored_tensors(pruned)
    if expected.keys() != stored.keys():
        odd = sorted(expected.keys() ^ stored.keys())[0]
        where = "the file but not in the model" if odd in stored else "the model but not the file"
        raise CheckpointError(f"`{path}` does not fit the model given: `{odd}` is in {where}.")
    for name, tensor in expected.items():
        if _kind(stored[name]) != _kind(tensor):
            raise CheckpointError(
                f"`{path}` does not fit the model given: `{name}` is {tensor.dtype} in the model "
                f"and {stored[name].dtype} in the file."
            )
    for name, tensor in expected.items():
        layout = layouts.get(name, torch.contiguous_format)
        # A copy of its own: tensors read from the file lie wherever it puts them, and kernels round
        # differently on memory that does not start at a whole vector.
        tensor.data = stored[name].to(tensor.device).clone(memory_format=layout)
    return pruned


def read_header(path: str | Path) -> CheckpointHeader:
    """Read a checkpoint's plan and metadata, without its weights.

    Raises:
        CheckpointError: The file is missing, damaged or foreign.
    """
    path = Path(path)
    return _header(path, read_texts(path, file_format=FORMAT))[0]


def _check_made_by(model: nn.Module, plan: PruningPlan) -> None:
    found, expected = tensor_shapes(model), plan.pruned_shapes
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise CheckpointError(
                f"Expected the model that this plan makes, with `{name}` of shape "
                f"{expected.get(name, '(none)')}. Found {found.get(name, 'no such tensor')}. Pass "
                "the pruned model, and for one pruned twice `compose(first, second)`."
            )


def _stored_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of the state dict, tied ones under their first name only."""
    left_out = set()
    for path, module in model.named_modules():
        left_out |= {
            f"{path}.{name}" if path else name for name in module._non_persistent_buffers_set
        }
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise CheckpointError(
                f"`{path or type(model).__name__}` keeps extra state outside of tensors "
                "(`get_extra_state`), which a file without pickled objects cannot hold. Store "
                "`model.state_dict()` yourself, and the plan by `plan.save`."
            )
    return {n: t for n, t in named_tensors(model).items() if n not in left_out}


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    """Return what must agree for one tensor to hold another's values, whatever its precision."""
    return tensor.is_floating_point(), tensor.is_complex()


def _metadata_text(metadata: Mapping[str, Any]) -> str:
    try:
        text = json.dumps(dict(metadata))
        parse_json(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"`metadata` must hold what JSON can: numbers, text, lists and dicts. {error}."
        ) from error
    return text


def _header(path: Path, texts: Mapping[str, str]) -> tuple[CheckpointHeader, _Details]:
    try:
        details = as_record(_Details, parse_json(texts["taskprune"]), "the header")
        header = CheckpointHeader(
            plan=PruningPlan.from_json(texts["plan"]),
            metadata=as_type(Mapping[str, Any], parse_json(texts["metadata"]), "`metadata`"),
            model_class=details.model_class,
            version=texts["version"],
        )
    except (InputError, KeyError) as error:
        raise CheckpointError(f"The header of `{path}` is damaged: {error}.") from error
    return header, details


def _checked_layouts(
    path: Path, plan: PruningPlan, stored: Mapping[str, Tensor], details: _Details
) -> dict[str, torch.memory_format]:
    """Return the layouts of the tensors that are not contiguous; check that all fit the plan."""
    shapes = plan.pruned_shapes
    for name, tensor in stored.items():
        if tuple(tensor.shape) != shapes.get(name):
            raise CheckpointError(
                f"`{path}` contradicts itself: its plan gives `{name}` the shape "
                f"{shapes.get(name)}, its weights {tuple(tensor.shape)}."
            )
    layouts = {}
    for name, layout in details.memory_formats.items():
        n_dims, layouts[name] = _LAYOUTS.get(layout, (None, torch.contiguous_format))
        if name not in stored or stored[name].ndim != n_dims:
            raise CheckpointError(
                f"`{path}` contradicts itself: `{name}` cannot have the layout {short(layout)}."
            )
    return layouts
