"""Run a model once before training, and say what is wrong where its types do not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from taskprune.calling.forward import Forward
from taskprune.calling.outputs import flatten_outputs
from taskprune.distillation.taps import Side
from taskprune.errors import InputError
from taskprune.restore.lending import lent


def probing(
    forward: Forward, side: Side, autocast: Callable[[], AbstractContextManager[Any]]
) -> Forward:
    """Return ``forward`` as training runs it: under autocast, with errors that name the types.

    Args:
        forward: ``(model, batch) -> outputs``.
        side: Which model it is called with.
        autocast: Accelerate's, of the run's precision.
    """

    def run(model: nn.Module, batch: Any) -> Any:
        with lent(batch), autocast():
            try:
                return forward(model, batch)
            except RuntimeError as error:
                own = _types(model.parameters())
                given = _types(flatten_outputs(batch).values())
                if not given or own == given:
                    raise
                raise InputError(
                    f"The {side} cannot run on the batch: its parameters are {_named(own)}, the "
                    f"batch is {_named(given)} ({str(error).splitlines()[0]}). Convert the {side} "
                    f"(`{side}.float()`), or the batch in `forward=`."
                ) from error

    return run


def _types(values: Iterable[Any]) -> set[torch.dtype]:
    return {v.dtype for v in values if isinstance(v, Tensor) and v.is_floating_point()}


def _named(types: set[torch.dtype]) -> str:
    return " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in types))
