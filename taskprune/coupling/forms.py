"""Sizes as functions of which channels stay, exact for every possible choice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import gcd

import numpy as np
from numpy.typing import NDArray

from taskprune.coupling.axes import Axis
from taskprune.coupling.context import Analysis
from taskprune.coupling.groups import IntArray
from taskprune.graph.sizes import AttributeOf, Computed, Constant, DimOf, Relation, SizeExpr

_NONE = np.empty(0, np.int64)


@dataclass(frozen=True, eq=False, slots=True)
class Form:
    """``constant + sum(counts[i] * [class classes[i] stays])``.

    Two forms are equal exactly if they agree whatever is removed.

    Attributes:
        constant: What never changes.
        classes: Numbers of atomic channels, ascending.
        counts: How often each is counted; none is 0.
    """

    constant: int
    classes: IntArray
    counts: IntArray

    @property
    def is_constant(self) -> bool:
        """Whether nothing that is removed changes it."""
        return not len(self.classes)

    def equals(self, other: Form) -> bool:
        """Whether both agree whatever is removed."""
        return (
            self.constant == other.constant
            and np.array_equal(self.classes, other.classes)
            and np.array_equal(self.counts, other.counts)
        )

    def bounds(self) -> tuple[int, int]:
        """Return values that it never falls below or exceeds; of a size, one entry stays."""
        up, down = self.counts[self.counts > 0], self.counts[self.counts < 0]
        low = int(down.sum()) + (int(up.min()) if len(up) and not len(down) else 0)
        high = int(up.sum()) + (int(down.max()) if len(down) and not len(up) else 0)
        return self.constant + low, self.constant + high

    def always(self, relation: Relation) -> bool:
        """Whether it relates so to zero whatever is removed."""
        low, high = self.bounds()
        if relation == "==":
            return low == high == 0
        if relation == "!=":
            return low > 0 or high < 0
        return high < 0 if relation == "<" else high <= 0

    def plus(self, other: Form, sign: int = 1) -> Form:
        """Return the sum, or the difference for ``sign=-1``."""
        classes = np.concatenate([self.classes, other.classes])
        counts = np.concatenate([self.counts, sign * other.counts])
        unique, inverse = np.unique(classes, return_inverse=True)
        total = np.zeros(len(unique), np.int64)
        np.add.at(total, inverse, counts)
        used = total != 0
        return Form(self.constant + sign * other.constant, unique[used], total[used])

    def times(self, other: Form) -> Form | None:
        """Return the product, if it is linear."""
        if not other.is_constant:
            return other.times(self) if self.is_constant else None
        k = other.constant
        return constant(0) if k == 0 else Form(k * self.constant, self.classes, k * self.counts)

    def floor_divided(self, other: Form) -> Form | None:
        """Return the quotient, if it is exact whatever is removed."""
        if other.is_constant:
            k = other.constant
            if k and self.constant % k == 0 and not np.any(self.counts % k):
                return Form(self.constant // k, self.classes, self.counts // k)
            return constant(self.constant // k) if k and self.is_constant else None
        # A multiple of the divisor: C // heads where C is heads of a fixed width.
        ratio = self.counts[0] // other.counts[0] if len(self.counts) else 0
        if ratio and self.equals(other.times(constant(int(ratio))) or other):
            return constant(int(ratio))
        return None

    def modulo(self, other: Form) -> Form | None:
        """Return the remainder, if it is the same whatever is removed."""
        quotient = self.floor_divided(other)
        if quotient is None or not other.is_constant:
            return None if quotient is None else constant(0)
        return constant(self.constant % other.constant)


def constant(value: int) -> Form:
    """Return a form that never changes."""
    return Form(value, _NONE, _NONE)


@dataclass(frozen=True, eq=False)
class Classes:
    """A partition of the units into atomic channels.

    Attributes:
        labels: Class number of each unit.
        frozen: Whether each class must stay.
    """

    labels: IntArray
    frozen: NDArray[np.bool_]

    def units_form(self, units: IntArray) -> Form:
        """Return how many of ``units`` stay."""
        labels = self.labels[units]
        free = labels[~self.frozen[labels]]
        classes, counts = np.unique(free, return_counts=True)
        return Form(len(labels) - len(free), classes, counts.astype(np.int64))

    def axis_form(self, axis: Axis) -> Form | None:
        """Return the length of an axis; ``None`` where two of its factors can shrink."""
        form: Form | None = constant(1)
        for factor in axis:
            mine = constant(factor.size) if factor.units is None else self.units_form(factor.units)
            form = form.times(mine) if form is not None else None
        return form


def evaluate(
    expr: SizeExpr,
    dim_form: Callable[[DimOf], Form | None],
    attributes: Mapping[AttributeOf, Form],
) -> Form | None:
    """Return a size as a form; ``None`` where it is not linear in what stays."""
    if isinstance(expr, Constant):
        return constant(expr.value)
    if isinstance(expr, DimOf):
        return dim_form(expr)
    if isinstance(expr, AttributeOf):
        return attributes.get(expr)
    left = evaluate(expr.left, dim_form, attributes)
    right = evaluate(expr.right, dim_form, attributes)
    return None if left is None or right is None else combine(expr, left, right)


def combine(expr: Computed, left: Form, right: Form) -> Form | None:
    """Return the result of the operator of ``expr`` on two forms."""
    if expr.operator == "+":
        return left.plus(right)
    if expr.operator == "-":
        return left.plus(right, sign=-1)
    if expr.operator == "*":
        return left.times(right)
    if expr.operator == "//":
        return left.floor_divided(right)
    return left.modulo(right)


def solve_for(
    expr: SizeExpr,
    target: Form,
    dim_form: Callable[[DimOf], Form | None],
    attributes: Mapping[AttributeOf, Form],
) -> tuple[AttributeOf, Form] | None:
    """Return the attribute that is still open in ``expr`` and the value that makes it ``target``.

    ``None`` where no attribute is open, several are, or it cannot be singled out.
    """
    if isinstance(expr, AttributeOf):
        return None if expr in attributes else (expr, target)
    if not isinstance(expr, Computed):
        return None
    left = evaluate(expr.left, dim_form, attributes)
    right = evaluate(expr.right, dim_form, attributes)
    if (left is None) == (right is None):
        return None
    known, open_side = (right, expr.left) if left is None else (left, expr.right)
    assert known is not None
    inner = _undone(expr, target, known, open_on_left=left is None)
    return None if inner is None else solve_for(open_side, inner, dim_form, attributes)


def _undone(expr: Computed, target: Form, known: Form, *, open_on_left: bool) -> Form | None:
    if expr.operator == "+":
        return target.plus(known, sign=-1)
    if expr.operator == "-":
        return target.plus(known) if open_on_left else known.plus(target, sign=-1)
    if expr.operator == "*":
        return target.floor_divided(known)
    if expr.operator == "//":
        return target.times(known) if open_on_left else known.floor_divided(target)
    return None


def current_value(analysis: Analysis, expr: SizeExpr) -> int:
    """Return the value of a size in the unpruned model."""
    if isinstance(expr, Constant):
        return expr.value
    if isinstance(expr, DimOf):
        return analysis.graph.values[expr.value].shape[expr.dim]
    if isinstance(expr, AttributeOf):
        return analysis.graph.attributes[expr.module, expr.path]
    left, right = current_value(analysis, expr.left), current_value(analysis, expr.right)
    operations = {"+": left + right, "-": left - right, "*": left * right}
    if expr.operator in operations:
        return operations[expr.operator]
    return (left // right if expr.operator == "//" else left % right) if right else 0


def equal_parts(
    analysis: Analysis, expr: SizeExpr, leaf: SizeExpr, size: int
) -> tuple[int, int] | None:
    """Return how many parts a size is, and of how many; each has several entries, at best many."""
    length = current_value(analysis, leaf)
    common = gcd(length, size)
    for entries in (n for n in range(common, 1, -1) if common % n == 0):
        own, all_parts = size // entries, length // entries
        if all(_exact(analysis, expr, leaf, n * all_parts) == n * own for n in (1, 2)):
            return own, all_parts
    return None


def _exact(analysis: Analysis, expr: SizeExpr, leaf: SizeExpr, length: int) -> int | None:
    """Return what an expression is for a length; ``None`` if a division leaves something over."""
    if expr == leaf:
        return length
    if not isinstance(expr, Computed):
        return current_value(analysis, expr)
    left, right = (_exact(analysis, side, leaf, length) for side in (expr.left, expr.right))
    if left is None or right is None:
        return None
    if expr.operator == "//" and (not right or left % right):
        return None
    return current_value(analysis, Computed(expr.operator, Constant(left), Constant(right)))
