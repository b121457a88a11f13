"""What sizes in the code come to in the unpruned model, and for other lengths."""

from __future__ import annotations

from math import gcd

from taskprune.coupling.context import Analysis
from taskprune.graph.sizes import AttributeOf, Computed, Constant, DimOf, SizeExpr


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
