"""Weights that are made when a forward uses them, so that no second model has to be in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from taskprune.rewrite.samples import cast

Values: TypeAlias = Callable[[str, Tensor], Tensor]
"""``(name, data) -> data`` that a parameter or buffer is to hold; the same if nothing changes."""

ROOM = 2**28
"""Bytes of weights that stay once they are made: models up to this size are made once."""


def as_they_are(_name: str, data: Tensor) -> Tensor:
    """Leave the values of a tensor alone."""
    return data


class Loading(TorchFunctionMode):
    """Makes the weights of a model in another dtype, with other values, as its forward uses them.

    Inside, a parameter holds data of its own from its first use on, as that of its module or in a
    function of torch. Those used least recently get back what they held before once :data:`ROOM` is
    full, unless the forward wrote to them. Buffers are made at the start. What the parameters held
    is never written to, and they hold it again afterwards.

    Args:
        model: A model of one's own: it may borrow the data of its parameters from another, see
            :func:`taskprune.rewrite.surgery.skeleton`.
        dtype: Of floating-point tensors; ``None`` leaves theirs.
        values: What each tensor is to hold.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None, values: Values) -> None:
        super().__init__()
        self._model = model
        self._dtype = dtype
        self._values = values
        self._names = {id(p): (name, p) for name, p in model.named_parameters()}
        self._held: dict[int, Tensor] = {}  # what loaded parameters held before
        self._versions: dict[int, int] = {}  # of those loaded, least recently used first
        self._used = 0
        self._handle: Any = None

    def __enter__(self) -> Any:
        for name, buffer in self._model.named_buffers():
            self._held[id(buffer)] = buffer.data
            buffer.data = self._made(name, buffer.data)
        for module in self._model.modules():
            # Their code is not Python, or keeps its weights in one piece.
            if isinstance(module, torch.jit.ScriptModule | nn.RNNBase):
                self._load(list(module.parameters()))
                self._versions = {}
            if isinstance(module, nn.RNNBase):
                module.flatten_parameters()
        self._handle = register_module_forward_pre_hook(
            lambda module, _: self._load(list(module._parameters.values()))
        )
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._handle.remove()
        for tensor in (*self._model.parameters(), *self._model.buffers()):
            if id(tensor) in self._held:
                tensor.data = self._held[id(tensor)]

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Make the parameters among the arguments before they are used."""
        self._load(list(_tensors((args, tuple((kwargs or {}).values())))))
        return func(*args, **(kwargs or {}))

    def _load(self, tensors: list[Any]) -> None:
        needed = [self._names[id(tensor)] for tensor in tensors if id(tensor) in self._names]
        if not needed:
            return
        with torch._C.DisableTorchFunction():
            for name, parameter in needed:
                key = id(parameter)
                if key not in self._held:
                    self._held[key] = parameter.data
                    parameter.data = self._made(name, parameter.data)
                    self._used += parameter.nbytes
                    self._versions[key] = parameter._version
                elif key in self._versions:
                    self._versions[key] = self._versions.pop(key)  # the latest comes last
            if self._used > ROOM:
                self._make_room({id(parameter) for _, parameter in needed})

    def _make_room(self, needed: set[int]) -> None:
        for key in [key for key in self._versions if key not in needed]:
            if self._used <= ROOM:
                return
            parameter = self._names[key][1]
            if parameter._version == self._versions.pop(key):
                self._used -= parameter.nbytes
                parameter.data = self._held.pop(key)

    def _made(self, name: str, data: Tensor) -> Tensor:
        made = cast(self._values(name, data), self._dtype)
        return made.clone() if made is data else made


def _tensors(arguments: Any) -> Iterator[Tensor]:
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, tuple | list):
            yield from _tensors(argument)
