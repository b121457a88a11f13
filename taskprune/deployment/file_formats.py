"""The kinds of files that a model can be exported to, by the suffix of their name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from taskprune.deployment.export_record import FileFormat
from taskprune.deployment.file_models import ProgramModel, write_program
from taskprune.deployment.mobile_files import (
    ExecuTorchModel,
    LiteRTModel,
    write_executorch,
    write_litert,
)
from taskprune.deployment.onnx_files import OnnxModel, write_onnx
from taskprune.deployment.openvino_files import OpenVINOModel, write_openvino
from taskprune.errors import InputError, MissingDependencyError


class Writer(Protocol):
    """Writes a program, and returns the version of the ONNX operators that it took, if any."""

    def __call__(
        self, program: torch.export.ExportedProgram, path: Path, *, outputs: Sequence[str] | None
    ) -> int | None: ...


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of file.

    Attributes:
        file_format: What it is called.
        runtime: What runs it.
        packages: What writing, checking and running it takes.
        extra: What installs these.
        any_batch: Whether it can take any number of samples; else memory is laid out for one.
        write: Writes it.
        model: ``(path, outputs of the model) -> a module`` that runs it.
        beside: Suffix of a second file that belongs to it.
    """

    file_format: FileFormat
    runtime: str
    packages: tuple[str, ...]
    extra: str
    any_batch: bool
    write: Writer
    model: Callable[[Path, Any], nn.Module]
    beside: str = ""

    def check_installed(self) -> None:
        """Check that all it takes is there.

        Raises:
            MissingDependencyError: Something is not.
        """
        missing = [name for name in self.packages if find_spec(name) is None]
        if missing:
            raise MissingDependencyError(
                f"Writing and checking {self.file_format} files takes {', '.join(missing)}, which "
                f"{'is' if len(missing) == 1 else 'are'} not installed. Run "
                f'`pip install "taskprune[{self.extra}]"`, or export to a `.pt2` file, which takes '
                "nothing else."
            )


KINDS = {
    ".onnx": Kind(
        "ONNX", "ONNX Runtime", ("onnx", "onnxscript", "onnxruntime"), "onnx", True,
        write_onnx, OnnxModel,
    ),
    ".pt2": Kind(
        "torch.export", "torch.export", (), "", True, write_program, ProgramModel
    ),
    ".xml": Kind(
        "OpenVINO", "OpenVINO", ("openvino",), "openvino", True,
        write_openvino, OpenVINOModel, beside=".bin",
    ),
    ".pte": Kind(
        "ExecuTorch", "ExecuTorch", ("executorch",), "executorch", False,
        write_executorch, ExecuTorchModel,
    ),
    ".tflite": Kind(
        "LiteRT", "LiteRT", ("litert_torch", "ai_edge_litert"), "litert", False,
        write_litert, LiteRTModel,
    ),
}  # fmt: skip


def kind_of(path: Path) -> Kind:
    """Return the kind of file that a name stands for.

    Raises:
        InputError: It stands for none.
    """
    if path.suffix not in KINDS:
        known = ", ".join(f"`{suffix}` ({kind.runtime})" for suffix, kind in KINDS.items())
        raise InputError(f"Expected a file name that ends in one of {known}. Found `{path.name}`.")
    return KINDS[path.suffix]
