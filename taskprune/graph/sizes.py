"""Sizes that remember where they came from.

Python code passes sizes to ``view``, ``split``, ``expand`` or slices. After pruning such a number
is right only if it follows the change, and whether it does depends on its origin: the shape of a
tensor follows by itself, an attribute of a module can be stored anew, a literal stays. During a
trace, shapes and integer attributes are therefore handed out as :class:`TracedInt`, an ``int``
that carries its origin through arithmetic.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

Arithmetic: TypeAlias = Literal["+", "-", "*", "//", "%"]
Relation: TypeAlias = Literal["==", "!=", "<", "<="]


@dataclass(frozen=True, slots=True)
class Constant:
    """A number that the code spells out."""

    value: int

    def __str__(self) -> str:
        return str(self.value)


@dataclass(frozen=True, slots=True)
class DimOf:
    """The length of dim ``dim`` of value ``value`` when the forward runs."""

    value: int
    dim: int

    def __str__(self) -> str:
        return f"shape[{self.dim}]"


@dataclass(frozen=True, slots=True)
class AttributeOf:
    """An integer that a module stores, at ``path`` (attribute name, then keys or positions)."""

    module: str
    path: tuple[str | int, ...]

    def __str__(self) -> str:
        name, *keys = self.path
        return f"{self.module or 'model'}.{name}" + "".join(f"[{key!r}]" for key in keys)


@dataclass(frozen=True, slots=True)
class Computed:
    """``left operator right``."""

    operator: Arithmetic
    left: SizeExpr
    right: SizeExpr

    def __str__(self) -> str:
        return f"({self.left} {self.operator} {self.right})"


SizeExpr: TypeAlias = Constant | DimOf | AttributeOf | Computed


def leaves(expr: SizeExpr) -> Iterator[Constant | DimOf | AttributeOf]:
    """Iterate over the origins that ``expr`` reads, left to right."""
    if isinstance(expr, Computed):
        yield from leaves(expr.left)
        yield from leaves(expr.right)
    else:
        yield expr


def is_literal(expr: SizeExpr) -> bool:
    """Whether ``expr`` is made of spelled-out numbers alone."""
    return all(isinstance(leaf, Constant) for leaf in leaves(expr))


class SizeObserver(Protocol):
    """Hears of uses of a size that are not arithmetic."""

    def guard(self, left: SizeExpr, right: SizeExpr, relation: Relation) -> None:
        """The code compared two sizes, found them so related and went on from there."""

    def escape(self, expr: SizeExpr) -> None:
        """The size turned into a number of which nothing is known any more."""


def _followed(sign: Arithmetic, name: str) -> tuple[Any, Any]:
    """Return the methods of an operator that keeps the origin: ``size + 1`` and ``1 + size``."""

    def method(own: Callable[[int, Any], Any], *, swap: bool) -> Callable[[TracedInt, Any], Any]:
        return lambda self, other: self._combine(sign, other, swap, own(self, other))

    return (
        method(getattr(int, f"__{name}__"), swap=False),
        method(getattr(int, f"__r{name}__"), swap=True),
    )


def _given_up(function: Callable[..., Any]) -> tuple[Any, Any]:
    """Return the methods of an operator after which nothing is known of the size."""
    return (
        lambda self, other, *more: function(self._escaped(), other, *more),
        lambda self, other, *more: function(other, self._escaped(), *more),
    )


class TracedInt(int):
    """An ``int`` with an origin.

    Sums, differences, products, floor divisions, remainders and shifts keep it. Comparisons are
    reported with their outcome. Whatever else turns it into a number (a square root, a true
    division) is reported as an escape: the computation depends on the value, hence the value must
    stay. Some uses never ask the integer and go unheard: positions in a list, ``range``, text, and
    a float on the left as in ``1.0 / size``.
    """

    expr: SizeExpr
    observer: SizeObserver

    def __new__(cls, value: int, expr: SizeExpr, observer: SizeObserver) -> TracedInt:
        """Return ``value`` with its origin attached."""
        self = super().__new__(cls, value)
        self.expr = expr
        self.observer = observer
        return self

    def _combine(self, operator: Arithmetic, other: object, swap: bool, value: Any) -> Any:
        if value is NotImplemented or not isinstance(other, int) or isinstance(other, bool):
            if isinstance(other, float):
                self.observer.escape(self.expr)
            return value
        theirs = expr_of(other, self.observer)
        left, right = (theirs, self.expr) if swap else (self.expr, theirs)
        return TracedInt(value, Computed(operator, left, right), self.observer)

    __add__, __radd__ = _followed("+", "add")
    __sub__, __rsub__ = _followed("-", "sub")
    __mul__, __rmul__ = _followed("*", "mul")
    __floordiv__, __rfloordiv__ = _followed("//", "floordiv")
    __mod__, __rmod__ = _followed("%", "mod")

    def __neg__(self) -> Any:
        value = super().__neg__()
        return TracedInt(value, Computed("-", Constant(0), self.expr), self.observer)

    def __pos__(self) -> Any:
        return self

    __trunc__ = __floor__ = __ceil__ = __pos__

    def _escaped(self) -> int:
        self.observer.escape(self.expr)
        return int.__int__(self)

    __truediv__, __rtruediv__ = _given_up(operator.truediv)
    __and__, __rand__ = _given_up(operator.and_)
    __or__, __ror__ = _given_up(operator.or_)
    __xor__, __rxor__ = _given_up(operator.xor)
    __pow__, __rpow__ = _given_up(pow)

    def __float__(self) -> float:
        return float(self._escaped())

    def __int__(self) -> int:
        return self._escaped()

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> Any:
        return other // self, other % self

    def __lshift__(self, other: Any) -> Any:
        return self * 2**other

    def __rshift__(self, other: Any) -> Any:
        return self // 2**other

    def __abs__(self) -> Any:
        return -self if self < 0 else self

    def __round__(self, digits: Any = None) -> Any:
        return self if digits is None else round(self._escaped(), digits)

    def _compared(self, other: object, holds: Any, true: Relation, false: Relation) -> Any:
        """Report that ``self true other``, or else that ``other false self``."""
        if isinstance(other, float):
            self.observer.escape(self.expr)
        elif isinstance(other, int):
            mine, theirs = self.expr, expr_of(other, self.observer)
            if holds:
                self.observer.guard(mine, theirs, true)
            else:
                self.observer.guard(theirs, mine, false)
        return holds

    def __lt__(self, other: Any) -> Any:
        return self._compared(other, int.__lt__(self, other), "<", "<=")

    def __le__(self, other: Any) -> Any:
        return self._compared(other, int.__le__(self, other), "<=", "<")

    def __gt__(self, other: Any) -> Any:
        at_most = self._compared(other, int.__le__(self, other), "<=", "<")
        return at_most if at_most is NotImplemented else not at_most

    def __ge__(self, other: Any) -> Any:
        less = self._compared(other, int.__lt__(self, other), "<", "<=")
        return less if less is NotImplemented else not less

    def __eq__(self, other: object) -> bool:
        equal = int.__eq__(self, other)
        self._compared(other, equal, "==", "!=")
        return equal

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __bool__(self) -> bool:
        return bool(self != 0)

    def __hash__(self) -> int:
        # What is looked up under a size depends on its value.
        self.observer.escape(self.expr)
        return super().__hash__()

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        return int, (int.__int__(self),)


def expr_of(number: int, observer: SizeObserver) -> SizeExpr:
    """Return the origin of an integer: a constant where nothing else is known.

    What another trace left somewhere in the user's code is a plain number to this one.
    """
    if isinstance(number, TracedInt) and number.observer is observer:
        return number.expr
    return Constant(int.__int__(number))
