"""What runs a model where it is deployed: PyTorch as it is, compiled, or ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypeAlias, cast, get_args

import torch
from torch import nn

from taskprune.calling.forward import Forward
from taskprune.deployment.captured_call import captured, run
from taskprune.deployment.export_errors import failing, undisturbed
from taskprune.deployment.file_formats import KINDS
from taskprune.deployment.onnx_files import OnnxModel, write_onnx
from taskprune.errors import InputError
from taskprune.restore.process import preserved_rng
from taskprune.rewrite.surgery import skeleton

Runtime: TypeAlias = Literal["eager", "compiled", "onnx"]
"""``"eager"``: PyTorch, operator by operator; ``"compiled"``: ``torch.compile``; ``"onnx"``: ONNX
Runtime on the CPU, in float32."""

MOST_COMPILED = 1000
"""Models of one class that may be compiled: PyTorch stops at eight, and goes on uncompiled."""


def checked_runtime(runtime: Any, device: torch.device | None = None) -> Runtime:
    """Return the name of a runtime that is there.

    Args:
        runtime: The name.
        device: Where the model is, if that is known.

    Raises:
        InputError: There is no such runtime, or it does not run on the device.
        MissingDependencyError: ONNX Runtime takes the extra ``onnx``.
    """
    if runtime not in get_args(Runtime):
        raise InputError(
            "`runtime` must say what will run the model: 'eager', 'compiled' or 'onnx'. Found "
            f"{runtime!r}."
        )
    if runtime == "onnx":
        KINDS[".onnx"].check_installed()
        if device is not None and device.type != "cpu":
            raise InputError(
                "Latency in ONNX Runtime is measured on the CPU. Found a model on "
                f"`{device}`: move model and inputs there, or choose another `runtime`."
            )
    chosen: Runtime = runtime
    return chosen


def in_runtime(model: nn.Module, example: Any, forward: Forward, runtime: Runtime) -> nn.Module:
    """Return a module that is called as the model is, and runs in a runtime.

    Args:
        model: Any module; left as it was.
        example: What it will run on: shapes are those of the example and no others.
        forward: ``(model, example) -> outputs``.
        runtime: Which one.

    Raises:
        ExportError: The model cannot be translated.
        InputError: The forward calls parts of the model in place of the model.
    """
    if runtime == "eager":
        return model
    own = skeleton(model).eval()
    if runtime == "compiled":  # at its first call, see `running`
        return cast(nn.Module, torch.compile(own, dynamic=False))
    with preserved_rng(), undisturbed():
        call = captured(own, forward, example)
        with failing("captured", model), torch.no_grad():
            program = torch.export.export(own, call.args, dict(call.kwargs), strict=False)
        with TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            with failing("translated to", model, "ONNX"):
                write_onnx(program, path, outputs=None)
            with failing("run by", model, "ONNX Runtime"):
                return OnnxModel(path, run(own, call))


@contextmanager
def running(runtime: Runtime, model: nn.Module) -> Iterator[None]:
    """Run models of :func:`in_runtime` in here: compiled ones are compiled at their first call.

    Raises:
        ExportError: The model cannot be compiled, or the runtime fails at it.
    """
    if runtime == "eager":
        yield
        return
    most = {"recompile_limit": MOST_COMPILED, "accumulated_recompile_limit": MOST_COMPILED}
    what = ("compiled", "") if runtime == "compiled" else ("run by", "ONNX Runtime")
    with preserved_rng(), failing(what[0], model, what[1]), torch._dynamo.config.patch(most):
        yield
