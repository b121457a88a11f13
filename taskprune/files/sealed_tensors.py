"""Safetensors files whose every byte of meaning is under a checksum.

The texts beside the tensors are sealed by themselves, with the tensors' checksum among them, so
that they can be trusted without reading the tensors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from taskprune.errors import CheckpointError, InputError
from taskprune.files.checked_json import sealed, unsealed
from taskprune.files.writing import replacing, writing
from taskprune.version import __version__

_TENSORS = "tensors"


def write_sealed(
    path: Path, tensors: Mapping[str, Tensor], texts: Mapping[str, str], *, file_format: str
) -> None:
    """Write tensors and texts in one go.

    Args:
        path: The file.
        tensors: On any device.
        texts: To stand beside them.
        file_format: Name and version of what the file holds.

    Raises:
        CheckpointError: The file cannot be written, or hold such a tensor; what was there before
            still is.
    """
    plain = _plain(tensors)
    own = {"format": file_format, "version": __version__, _TENSORS: _digest(plain)}
    with writing(path), replacing(path) as temporary:
        try:
            save_file(plain, temporary, metadata=sealed({**own, **texts}))
            read_texts(temporary, file_format=file_format)
        except SafetensorError as error:
            raise OSError(str(error)) from error
        except KeyError as error:  # of a dtype that this version of safetensors does not know
            odd = (_unfit(n, t) for n, t in plain.items() if t.dtype in error.args)
            raise next(odd, error) from error


def read_texts(path: Path, *, file_format: str) -> dict[str, str]:
    """Read the texts of a file from :func:`write_sealed`, without the tensors.

    Raises:
        CheckpointError: The file is missing, damaged, or of another format.
    """
    if not path.is_file():
        raise CheckpointError(f"Expected a safetensors file at `{path}`. There is no such file.")
    with _opened(path) as file:
        found = file.metadata() or {}
    if "format" not in found:
        raise CheckpointError(
            f"`{path}` is a safetensors file, but none that taskprune wrote as {file_format!r}: it "
            f"names no format. Found the entries {sorted(found)}."
        )
    if found["format"] != file_format:
        raise CheckpointError(
            f"`{path}` has the format {found['format']!r}. This version of taskprune "
            f"({__version__}) reads {file_format!r} here. The file was written by "
            f"{found.get('version', 'an unknown version')}."
        )
    try:
        return unsealed(found)
    except InputError as error:
        raise CheckpointError(f"`{path}` is damaged. {error}") from error


def read_sealed(path: Path, *, file_format: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and texts of a file from :func:`write_sealed`.

    Raises:
        CheckpointError: The file is missing, damaged, or of another format.
    """
    texts = read_texts(path, file_format=file_format)
    with _opened(path) as file:
        try:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise CheckpointError(f"The tensors in `{path}` are damaged: {error}.") from error
    if _digest(tensors) != texts.get(_TENSORS):
        raise CheckpointError(
            f"The tensors in `{path}` are not those that were written: the checksum differs. Copy "
            "the file again from where it came from."
        )
    return tensors, texts


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors as safetensors takes them: dense, on the CPU, each with its own memory."""
    seen: set[int] = set()
    plain = {}
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.is_meta:
            raise _unfit(name, tensor)
        dense = tensor.detach().cpu().contiguous()
        place = dense.untyped_storage().data_ptr()
        plain[name] = dense.clone() if place in seen else dense
        seen.add(place)
    return plain


def _unfit(name: str, tensor: Tensor) -> CheckpointError:
    return CheckpointError(
        f"Expected dense tensors that safetensors {safetensors.__version__} can store. `{name}` is "
        f"{tensor.dtype} of layout {tensor.layout} on {tensor.device}. Convert it, or register a "
        "buffer that can be computed anew with `persistent=False`."
    )


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"`{path}` is damaged, cut short, or no safetensors file: {error}. Copy it again from "
            "where it came from, or delete it."
        ) from error


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode("ascii"))
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
