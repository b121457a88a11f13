"""Watch a forward pass on two levels at once.

A dispatch mode sees every ATen operator with its tensors, a function mode sees the Python call
around it with the sizes as the code wrote them. Both only listen; what runs is the model's own
forward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from taskprune.graph.contentless import contentless_result
from taskprune.graph.float_uses import has_float, report_float_uses
from taskprune.graph.recorder import Recorder, caller, running_transform, source_line
from taskprune.graph.records import Call, Operation
from taskprune.graph.sizes import Computed, DimOf, SizeExpr, TracedInt

_SHAPE = torch.Tensor.shape.__get__  # type: ignore[attr-defined]

_UNSEEN = (
    torch.broadcast_tensors,
    torch.Tensor.numpy,
    torch.Tensor.__array__,
    torch.Tensor.__dlpack__,
    torch.Tensor.tolist,
)
"""Functions that ask something of their tensors without an operator that tells of it."""


class FunctionMode(TorchFunctionMode):
    """Hands out shapes with origins and remembers the call that is running."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder
        self.current: Call | None = None
        self.pending: tuple[Callable[..., Any] | str, Any, Any] | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run ``func``; see the class."""
        kwargs = kwargs or {}
        if running_transform():
            return self._inside(func, args, kwargs)
        if func == _SHAPE or func is torch.Tensor.size:
            return self._sizes(func, args, kwargs)
        if func is torch.Tensor.numel or func is torch.Tensor.nelement:
            return self._count(func, args)
        if func is torch.Tensor.__len__:
            self.recorder.escape(DimOf(self.recorder.number(args[0]), 0))
        outer = self.current, self.pending
        self.current, self.pending = None, (func, args, kwargs)
        try:
            if func in _UNSEEN:
                self.call()
            if has_float((*args, *kwargs.values())):
                self._look_at_caller()
            if has_sizes(args) or has_sizes(tuple(kwargs.values())):
                self.call()
                args, kwargs = tuple(map(plain_argument, args)), _plain(kwargs)
            return func(*args, **kwargs)
        finally:
            self.current, self.pending = outer

    def _inside(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run ``func`` on what a transform wraps: tensors without memory, with sizes of its own."""
        outer = self.current, self.pending
        self.current, self.pending = None, (running_transform(), (), {})
        try:
            return func(*map(plain_argument, args), **_plain(kwargs))
        finally:
            self.current, self.pending = outer

    def _look_at_caller(self) -> None:
        """Report the sizes behind a float argument; torch's own Python code is not looked at."""
        frame = caller()
        if frame is not None:
            with self:  # so that shapes are handed out with origins here too
                report_float_uses(frame)

    def call(self) -> Call:
        """Return the record of the call that is running, made when it is first asked for."""
        if self.current is not None:
            return self.current
        function, args, kwargs = self.pending or ("", (), {})
        call = Call(
            function=function if isinstance(function, str) else getattr(function, "__name__", ""),
            args=tuple(self.recorder.record_argument(v) for v in args),
            kwargs={name: self.recorder.record_argument(v) for name, v in kwargs.items()},
            module=self.recorder.module,
            source=source_line(),
        )
        self.recorder.calls.append(call)
        if self.pending is not None:
            self.current = call
        return call

    def _sizes(self, func: Any, args: Any, kwargs: Any) -> Any:
        result = func(*(plain_argument(v) for v in args), **kwargs)
        tensor = args[0]
        if type(result) is int:
            dim = int(args[1] if len(args) > 1 else kwargs["dim"]) % tensor.dim()
            return self._traced(result, DimOf(self.recorder.number(tensor), dim))
        if not result:
            return result
        number = self.recorder.number(tensor)
        return torch.Size([self._traced(int(n), DimOf(number, i)) for i, n in enumerate(result)])

    def _count(self, func: Any, args: Any) -> Any:
        result, number, rank = func(*args), self.recorder.number(args[0]), args[0].dim()
        expr: SizeExpr | None = None
        for dim in range(rank):
            leaf = DimOf(number, dim)
            expr = leaf if expr is None else Computed("*", expr, leaf)
        return result if expr is None else self._traced(int(result), expr)

    def _traced(self, value: int, expr: SizeExpr) -> TracedInt:
        return TracedInt(value, expr, self.recorder)


def has_sizes(values: tuple[Any, ...]) -> bool:
    """Whether any integer with an origin is among the arguments."""
    for value in values:
        if isinstance(value, TracedInt):
            return True
        if isinstance(value, tuple | list) and has_sizes(tuple(value)):
            return True
        if isinstance(value, slice) and has_sizes((value.start, value.stop, value.step)):
            return True
    return False


class DispatchMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records every ATen operator that returns or changes a tensor."""

    def __init__(self, recorder: Recorder, functions: FunctionMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recorder = recorder
        self.functions = functions

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run ``func`` and record it."""
        kwargs = kwargs or {}
        if func.namespace == "prim":
            return func(*args, **kwargs)
        if torch.is_inference_mode_enabled():
            # Without autograd torch does not take composed operators apart before they get here.
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        recorder = self.recorder
        named = _named_arguments(func, args, kwargs)
        written = _written(func, named)
        for tensor in written:
            if recorder.is_given(tensor):
                recorder.tensor_guard.about_to_write(tensor)
        arguments = {name: recorder.record_argument(v) for name, v in named.items()}
        mutates = tuple(recorder.number(t) for t in written)
        result = None
        if not recorder.is_real:
            result = contentless_result(func, named)
        if result is None:
            result = func(*args, **kwargs)
        returned = result if isinstance(result, tuple | list) else (result,)
        if torch.Tag.inplace_view in func.tags or recorder.resized(written):
            # Same memory, other dims: from now on, the object is another value.
            mutates = ()
            recorder.forget((*returned, *written))
        if mutates or any(isinstance(r, Tensor) for r in returned):
            outputs = tuple(
                recorder.number(r, "result") if isinstance(r, Tensor) else None for r in returned
            )
            recorder.operations.append(
                Operation(
                    str(func), arguments, outputs, mutates, self.functions.call(), recorder.mode
                )
            )
        return result


def _named_arguments(func: Any, args: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for position, argument in enumerate(func._schema.arguments):
        if position < len(args):
            named[argument.name] = args[position]
        elif argument.name in kwargs:
            named[argument.name] = kwargs[argument.name]
        elif argument.has_default_value():
            named[argument.name] = argument.default_value
    return named


def _written(func: Any, named: Mapping[str, Any]) -> list[Tensor]:
    if not func._schema.is_mutable:
        return []
    written: list[Tensor] = []
    for argument in func._schema.arguments:
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = named.get(argument.name)
            tensors = value if isinstance(value, tuple | list) else (value,)
            written += [t for t in tensors if isinstance(t, Tensor)]
    return written


def _plain(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: plain_argument(value) for name, value in kwargs.items()}


def plain_argument(value: Any) -> Any:
    """Return an argument as torch would have got it without the trace: integers without origin.

    Torch's own Python code compares and divides sizes; those uses say nothing about the model.
    """
    if isinstance(value, TracedInt):
        return int.__int__(value)
    if isinstance(value, torch.Size):
        return torch.Size([plain_argument(v) for v in value])
    if type(value) is tuple or type(value) is list:
        return type(value)(plain_argument(v) for v in value)
    if isinstance(value, slice):
        return slice(*(plain_argument(v) for v in (value.start, value.stop, value.step)))
    return value
