"""What an export has written, and how far it is from the model, as a record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from taskprune.cost import LatencyReport
from taskprune.rewrite import OutputError

FileFormat: TypeAlias = Literal["ONNX", "torch.export", "OpenVINO", "ExecuTorch", "LiteRT"]


@dataclass(frozen=True, slots=True)
class Quantization:
    """What it means for a file that weights and activations became 8-bit integers.

    Attributes:
        batches: How many batches the ranges of the activations were measured on.
        n_bytes_before: Size of the file with floating-point numbers.
        outputs: How far each output of the quantised file is from the model's.
    """

    batches: int
    n_bytes_before: int
    outputs: tuple[OutputError, ...]

    @property
    def max_relative_error(self) -> float:
        """The largest difference, relative to the largest entry of its output."""
        return max((error.relative for error in self.outputs), default=0.0)


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What :func:`taskprune.export` has written. ``print(result)`` says it in a few lines.

    Attributes:
        path: The file.
        file_format: What it holds.
        n_bytes: Its size, with that of a second file of weights, as OpenVINO has one.
        opset: Version of the ONNX operators; ``None`` for other files.
        inputs: Shape of each input by name, ``"batch"`` where any number goes.
        batch_sizes: How many samples the file and the model were compared on, each in turn.
        outputs: Of each output the largest error over these, before any quantisation.
        tolerance: Largest relative error let through.
        quantization: What 8-bit integers changed; ``None`` where there are none.
        latency: Forward passes timed in turn, by what ran them; empty unless asked for.
    """

    path: Path
    file_format: FileFormat
    n_bytes: int
    opset: int | None
    inputs: Mapping[str, tuple[int | str, ...]]
    batch_sizes: tuple[int, ...]
    outputs: tuple[OutputError, ...]
    tolerance: float
    quantization: Quantization | None = None
    latency: Mapping[str, LatencyReport] = field(default_factory=dict)

    @property
    def max_relative_error(self) -> float:
        """The largest difference, relative to the largest entry of its output."""
        return max((error.relative for error in self.outputs), default=0.0)

    def summary(self) -> dict[str, Any]:
        """Return all of it as JSON can hold it."""
        done = self.quantization
        return {
            "path": str(self.path),
            "format": self.file_format,
            "bytes": self.n_bytes,
            "opset": self.opset,
            "inputs": {name: list(shape) for name, shape in self.inputs.items()},
            "outputs": {error.path: error.relative for error in self.outputs},
            "batch_sizes": list(self.batch_sizes),
            "max_relative_error": self.max_relative_error,
            "quantization": done
            and {
                "batches": done.batches,
                "bytes_before": done.n_bytes_before,
                "outputs": {error.path: error.relative for error in done.outputs},
                "max_relative_error": done.max_relative_error,
            },
            "latency_ms": {name: report.median_ms for name, report in self.latency.items()},
        }

    def __str__(self) -> str:
        kind = self.file_format if self.opset is None else f"ONNX, opset {self.opset}"
        shapes = (f"{name} [{', '.join(map(str, s))}]" for name, s in self.inputs.items())
        sizes = ", ".join(map(str, self.batch_sizes))
        lines = [
            f"{self.path}: {kind}, {in_bytes(self.n_bytes)}",
            f"takes {', '.join(shapes)}; returns {', '.join(e.path for e in self.outputs)}",
            f"compared with PyTorch on {sizes} samples: largest relative error "
            f"{self.max_relative_error:.1e}",
        ]
        if self.quantization is not None:
            done = self.quantization
            lines.append(
                f"in 8-bit integers, ranges from {done.batches} batches: largest relative error "
                f"{done.max_relative_error:.1e}, {in_bytes(done.n_bytes_before)} before"
            )
        lines += [f"{name}: {report}" for name, report in self.latency.items()]
        return "\n".join(lines)


def in_bytes(n: int) -> str:
    """Write a size of a file, such as ``"1.2 MB"``."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return f"{n} bytes"
