"""Find, while a model runs, which calls read channels through a parameter.

A function mode sees the functions of ``torch`` with their arguments whoever calls them: modules,
functional code, shared and repeated layers. A parameter is known by its identity, also behind a
transposition, a concatenation with others, or a matrix picked out of a stack. What is not
recognised is never guessed at: a parameter that anything else makes a tensor of is reported with
the name of that function.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from taskprune.compensation.picks import located, part_of, picked, spelled
from taskprune.compensation.reads import (
    ConvGeometry,
    Geometry,
    ProductGeometry,
    StackGeometry,
    TransposedGeometry,
)
from taskprune.compensation.recognised_calls import RECOGNISERS, Recognised


@dataclass(eq=False, slots=True)
class Read:
    """One call that reads channels through one parameter.

    Attributes:
        name: Of the parameter, or of the part of it that was picked out of it.
        geometry: How it reads.
        x: The channels, those of this parameter alone.
        bias: Name of the bias that is added; ``None`` without one, or if it is no parameter, or
            picked by other numbers than the weight.
        place: ``(dim, first, size)``: where in the call's output this parameter's part is;
            ``None``: everywhere.
        block: Numbers of what was picked out of the parameter; empty where it is read whole.
        given: All tensors that the call was given.
        y: The call's whole output, after it has run.
    """

    name: str
    geometry: Geometry
    x: Tensor
    bias: str | None = None
    place: tuple[int, int, int] | None = None
    block: tuple[int, ...] = ()
    given: tuple[Tensor, ...] = ()
    y: Tensor | None = None

    def own(self, whole: Tensor) -> Tensor:
        """Return this parameter's part of the call's output, or of a gradient by it."""
        return whole if self.place is None else whole.narrow(*self.place)


class Listener(Protocol):
    """What is told of reads and of everything else."""

    def about_to_read(self, reads: tuple[Read, ...]) -> None:
        """Take note before the call runs; may change the weights that it runs with."""

    def has_read(self, reads: tuple[Read, ...]) -> None:
        """Take note of the output."""

    def has_called(self, function: Any, args: tuple[Any, ...], kwargs: Any, result: Any) -> None:
        """Take note of any call at all."""


@dataclass(frozen=True, slots=True)
class _Weight:
    """A tensor that is nothing but parameters.

    Attributes:
        names: One, or several side by side along dim 0; of parameters, or parts picked out of them.
        sizes: Of each along that dim.
        is_transposed: Whether its last two dims are exchanged.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    is_transposed: bool = False


class ReadingMode(TorchFunctionMode):
    """Tells a listener of all calls that read channels through known parameters.

    Args:
        parameters: All parameters of the model by name.
        dims: For those that may read, the dims along which each loses channels.
        listener: Is told.

    Attributes:
        unrecognised: ``{parameter: name of a function that makes something else of it}``.
        elsewhere: Biases, or stacks of such, that anything but a reader takes: no shift is theirs.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        dims: Mapping[str, Container[int]],
        listener: Listener,
    ) -> None:
        super().__init__()
        self.listener = listener
        self.unrecognised: dict[str, str] = {}
        self.elsewhere: set[str] = set()
        self._parameters, self._dims = parameters, dims
        # Those that lose nothing as well: they may run side by side with one that does.
        self._weights = {
            id(tensor): _Weight((name,), (len(tensor),))
            for name, tensor in parameters.items()
            if name in dims or tensor.ndim > 1
        }
        self._biases = {
            id(tensor): _Weight((name,), (len(tensor),))
            for name, tensor in parameters.items()
            if tensor.ndim == 1
        }
        self._held: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        reads = self._reads(func, args, kwargs)
        if reads:
            self.listener.about_to_read(reads)
            self._renew(args, kwargs)
        result = func(*args, **kwargs)
        if reads:
            whole = result[0] if isinstance(result, tuple) else result
            for read in reads:
                read.y = whole
            self.listener.has_read(reads)
        else:
            self._remember(func, args, kwargs, result)
        self._note_biases(args, kwargs, reads, result)
        self.listener.has_called(func, args, kwargs, result)
        return result

    def _reads(self, func: Any, args: tuple[Any, ...], kwargs: Any) -> tuple[Read, ...]:
        recognise = RECOGNISERS.get(func)
        if recognise is None:
            return ()
        found: list[Read] = []
        try:
            calls = list(recognise(*args, **kwargs))
        except TypeError:
            return ()
        for call in calls:
            weight = self._weights.get(id(call.weight))
            if weight is not None:
                found += self._parts(call, weight)
        for read in found:
            read.given = tuple(_tensors(args, kwargs))
        return tuple(found)

    def _parts(self, call: Recognised, weight: _Weight) -> Iterable[Read]:
        geometry = call.geometry
        if weight.is_transposed:
            if not isinstance(geometry, ProductGeometry | StackGeometry):
                return
            other = {ProductGeometry: 1, StackGeometry: 3}[type(geometry)] - geometry.dim
            geometry = type(geometry)(other, geometry.by_output)
        biases = self._biases_of(call, weight)
        if call.bias is not None and None in biases:
            # What is added is not known, so what the product makes is not what the call returns.
            if not isinstance(geometry, ProductGeometry | StackGeometry):
                return
            geometry = type(geometry)(geometry.dim, by_output=False)
        if len(weight.names) == 1:
            stack, block = located(weight.names[0], self._parameters)
            name = spelled(stack, (*block, *call.block))
            yield from self._read(name, geometry, call.x, biases[0], call.place)
            return
        if not call.block:
            yield from self._joined(call, geometry, weight, biases)

    def _biases_of(self, call: Recognised, weight: _Weight) -> tuple[str | None, ...]:
        """Return the bias of each parameter that a call reads through."""
        bias = self._biases.get(id(call.bias)) if call.bias is not None else None
        if bias is None or len(bias.names) != len(weight.names):
            return (None,) * len(weight.names)
        pairs = zip(bias.names, weight.names, strict=True)
        return tuple(own if self._block(own) == self._block(name) else None for own, name in pairs)

    def _block(self, name: str) -> tuple[int, ...]:
        return located(name, self._parameters)[1]

    def _read(
        self,
        name: str,
        geometry: Geometry,
        x: Tensor,
        bias: str | None,
        place: tuple[int, int, int] | None,
    ) -> Iterable[Read]:
        """Return what is read through one parameter, if it is along a dim that loses channels."""
        stack, block = located(name, self._parameters)
        if geometry.dim + len(block) in self._dims.get(stack, ()):
            yield Read(name, geometry, x, bias, place, block)

    def _joined(
        self,
        call: Recognised,
        geometry: Geometry,
        weight: _Weight,
        biases: tuple[str | None, ...],
    ) -> Iterable[Read]:
        """Take apart a call with several parameters side by side."""
        n_parts = len(weight.names)
        x, first = call.x, 0
        for number, (name, size) in enumerate(zip(weight.names, weight.sizes, strict=True)):
            own, part, place = geometry, x, None
            if isinstance(geometry, ConvGeometry | TransposedGeometry):
                if geometry.groups != n_parts:
                    return
                rank = len(geometry.kernel)
                own = type(geometry)(**{**vars(geometry), "groups": 1})
                width = x.shape[-rank - 1] // n_parts
                part = x.narrow(-rank - 1, number * width, width)
                made = size if isinstance(geometry, ConvGeometry) else call.weight.shape[1]
                place = (-rank - 1, number * made, made)
            elif isinstance(geometry, ProductGeometry) and geometry.dim == 1:
                place = (-1, first, size)
            else:
                return
            yield from self._read(name, own, part, biases[number], place)
            first += size

    def _remember(self, func: Any, args: tuple[Any, ...], kwargs: Any, result: Any) -> None:
        """Follow parameters through transpositions and concatenations; note all other uses."""
        names = [w.names for w in self._known(args, kwargs)]
        if not names or not has_tensor(result):
            if func is torch.cat or func is torch.concat:
                self._follow_biases(args, result)
            return
        if self._follow_picks(func, args, kwargs, result):
            return
        if isinstance(result, Tensor):
            derived = self._derived(func, args, kwargs)
            if derived is not None:
                self._weights[id(result)] = derived
                self._held.append(result)
                return
            if any(result is value for value in args):  # `requires_grad_` and the like
                return
        stacks = (located(name, self._parameters)[0] for group in names for name in group)
        for name in stacks:
            if name in self._dims:
                self.unrecognised.setdefault(name, getattr(func, "__name__", str(func)))
            else:
                self.elsewhere.add(name)

    def _renew(self, args: tuple[Any, ...], kwargs: Any) -> None:
        """Give copies of parameters side by side the values that these have by now."""
        if torch.is_grad_enabled():  # nobody changes weights there
            return
        for value in (*args, *kwargs.values()):
            joined = self._weights.get(id(value)) or self._biases.get(id(value))
            if joined is not None and len(joined.names) > 1:
                value.copy_(torch.cat([part_of(self._parameters, n) for n in joined.names]))

    def _note_biases(
        self, args: tuple[Any, ...], kwargs: Any, reads: tuple[Read, ...], result: Any
    ) -> None:
        """Note biases that a call adds to something else than what a reader makes."""
        if any(result is value for value in args) or id(result) in self._biases:
            return  # nothing was made, or they lie side by side
        if has_tensor(result):
            own = {read.bias for read in reads}
            found = [self._biases[id(v)] for v in _tensors(args, kwargs) if id(v) in self._biases]
            self.elsewhere.update(n for bias in found for n in bias.names if n not in own)

    def _known(self, args: tuple[Any, ...], kwargs: Any) -> list[_Weight]:
        return [self._weights[id(v)] for v in _tensors(args, kwargs) if id(v) in self._weights]

    def _derived(self, func: Any, args: tuple[Any, ...], kwargs: Any) -> _Weight | None:
        first = args[0] if args else None
        if func in _TRANSPOSITIONS and isinstance(first, Tensor):
            if func in _BY_DIMS:
                dims = [d % first.ndim for d in (*args[1:], *kwargs.values())]
                if sorted(dims) != [first.ndim - 2, first.ndim - 1]:
                    return None
            elif func not in _MATRICES and first.ndim != 2:
                return None
            known = self._weights[id(first)]
            if len(known.names) > 1:
                return None
            return _Weight(known.names, known.sizes, not known.is_transposed)
        if (func is torch.cat or func is torch.concat) and isinstance(first, list | tuple):
            return self._side_by_side(self._weights, args, kwargs)
        return None

    def _follow_picks(self, func: Any, args: tuple[Any, ...], kwargs: Any, result: Any) -> bool:
        """Follow matrices, and rows of biases, out of a stack; return whether these are such."""
        parts = picked(func, args, kwargs, result)
        known = self._weights.get(id(args[0])) if parts else None
        if known is None or len(known.names) > 1:
            return False
        stack, block = located(known.names[0], self._parameters)
        found = [(part, spelled(stack, (*block, *numbers))) for part, numbers in parts]
        for part, name in found:
            is_row = part.ndim == 1 and not known.is_transposed and stack not in self._dims
            if (part.ndim < 2 and not is_row) or name in self._parameters:
                return False
        for part, name in found:
            of = self._weights if part.ndim > 1 else self._biases
            of[id(part)] = _Weight((name,), (len(part),), known.is_transposed)
            self._held.append(part)
        return True

    def _follow_biases(self, args: tuple[Any, ...], result: Any) -> None:
        joined = self._side_by_side(self._biases, args, {})
        if joined is not None:
            self._biases[id(result)] = joined
            self._held.append(result)

    @staticmethod
    def _side_by_side(
        known: Mapping[int, _Weight], args: tuple[Any, ...], kwargs: Any
    ) -> _Weight | None:
        dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
        parts = [known.get(id(v)) for v in args[0]]
        if dim != 0 or any(p is None or len(p.names) > 1 or p.is_transposed for p in parts):
            return None
        whole = [p for p in parts if p is not None]
        return _Weight(tuple(p.names[0] for p in whole), tuple(p.sizes[0] for p in whole))


def _tensors(args: tuple[Any, ...], kwargs: Any) -> list[Tensor]:
    """Return the tensors among arguments, also those in lists."""
    values = [v for value in (*args, *kwargs.values())
              for v in (value if isinstance(value, list | tuple) else (value,))]  # fmt: skip
    return [v for v in values if isinstance(v, Tensor)]


def has_tensor(result: Any) -> bool:
    """Whether something is a tensor, or a list or tuple with one in it."""
    if isinstance(result, tuple | list):
        return any(has_tensor(v) for v in result)
    return isinstance(result, Tensor)


_T: Any = Tensor
_MATRICES = {_T.mT.__get__, _T.mH.__get__}
_BY_DIMS = {torch.transpose, _T.transpose, torch.swapaxes, _T.swapaxes}
_TRANSPOSITIONS = {torch.t, _T.t, _T.T.__get__, _T.H.__get__} | _MATRICES | _BY_DIMS
