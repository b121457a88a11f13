"""How a batch reaches the model: one rule for tracing, scoring, verifying and distilling."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn

from taskprune.errors import InputError

Forward: TypeAlias = Callable[[nn.Module, Any], Any]
"""``(model, batch) -> outputs``."""

Forwards: TypeAlias = Forward | Sequence[Forward] | Mapping[str, Forward]
"""One, or several that are made one after the other: see :func:`one_forward`."""


class United(list[Any]):
    """Outputs of several batches that count as those of one call, by the same paths."""


@dataclass(frozen=True, slots=True)
class OnEach:
    """The forward of several batches in place of one: their outputs are united."""

    forward: Forward

    def __call__(self, model: nn.Module, batches: Iterable[Any]) -> United:
        return United(self.forward(model, batch) for batch in batches)


@dataclass(frozen=True, slots=True)
class _InTurn:
    """Several forwards of one batch."""

    forwards: Mapping[str, Forward] | Sequence[Forward]

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        if isinstance(self.forwards, Mapping):
            return {name: call(model, batch) for name, call in self.forwards.items()}
        return [call(model, batch) for call in self.forwards]


def one_forward(forward: Forwards | None) -> Forward | None:
    """Return several forwards as one that makes them all, each on the same batch.

    What one runs and another does not is then part of the same model: the head of another task, a
    branch of a later epoch, a second entry point. Its outputs are a list of theirs, or a dict by
    their names. Costs are those of all together.

    Args:
        forward: A function ``(model, batch) -> outputs``, several, or several by name; ``None`` is
            given back, for the convention.

    Raises:
        InputError: It is something else.
    """
    if forward is None or callable(forward):
        return forward
    several = isinstance(forward, Sequence | Mapping) and not isinstance(forward, str)
    calls = forward.values() if isinstance(forward, Mapping) else forward
    if not several or not forward or not all(callable(call) for call in calls):
        raise InputError(
            "`forward` must be a function (model, batch) -> outputs, or several in a list or by "
            f"name in a dict. Found {type(forward).__name__}{'' if forward else ', empty'}."
        )
    return _InTurn(dict(forward) if isinstance(forward, Mapping) else tuple(forward))


def call_inputs(model: nn.Module, inputs: Any) -> Any:
    """Call ``model`` on example inputs: a tensor, a tuple of arguments, or a dict of keywords."""
    if isinstance(inputs, Tensor):
        return model(inputs)
    if isinstance(inputs, tuple | list):
        return model(*inputs)
    if isinstance(inputs, Mapping):
        return model(**inputs)
    raise InputError(
        "Example inputs must be a tensor, a tuple of positional arguments or a dict of keyword "
        f"arguments. Found {type(inputs).__name__}."
    )


def call_batch(model: nn.Module, batch: Any) -> Any:
    """Call ``model`` on a batch of a data loader, by the field's convention.

    A tensor is the input; a tuple or list is ``(inputs, *targets)`` and only its first element is
    passed on (itself a tensor, tuple or dict); a mapping is passed as keyword arguments. For any
    other layout hand your own ``forward=`` to the function that takes the data.
    """
    if isinstance(batch, tuple | list) and not isinstance(batch, Tensor):
        if not batch:
            raise InputError("A batch must hold at least the model's input. Found an empty one.")
        return call_inputs(model, batch[0])
    if isinstance(batch, Tensor | Mapping):
        return call_inputs(model, batch)
    raise InputError(
        f"Cannot tell how a batch of type {type(batch).__name__} reaches the model. Pass "
        "`forward=lambda model, batch: model(batch.images)` or the like."
    )
