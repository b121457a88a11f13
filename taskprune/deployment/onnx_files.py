"""ONNX files: written from an exported program, quantised, and run as a PyTorch module."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taskprune.deployment.file_models import BATCH, FileModel
from taskprune.errors import ExportError, InputError

LARGEST = 2**31 - 2**24
"""Bytes of weights up to which one file holds a model, as protocol buffers go no further."""


def write_onnx(
    program: torch.export.ExportedProgram, path: Path, *, outputs: Sequence[str] | None
) -> int:
    """Translate a program to ONNX.

    Args:
        program: From ``torch.export``.
        path: The file to write.
        outputs: What to call the outputs; ``None`` leaves that to the exporter.

    Returns:
        The version of the operators.

    Raises:
        ExportError: The weights are too many for one file.
    """
    n_bytes = sum(t.numel() * t.element_size() for t in program.state_dict.values())
    if n_bytes > LARGEST:
        raise ExportError(
            f"Expected at most 2 GB of weights, as an ONNX file can hold no more. Found "
            f"{n_bytes / 1e9:.1f} GB. Export to a `.pt2` file, or a model in half precision."
        )
    written = torch.onnx.export(program, dynamo=True, verbose=False, output_names=outputs)
    assert written is not None  # it is where `dynamo` is set
    if hasattr(written, "rename_axes"):  # releases before call it s77 or the like
        sizes = {dim for value in written.model.graph.inputs for dim in value.shape or ()}
        written.rename_axes({str(dim): BATCH for dim in sizes if not isinstance(dim, int)})
    for node in written.model.graph:  # lines of the user's code, with the paths of this machine
        node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)
    written.save(path, external_data=False)
    return int(written.model.opset_imports[""])


class OnnxModel(FileModel):
    """An ONNX file, run by ONNX Runtime.

    Args:
        path: The file.
        like: Outputs of the model, whose structure those of the file are given.

    Raises:
        InputError: The file returns something else.
    """

    def __init__(self, path: Path, like: Any) -> None:
        super().__init__(like)
        runtime = import_module("onnxruntime")
        settings = runtime.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        settings.log_severity_level = 4  # it raises what it logs below that
        self.session = runtime.InferenceSession(
            str(path), settings, providers=["CPUExecutionProvider"]
        )
        self.check_returned(len(self.session.get_outputs()))

    @property
    def names(self) -> Sequence[str]:
        return [known.name for known in self.session.get_inputs()]

    def run(self, tensors: dict[str, Tensor]) -> Sequence[Tensor]:
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        return [torch.from_numpy(found) for found in self.session.run(None, arrays)]


def quantize_onnx(path: Path, calls: Iterable[tuple[Any, Any]], model: OnnxModel) -> int:
    """Turn weights and activations of a file into 8-bit integers, by static quantisation.

    Weights have a scale per channel; the range of each activation is what it was on the batches.

    Args:
        path: The file.
        calls: Arguments to calibrate on.
        model: The file as it is, which knows the names of its inputs.

    Returns:
        How many batches there were.

    Raises:
        ExportError: ONNX Runtime fails at it.
        InputError: There is no batch.
    """
    library = import_module("onnxruntime.quantization")
    shapes = import_module("onnxruntime.quantization.shape_inference")
    reader = _Reader(model, calls)
    try:
        # Folds normalisations into the layers before, and tells shapes.
        shapes.quant_pre_process(str(path), str(path), skip_symbolic_shape=True)
        library.quantize_static(str(path), str(path), reader, per_channel=True)
    except Exception as error:
        if not reader.n_batches:
            raise InputError("There is no batch to measure the ranges of activations on.") from None
        raise ExportError(
            f"Quantising failed: {type(error).__name__}: {error}. The model itself can be "
            "exported: leave `quantize` away."
        ) from error
    return reader.n_batches


class _Reader:
    """The calibration batches, as ONNX Runtime asks for them."""

    def __init__(self, model: OnnxModel, calls: Iterable[tuple[Any, Any]]) -> None:
        self._model = model
        self._calls: Iterator[tuple[Any, Any]] = iter(calls)
        self.n_batches = 0

    def get_next(self) -> dict[str, Any] | None:
        for args, kwargs in self._calls:
            self.n_batches += 1
            tensors = self._model.named(args, kwargs)
            return {name: tensor.numpy() for name, tensor in tensors.items()}
        return None
