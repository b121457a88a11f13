"""Files of ExecuTorch and LiteRT, for phones and smaller devices; memory is laid out ahead."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taskprune.deployment.file_models import FileModel
from taskprune.deployment.named_programs import NamedProgram


def write_executorch(
    program: torch.export.ExportedProgram, path: Path, *, outputs: Sequence[str] | None
) -> None:
    """Lower a program to ExecuTorch, with XNNPACK for what that can run.

    Args:
        program: From ``torch.export``, for one number of samples.
        path: The file to write.
        outputs: What to call the outputs; the file holds no names.
    """
    exir = import_module("executorch.exir")
    xnnpack = import_module("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    own = NamedProgram(program, outputs).captured()
    lowered = exir.to_edge_transform_and_lower(own, partitioner=[xnnpack.XnnpackPartitioner()])
    path.write_bytes(lowered.to_executorch().buffer)


class ExecuTorchModel(FileModel):
    """A file of ExecuTorch.

    Args:
        path: The file.
        like: Outputs of the model, whose structure those of the file are given.
    """

    def __init__(self, path: Path, like: Any) -> None:
        super().__init__(like)
        self._program = import_module("executorch.runtime").Runtime.get().load_program(path)
        self._method = self._program.load_method("forward")
        self.check_returned(self._method.metadata.num_outputs())

    @property
    def names(self) -> Sequence[str]:
        return [f"input_{number}" for number in range(self._method.metadata.num_inputs())]

    def run(self, tensors: dict[str, Tensor]) -> Sequence[Tensor]:
        # What it returns lies in its own memory, which the next call writes to.
        return [found.clone() for found in self._method.execute([*tensors.values()])]


def write_litert(
    program: torch.export.ExportedProgram, path: Path, *, outputs: Sequence[str] | None
) -> None:
    """Translate a program to LiteRT, formerly TensorFlow Lite.

    Args:
        program: From ``torch.export``, for one number of samples.
        path: The file to write.
        outputs: What to call the outputs; ``None`` numbers them.
    """
    own = NamedProgram(program, outputs)
    converted = import_module("litert_torch").convert(own, sample_kwargs=own.example)
    path.write_bytes(converted.model_content())


class LiteRTModel(FileModel):
    """A file of LiteRT.

    Args:
        path: The file.
        like: Outputs of the model, whose structure those of the file are given.
    """

    def __init__(self, path: Path, like: Any) -> None:
        super().__init__(like)
        library = import_module("ai_edge_litert.interpreter")
        interpreter = library.Interpreter(
            str(path),
            num_threads=torch.get_num_threads(),
            experimental_default_delegate_latest_features=True,
        )
        interpreter.allocate_tensors()
        self._inputs = interpreter.get_input_details()
        outputs = interpreter.get_output_details()
        self._session = _session(interpreter, self._inputs, outputs)
        next(self._session)
        self.check_returned(len(outputs))

    @property
    def names(self) -> Sequence[str]:
        # Such as `serving_default_images:0`.
        return [about["name"].partition(":")[0].split("_", 2)[-1] for about in self._inputs]

    def run(self, tensors: dict[str, Tensor]) -> Sequence[Tensor]:
        found: list[Tensor] = self._session.send([tensor.numpy() for tensor in tensors.values()])
        return found


def _session(interpreter: Any, inputs: Any, outputs: Any) -> Generator[Any, Any, None]:
    """Run an interpreter on arrays that are sent.

    It refuses to run while anything else refers to it or its insides, so nothing else has it.
    """
    found: list[Tensor] = []
    while True:
        for about, array in zip(inputs, (yield found), strict=True):
            interpreter.set_tensor(about["index"], array)
        interpreter.invoke()
        arrays = (interpreter.get_tensor(about["index"]).copy() for about in outputs)
        found = [torch.from_numpy(array) for array in arrays]
