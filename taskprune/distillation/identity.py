"""What a run is: it may go on from a checkpoint of the very same run only.

Everything here is the same in every process and is kept as JSON in the checkpoint.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from taskprune.distillation.alignment import Alignment
from taskprune.distillation.run import Run
from taskprune.distillation.run_checkpoint import FILE_NAME
from taskprune.distillation.shards import whole

if TYPE_CHECKING:
    from accelerate import Accelerator

_SIMPLE = (bool, int, float, complex, str, bytes, type(None))

_MAY_CHANGE = {"steps", "epochs", "cpu", "directory", "checkpoint_every", "callbacks", "console"}
"""Settings that may differ when a run goes on; its length in steps is known besides."""

_left: WeakKeyDictionary[nn.Module, tuple[Path, int, int]] = WeakKeyDictionary()
"""Per student of an earlier call: its directory, and its checksums before and after that call."""


def identity(run: Run) -> dict[str, Any]:
    """Return what must agree for a run to go on from another's checkpoint."""
    objective, settings = run.objective, run.settings
    tensors = [*objective.named_parameters(), *objective.named_buffers()]
    alignments = [module for module in objective.alignments if isinstance(module, Alignment)]
    return {
        "n_steps": run.n_steps,
        "shapes": {name: list(tensor.shape) for name, tensor in tensors},
        **run.checksums,
        "tasks": {name: [task.weight, described(task.loss)] for name, task in run.tasks.items()},
        "taps": [module.label for module in alignments],
        "channels": [
            None if module.keep is None else zlib.crc32(str(module.keep.tolist()).encode())
            for module in alignments
        ],
        **{
            field.name: described(getattr(settings, field.name))
            for field in fields(settings)
            if field.name not in _MAY_CHANGE
        },
    }


@contextmanager
def known_models(
    student: nn.Module, teacher: nn.Module, directory: Path | None, accelerator: Accelerator
) -> Iterator[dict[str, int]]:
    """Provide the checksums of the teacher and of the student as the run began.

    A call that failed leaves the student somewhere on its way. Where the next call gets that very
    student, unchanged, for the same directory, what counts are the weights of the first call.
    """
    if directory is None:
        yield {}
        return
    directory = directory.resolve()
    began = present = checksum(student)
    known = _left.get(student)
    if known and known[0] == directory and known[2] == present and (directory / FILE_NAME).exists():
        began = known[1]
    found = [checksum(teacher), began]
    if accelerator.num_processes > 1:
        from accelerate.utils import broadcast_object_list

        broadcast_object_list(found)  # all others start from the main process's weights
    try:
        yield {"teacher_checksum": found[0], "student_checksum": found[1]}
    finally:
        _left[student] = (directory, began, checksum(student))


@torch.no_grad()
def checksum(model: nn.Module) -> int:
    """Return a checksum of what a model's state dict holds, whatever the device and the layout."""
    value = 0
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):
            continue
        about = f"{name} {tensor.dtype} {tuple(tensor.shape)}"
        value = zlib.crc32(about.encode(), value)
        if not tensor.is_meta:
            there = whole(tensor).cpu().contiguous().reshape(-1)
            value = zlib.crc32(there.view(torch.uint8).numpy().data, value)
    return value


def described(value: Any) -> str:
    """Describe a setting without memory addresses, the same in every process.

    Functions with a name of their own are known by that name, so that one that was mended goes on
    with its run. Lambdas and functions inside functions are known by what they do.
    """
    return _described(value, ())


def _described(value: Any, around: tuple[int, ...]) -> str:
    if id(value) in around:
        return "itself"  # a function that calls itself
    around = (*around, id(value))

    def inner(items: Mapping[str, Any]) -> str:
        return ", ".join(f"{name}={_described(item, around)}" for name, item in items.items())

    if isinstance(value, partial):
        given = [_described(item, around) for item in value.args]
        return f"{_described(value.func, around)}({', '.join(given)}; {inner(value.keywords)})"
    if hasattr(value, "__qualname__"):
        name = f"{value.__module__}.{value.__qualname__}"
        code = getattr(value, "__code__", None)
        return f"{name} {_of_code(value, code, around)}" if "<" in name and code else name
    if isinstance(value, tuple):
        return f"({', '.join(_described(item, around) for item in value)})"
    if isinstance(value, Mapping):
        return f"{{{inner(value)}}}"
    if is_dataclass(value):
        shown = {field.name: getattr(value, field.name) for field in fields(value) if field.repr}
        return f"{type(value).__qualname__}({inner(shown)})"
    text = repr(value)
    return type(value).__qualname__ if " at 0x" in text else text


def _of_code(function: Any, code: CodeType, around: tuple[int, ...]) -> str:
    """Return a checksum of what a function does, as far as its code and simple values say."""
    closure = [cell.cell_contents for cell in function.__closure__ or () if _is_full(cell)]
    bound = [*closure, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    # Lists, tensors and the like may change while the run goes on, and say nothing of its start.
    known = [
        _described(value, around)
        for value in bound
        if isinstance(value, _SIMPLE) or callable(value) or is_dataclass(value)
    ]
    return f"{zlib.crc32(repr([_code(code), known]).encode()):08x}"


def _is_full(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # bound only after the function was made
        return False


def _code(code: CodeType) -> str:
    return repr([code.co_code.hex(), code.co_names, [_constant(each) for each in code.co_consts]])


def _constant(value: Any) -> str:
    if isinstance(value, CodeType):
        return _code(value)
    if isinstance(value, frozenset):
        return repr(sorted(map(repr, value)))  # its own order differs between processes
    if isinstance(value, tuple):
        return repr([_constant(each) for each in value])
    return repr(value)
