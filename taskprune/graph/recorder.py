"""The growing record of a trace: values, operators, and where in the model they ran."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils.weak import WeakTensorKeyDictionary

from taskprune.calling.outputs import flatten_outputs
from taskprune.graph.records import (
    Call,
    GraphInput,
    GraphOutput,
    Guard,
    ModuleOutput,
    Operation,
    Ref,
    Size,
    Slice,
    TensorValue,
    ValueKind,
)
from taskprune.graph.sizes import Relation, SizeExpr, TracedInt
from taskprune.restore.borrow import TensorGuard
from taskprune.restore.modes import Mode

_LIBRARIES = frozenset({"torch", "contextlib", "importlib"})
_OWN_ROOMS = ("taskprune.graph", "taskprune.calling.forward")


@dataclass(frozen=True, slots=True)
class Mark:
    """A position in the recording to go back to."""

    values: int
    operations: int
    calls: int
    guards: int
    module_outputs: int
    inputs: int
    outputs: int


class Recorder:
    """Collects what the two modes see; one for all passes of a trace."""

    def __init__(self, model: nn.Module) -> None:
        self.values: list[TensorValue] = []
        self.operations: list[Operation] = []
        self.calls: list[Call] = []
        self.guards: list[Guard] = []
        self.module_outputs: list[ModuleOutput] = []
        self.inputs: list[GraphInput] = []
        self.outputs: list[GraphOutput] = []
        self.mode: Mode = "eval"
        self._numbers: MutableMapping[Tensor, int] = _weak_tensor_keys()
        self._storages: dict[int, int] = {}
        self._alive: list[Tensor] = []
        self._paths = {id(module): path for path, module in model.named_modules()}
        self._stack: list[str] = []
        self.tensor_guard = TensorGuard()
        self.is_real = False
        self.parameters = self._enter(model.named_parameters(), "parameter")
        self.buffers = self._enter(model.named_buffers(), "buffer")

    def _enter(self, tensors: Iterator[tuple[str, Tensor]], kind: ValueKind) -> dict[str, int]:
        return {name: self.number(tensor, kind, name) for name, tensor in tensors}

    # -- values ----------------------------------------------------------------------------

    def number(self, tensor: Tensor, kind: ValueKind = "outside", name: str = "") -> int:
        """Return the value number of ``tensor``, entering it when it is new."""
        known = self._numbers.get(tensor)
        if known is not None:
            return known
        number = len(self.values)
        with torch._C.DisableTorchFunction():
            shape = tuple(int(n) for n in tensor.shape)
            storage = self._storage_of(tensor, number)
            floating = tensor.is_floating_point() or tensor.is_complex()
            dtype = tensor.dtype
            mask = dtype in (torch.bool, torch.uint8)
            strided = tensor.layout == torch.strided
            strides = tuple(int(n) for n in tensor.stride()) if strided else ()
        self.values.append(
            TensorValue(number, shape, kind, name, floating, mask, storage, dtype, strides)
        )
        self._numbers[tensor] = number
        if not self.is_real:
            # Fake tensors weigh nothing; alive, none of them shares an address with a later one.
            self._alive.append(tensor)
        return number

    def _storage_of(self, tensor: Tensor, number: int) -> int:
        if tensor.layout != torch.strided:
            return number
        address = tensor.untyped_storage()._cdata
        return self._storages.setdefault(address, number)

    def is_given(self, tensor: Tensor) -> bool:
        """Whether the tensor, or one whose memory it shares, existed before the trace."""
        known = self._numbers.get(tensor)
        return known is None or self.values[self.values[known].storage].kind != "result"

    def resized(self, tensors: Iterable[Tensor]) -> bool:
        """Whether a tensor has other dims than when it was entered, as an ``out=`` may get."""
        with torch._C.DisableTorchFunction():
            return any(tuple(t.shape) != self.values[self._numbers[t]].shape for t in tensors)

    def forget(self, tensors: Iterable[Any]) -> None:
        """Take these tensors for new ones when they are seen next."""
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                self._numbers.pop(tensor, None)

    # -- undoing ---------------------------------------------------------------------------

    def mark(self) -> Mark:
        """Return the present position."""
        return Mark(
            len(self.values),
            len(self.operations),
            len(self.calls),
            len(self.guards),
            len(self.module_outputs),
            len(self.inputs),
            len(self.outputs),
        )

    def rewind(self, mark: Mark) -> None:
        """Forget all that was recorded since ``mark``."""
        del self.values[mark.values :]
        del self.operations[mark.operations :]
        del self.calls[mark.calls :]
        del self.guards[mark.guards :]
        del self.module_outputs[mark.module_outputs :]
        del self.inputs[mark.inputs :]
        del self.outputs[mark.outputs :]
        for tensor in [t for t, n in self._numbers.items() if n >= mark.values]:
            del self._numbers[tensor]
        self._storages = {a: n for a, n in self._storages.items() if n < mark.values}
        self._alive.clear()
        self._stack.clear()

    # -- what sizes report -------------------------------------------------------------------

    def guard(self, left: SizeExpr, right: SizeExpr, relation: Relation) -> None:
        """Record that the code relies on how two sizes compare."""
        if left != right:
            self.guards.append(Guard(left, right, self.module, source_line(), relation))

    def escape(self, expr: SizeExpr) -> None:
        """Record that a size was used as a number."""
        self.guards.append(Guard(expr, None, self.module, source_line()))

    # -- modules -----------------------------------------------------------------------------

    @property
    def module(self) -> str:
        """Path of the innermost module whose forward is running."""
        return self._stack[-1] if self._stack else ""

    @contextmanager
    def watching_modules(self, model: nn.Module) -> Iterator[None]:
        """Follow which module is running, what each returns, and what the model is called with."""

        def start(module: nn.Module, args: Any, kwargs: Any) -> None:
            given = flatten_outputs(_by_name(module, args, kwargs))
            self.inputs += [GraphInput(p, self.number(t), self.mode) for p, t in given.items()]

        def enter(module: nn.Module, _args: Any) -> None:
            self._stack.append(self._paths.get(id(module), self.module))

        def leave(module: nn.Module, _args: Any, output: Any) -> None:
            if id(module) in self._paths and not running_transform():
                path = self._paths[id(module)]
                parts = {"": output} if isinstance(output, Tensor) else flatten_outputs(output)
                self.module_outputs += [
                    ModuleOutput(path, self.number(tensor), self.mode, part)
                    for part, tensor in parts.items()
                ]
            if self._stack:
                self._stack.pop()

        handles = [
            model.register_forward_pre_hook(start, with_kwargs=True),
            register_module_forward_pre_hook(enter),
            register_module_forward_hook(leave, always_call=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._stack.clear()

    # -- arguments -----------------------------------------------------------------------------

    def record_argument(self, value: Any) -> Any:
        """Turn an argument into plain data."""
        if isinstance(value, Tensor):
            return Ref(self.number(value))
        if isinstance(value, TracedInt):
            number = int.__int__(value)
            return Size(number, value.expr) if value.observer is self else number
        if isinstance(value, tuple | list):
            return tuple(self.record_argument(v) for v in value)
        if isinstance(value, slice):
            return Slice(*(self.record_argument(v) for v in (value.start, value.stop, value.step)))
        if value is None or value is Ellipsis or isinstance(value, bool | int | float | str):
            return value
        return str(value)


def _weak_tensor_keys() -> Any:
    """Return a mapping that tells tensors apart by identity and keeps none alive."""
    return WeakTensorKeyDictionary()


def _by_name(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by the names that the model's forward has for them."""
    try:
        signature = inspect.signature(model.forward)
        bound = signature.bind(*args, **kwargs).arguments
    except (TypeError, ValueError):  # the call itself says what is wrong, or C code has no names
        return {**{str(position): value for position, value in enumerate(args)}, **kwargs}
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            bound.update(bound.pop(name, {}))
    return dict(bound)


def running_transform() -> str:
    """Return the function transform that is running, such as ``torch.vmap``; empty if none is."""
    interpreter = torch._C._functorch.peek_interpreter_stack()
    return "" if interpreter is None else f"torch.func.{interpreter.key().name.lower()}"


def source_line() -> str:
    """Return ``file.py:line`` of the innermost frame outside torch and this recorder."""
    frame = caller()
    if frame is None:
        return ""
    path = frame.f_code.co_filename.replace("\\", "/").split("/")
    return f"{'/'.join(path[-2:])}:{frame.f_lineno}"


def caller() -> FrameType | None:
    """Return the innermost frame outside torch and this recorder."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.split(".", 1)[0] not in _LIBRARIES and not module.startswith(_OWN_ROOMS):
            return frame
        frame = frame.f_back
    return None
