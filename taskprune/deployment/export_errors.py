"""What an exporter says when it fails, in a sentence that a user can act upon."""

from __future__ import annotations

import io
import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from torch import nn

from taskprune.errors import ExportError, TaskPruneError

_ADVICE = {
    "captured": (
        "A model that is exported takes and returns tensors, in tuples, lists or dicts, and has "
        "`torch.where` or `torch.cond` where others branch on the values of a tensor (`if`, "
        "`.item()`)"
    ),
    "compiled": (
        "`torch.compile` takes a C++ compiler on the CPU and Triton on a GPU; `runtime='eager'` "
        "and 'onnx' take neither"
    ),
    "translated to": "A `.pt2` file takes any operator",
    "run by": (
        "It has all operators for float32 and one sample or many: export `model.float()`, and look "
        "for code that takes one number of samples for granted"
    ),
}


@contextmanager
def failing(what: str, model: nn.Module, other: str = "") -> Iterator[None]:
    """Name what failed, where in the user's code, and what to do about it.

    Args:
        what: What the model could not be: ``"captured"``, ``"translated to"`` or ``"run by"``.
        model: The user's.
        other: To or by what.
    """
    try:
        yield
    except TaskPruneError:
        raise
    except Exception as error:
        name = type(model).__name__
        text = f"{error}\n{error.__cause__ or ''}"
        if "Constraints violated" in text:
            raise ExportError(
                f"`{name}` does not take any number of samples: its code writes the batch size "
                "down, or branches on it. Use `x.shape[0]` or -1 in place of numbers, or export "
                "for the size of the example with `dynamic_batch=False`."
            ) from error
        raise ExportError(
            f"`{name}` could not be {f'{what} {other}'.strip()}: {_first_cause(text)}"
            f"{_place(text)}. {_ADVICE[what]}."
        ) from error


def _first_cause(text: str) -> str:
    """Return the sentence of an exporter's message that names what is wrong."""
    if known := re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", text):
        return f"there is no ONNX for the operator `{known[1]}`"
    if "data-dependent" in text:
        return "its code branches on the value of a tensor"
    plain = re.sub(r"\x1b\[[0-9;]*m|^\[ONNXRuntimeError\] : \d+ : \w+ : |\S+\.tmp ", "", text)
    line = next((line.strip() for line in plain.splitlines() if line.strip()), "no reason given")
    return line.split(". ")[0].rstrip(".")


def _place(text: str) -> str:
    """Return where in the user's code it happened, if the message says so."""
    places = re.findall(r'File "([^"]+)", line (\d+)', text)
    own = [p for p in places if f"{os.sep}torch{os.sep}" not in p[0]]
    return f" ({Path(own[-1][0]).name}:{own[-1][1]})" if own else ""


@contextmanager
def undisturbed() -> Iterator[None]:
    """Keep back what the exporters say of their own insides; what they raise says it as well."""
    before = logging.root.manager.disable
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)
