"""A model as one file that runs without its code."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from taskprune.calling.forward import Forward, Forwards, call_batch, call_inputs, one_forward
from taskprune.calling.meta import without_values
from taskprune.calling.outputs import flatten_outputs
from taskprune.calling.wrappers import bare
from taskprune.cost import LatencyReport, measure_latency
from taskprune.deployment.captured_call import Call, captured, has_dims, run
from taskprune.deployment.export_errors import failing, undisturbed
from taskprune.deployment.export_record import ExportResult, Quantization
from taskprune.deployment.file_formats import Kind, kind_of
from taskprune.deployment.file_models import BATCH, program_inputs
from taskprune.deployment.onnx_files import OnnxModel, quantize_onnx
from taskprune.errors import ExportError, InputError, short
from taskprune.files import make_folder_of, replacing, writing
from taskprune.restore.process import preserved_rng
from taskprune.rewrite import OutputError
from taskprune.rewrite.comparison import output_errors
from taskprune.rewrite.surgery import skeleton
from taskprune.terminal.console import stages

TOLERANCE = 1e-3
"""Largest error of an output relative to its largest entry.

The runtime adds up the same numbers in another order and joins layers, which moves an output of a
deep network by some 1e3 rounding steps of 1e-7; an operator that means something else by a percent.
"""


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    example: Any,
    *,
    forward: Forwards | None = None,
    quantize: Iterable[Any] | None = None,
    dynamic_batch: bool | None = None,
    tolerance: float = TOLERANCE,
    timed: bool = False,
) -> ExportResult:
    """Write a model to one file that runs without its code, and check what the file computes.

    By the suffix of `path`: ``.onnx`` for ONNX Runtime and what else reads ONNX, by PyTorch's
    exporter; ``.pt2`` for ``torch.export.load``; ``.xml`` for OpenVINO, with the weights in a
    ``.bin`` beside it; ``.pte`` for ExecuTorch, with XNNPACK for what that can run; ``.tflite`` for
    LiteRT. The file is run on the example, and where it takes any number of samples on one and on
    one more than the example has, and compared with the model, before it takes the place of
    another. Model and example are left as they were; the file computes what the model does in eval
    mode.

    Args:
        model: Any module; taken out of ``torch.compile`` and data-parallel wrappers. All but
            ``.pt2`` files are written and run on the CPU.
        path: The file, in a folder that is made if it is missing.
        example: A tensor, a tuple of arguments or a dict of keywords; or what `forward` takes.
            Dim 0 of the first tensor is the batch, and so is that of all tensors as long.
        forward: ``(model, example) -> outputs``: what the model itself is called with there is what
            the file takes, and what it returns is what the file returns.
        quantize: Calibration batches, a few hundred samples: weights and activations of an ONNX
            file become 8-bit integers, by ONNX Runtime's static quantisation. How far that moves
            the outputs is recorded, and not limited by `tolerance`.
        dynamic_batch: Whether the file takes any number of samples, or as many as the example.
            Default: any number, but where memory is laid out ahead, as in ``.pte`` and ``.tflite``.
        tolerance: Largest difference of an output relative to its largest entry.
        timed: Time file and model in turn, on the example.

    Raises:
        InputError: An argument does not fit.
        MissingDependencyError: All but ``.pt2`` files take an extra: ``onnx``, ``openvino``,
            ``executorch`` or ``litert``.
        ExportError: The model cannot be exported, or the file computes something else.
        CheckpointError: The file cannot be written.
    """
    path = Path(path)
    kind = _checked(path, quantize, dynamic_batch, tolerance)
    any_batch = kind.any_batch if dynamic_batch is None else dynamic_batch
    make_folder_of(path, option="`path`")
    model = bare(model)
    if name := without_values(model):
        raise InputError(f"Expected a model with values. `{name}` is on the meta device.")
    one = one_forward(forward)
    with preserved_rng(), stages("Exporting") as say, undisturbed():
        own = skeleton(model).eval()
        own = own if path.suffix == ".pt2" else own.cpu()
        call = captured(own, one or call_inputs, example)
        n = call.n_samples
        if any_batch and n is None:
            raise InputError(
                "Expected an example with a tensor whose dim 0 is the batch. Found none: pass "
                "`dynamic_batch=False`."
            )
        sizes = sorted({1, n, n + 1}) if any_batch and n else [n or 0]
        job = _Job(own, path, kind, call, tuple(sizes), any_batch, tolerance, say)
        batches = None if quantize is None else _calls(own, one or call_batch, quantize)
        with writing(path), replacing(path) as temporary, _beside(kind, path, temporary):
            return job.written(temporary, batches, timed=timed)


@contextmanager
def _beside(kind: Kind, path: Path, temporary: Path) -> Iterator[None]:
    """Let a second file take its place with the first."""
    try:
        yield
        if kind.beside:
            temporary.with_suffix(kind.beside).replace(path.with_suffix(kind.beside))
    finally:
        if kind.beside:
            temporary.with_suffix(kind.beside).unlink(missing_ok=True)


def _checked(path: Path, quantize: object, dynamic_batch: bool | None, tolerance: float) -> Kind:
    kind = kind_of(path)
    if quantize is not None and path.suffix != ".onnx":
        raise InputError("Only ONNX files are quantised. Choose a name that ends in `.onnx`.")
    if dynamic_batch and not kind.any_batch:
        raise InputError(
            f"{kind.runtime} lays out memory for one number of samples, that of the example. Leave "
            "`dynamic_batch` away."
        )
    if not isinstance(tolerance, int | float) or not tolerance > 0:
        raise InputError(f"`tolerance` must be positive. Found {short(tolerance)}.")
    kind.check_installed()
    return kind


@dataclass(frozen=True, eq=False, slots=True)
class _Job:
    """What is exported, and how it is checked."""

    model: nn.Module
    path: Path
    kind: Kind
    call: Call
    sizes: tuple[int, ...]
    dynamic_batch: bool
    tolerance: float
    say: Callable[[str], None]

    def written(
        self, temporary: Path, batches: Iterable[Call] | None, *, timed: bool
    ) -> ExportResult:
        """Write the file and compare it."""
        self.say("capturing the model")
        program = self._program()
        calls = [self._of_size(n) for n in self.sizes]
        wanted = [_outputs(self.model, call) for call in calls]
        like = run(self.model, self.call)
        shapes = program_inputs(program)
        self.say(f"writing for {self.kind.runtime}")
        with failing("translated to", self.model, self.kind.file_format):
            opset = self.kind.write(program, temporary, outputs=_names(like))
        self.say("comparing with PyTorch")
        with failing("run by", self.model, self.kind.runtime):
            found = self.kind.model(temporary, like)
            errors = self._compared(found, calls, wanted)
        if wrong := [error for error in errors if error.exceeds(self.tolerance)]:
            raise ExportError(
                f"The file does not compute what `{type(self.model).__name__}` does: "
                f"{wrong[0]}, where {self.tolerance:g} is let through. No file was written. "
                "Look at how that output is computed; `tolerance=` allows for more."
            )
        quantization = None
        if batches is not None and isinstance(found, OnnxModel):
            self.say("quantising")
            before = temporary.stat().st_size
            n = quantize_onnx(temporary, ((c.args, c.kwargs) for c in batches), found)
            found = OnnxModel(temporary, like)
            quantization = Quantization(n, before, self._compared(found, calls, wanted))
        return ExportResult(
            self.path,
            self.kind.file_format,
            self._n_bytes(temporary),
            opset,
            shapes,
            self.sizes,
            errors,
            self.tolerance,
            quantization,
            self._latency(found) if timed else {},
        )

    def _n_bytes(self, temporary: Path) -> int:
        suffixes = {temporary.suffix, self.kind.beside or temporary.suffix}
        return sum(temporary.with_suffix(suffix).stat().st_size for suffix in suffixes)

    def _program(self) -> torch.export.ExportedProgram:
        # A size of 1 would be taken for one that broadcasts.
        call = self._of_size(max(2, self.call.n_samples or 0)) if self.dynamic_batch else self.call
        shapes: Any = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]
        if self.dynamic_batch:
            batch = torch.export.Dim(BATCH, min=1)
            for leaf in pytree.tree_leaves((call.args, call.kwargs)):
                if has_dims(leaf) and len(leaf) == call.n_samples:
                    shapes[leaf] = {0: batch}
        # It prints the whole graph before it raises.
        with failing("captured", self.model), torch.no_grad(), redirect_stderr(io.StringIO()):
            return torch.export.export(
                self.model,
                call.args,
                dict(call.kwargs),
                dynamic_shapes=shapes if self.dynamic_batch else None,
                strict=False,
            )

    def _of_size(self, n: int) -> Call:
        available = self.call.n_samples
        return self.call.with_samples([i % available for i in range(n)]) if available else self.call

    def _compared(
        self, found: nn.Module, calls: list[Call], wanted: list[dict[str, Tensor]]
    ) -> tuple[OutputError, ...]:
        """Return of each output its largest error."""
        worst: dict[str, OutputError] = {}
        for call, expected in zip(calls, wanted, strict=True):
            for error in output_errors(expected, _outputs(found, call)):
                known = worst.get(error.path)
                if known is None or error.exceeds(known.relative):
                    worst[error.path] = error
        return tuple(worst.values())

    def _latency(self, found: nn.Module) -> dict[str, LatencyReport]:
        self.say("timing")
        models = {"PyTorch": self.model, self.kind.runtime: found}
        return measure_latency(models, self.call, forward=run)


def _outputs(model: nn.Module, call: Call) -> dict[str, Tensor]:
    """Return the tensors among what a model returns, by path."""
    return {path: t.detach().clone() for path, t in flatten_outputs(run(model, call)).items()}


def _names(like: Any) -> list[str] | None:
    """Return what to call the outputs, unless the exporter sees others than we do."""
    paths = list(flatten_outputs(like))
    n_leaves = sum(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(like))
    return paths if len(paths) == n_leaves else None


def _calls(model: nn.Module, forward: Forward, batches: Iterable[Any]) -> Iterator[Call]:
    return (captured(model, forward, batch) for batch in batches)
