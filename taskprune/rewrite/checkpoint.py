"""A pruned model in one file: weights and plan, nothing pickled.

The file is in the safetensors format; the plan stands in its header. Loading rebuilds the original
class, replays the plan and puts the weights in, so the file holds no code and is safe to open.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from taskprune.calling.wrappers import bare
from taskprune.errors import CheckpointError, InputError, PlanMismatchError
from taskprune.files.atomic import replacing
from taskprune.plan.plan import PruningPlan
from taskprune.rewrite import apply_plan
from taskprune.rewrite.surgery import memory_format, named_tensors, tensor_shapes
from taskprune.version import __version__

FORMAT = 1
"""Version of what the header holds."""

_FORMATS = {
    torch.channels_last: "channels_last",
    torch.channels_last_3d: "channels_last_3d",
}


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
    tensors = {name: tensor.detach() for name, tensor in _stored_tensors(model).items()}
    stored = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    formats = {name: _FORMATS.get(memory_format(tensor)) for name, tensor in tensors.items()}
    header = {
        "format": FORMAT,
        "version": __version__,
        "model_class": f"{type(model).__module__}.{type(model).__qualname__}",
        "sha256": _digest(stored),
        "memory_formats": {name: layout for name, layout in formats.items() if layout},
    }
    texts = {
        "taskprune": json.dumps(header),
        "plan": plan.to_json(),
        "metadata": _metadata_text(metadata or {}),
    }
    _write_atomically(path, stored, texts)


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
    header, details = _read_header(path)
    stored = _read_tensors(path, header.plan, details)
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
    layouts = {name: layout for layout, name in _FORMATS.items()}
    for name, tensor in expected.items():
        layout = layouts.get(details["memory_formats"].get(name), torch.contiguous_format)
        # A copy of its own: tensors read from the file lie wherever it puts them, and kernels round
        # differently on memory that does not start at a whole vector.
        tensor.data = stored[name].to(tensor.device).clone(memory_format=layout)
    return pruned


def read_header(path: str | Path) -> CheckpointHeader:
    """Read a checkpoint's plan and metadata, without its weights.

    Raises:
        CheckpointError: The file is missing, damaged or foreign.
    """
    return _read_header(Path(path))[0]


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


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _metadata_text(metadata: Mapping[str, Any]) -> str:
    try:
        return json.dumps(dict(metadata))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"`metadata` must hold what JSON can: numbers, text, lists and dicts. {error}."
        ) from error


def _write_atomically(path: Path, tensors: dict[str, Tensor], texts: dict[str, str]) -> None:
    try:
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata=texts)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"Could not write `{path}`: {error}.") from error


def _read_header(path: Path) -> tuple[CheckpointHeader, dict[str, Any]]:
    if not path.is_file():
        raise CheckpointError(f"Expected a checkpoint at `{path}`. There is no such file.")
    try:
        with safe_open(str(path), framework="pt") as file:
            texts = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"`{path}` is damaged, cut short, or no safetensors file: {error}. Copy it again from "
            "where it came from."
        ) from error
    if "taskprune" not in texts or "plan" not in texts:
        raise CheckpointError(
            f"`{path}` is a safetensors file, but none that `save_checkpoint` wrote: its header "
            f"holds no plan. Found the entries {sorted(texts)}."
        )
    try:
        details = json.loads(texts["taskprune"])
        if details["format"] != FORMAT:
            raise CheckpointError(
                f"`{path}` has format {details['format']!r}; this version of taskprune "
                f"({__version__}) reads {FORMAT}. The file was written by {details['version']}."
            )
        header = CheckpointHeader(
            plan=PruningPlan.from_json(texts["plan"]),
            metadata=json.loads(texts.get("metadata", "{}")),
            model_class=details["model_class"],
            version=details["version"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"The header of `{path}` is damaged: {error}.") from error
    return header, details


def _read_tensors(path: Path, plan: PruningPlan, details: Mapping[str, Any]) -> dict[str, Tensor]:
    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"The weights in `{path}` are damaged: {error}.") from error
    if _digest(tensors) != details.get("sha256"):
        raise CheckpointError(
            f"The weights in `{path}` are not those that were written: the checksum differs. Copy "
            "the file again from where it came from."
        )
    shapes = plan.pruned_shapes
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != shapes.get(name):
            raise CheckpointError(
                f"`{path}` contradicts itself: its plan gives `{name}` the shape "
                f"{shapes.get(name)}, its weights {tuple(tensor.shape)}."
            )
    return tensors
