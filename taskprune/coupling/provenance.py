"""Make every size in the code come out right after pruning.

A size that the code reads off a runtime shape follows by itself; one that a module stores is
stored anew; any other stays. Where a size would not come out right, climb a ladder: tie the dims
that the code equates, else freeze the dim together with those its expression reads. Every step
only adds ties or freezes, so it ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from taskprune.coupling.axes import Axis, axis_size, is_tracked, tracked_units, untracked
from taskprune.coupling.context import Analysis
from taskprune.coupling.forms import (
    Classes,
    Form,
    constant,
    current_value,
    equal_parts,
    evaluate,
    solve_for,
)
from taskprune.coupling.groups import FreezeReason
from taskprune.coupling.partition import FactorPolicy, Partition, partition
from taskprune.coupling.unit_table import Constraint
from taskprune.errors import CouplingError
from taskprune.graph.records import Guard, Size, Slice
from taskprune.graph.sizes import AttributeOf, Computed, Constant, DimOf, SizeExpr, leaves

_MOST_STEPS = 20
"""A constraint that fails more often than this does not yield to freezing: a defect of ours."""


@dataclass
class Assignment:
    """Values of module attributes after pruning.

    Attributes:
        forms: New values; attributes that keep theirs are included as constants.
        causes: The constraints that demanded each value.
    """

    forms: dict[AttributeOf, Form] = field(default_factory=dict)
    causes: dict[AttributeOf, list[Constraint]] = field(default_factory=dict)


def add_constant_sizes(analysis: Analysis) -> None:
    """Constrain what no rule has understood: a size used as a number must keep its value."""
    for call in analysis.graph.calls:
        for size in _sizes((*call.args, *call.kwargs.values())):
            if (id(call), size.expr) not in analysis.claimed and analysis.follows(size.expr):
                detail = f"the code hands the size {size.expr} to {call.function} as a number"
                where = FreezeReason("attribute", detail, call.function, call.module, call.source)
                axis = untracked(size.value)
                analysis.units.constraints.append(Constraint(size.expr, axis, where))
    for guard in analysis.graph.guards:
        expr = guard.left if guard.right is None else Computed("-", guard.left, guard.right)
        if analysis.follows(expr) and not _goes_without_saying(guard):
            detail = (
                f"the code computes with the size {guard.left}"
                if guard.right is None
                else f"the code relies on {guard.left} {guard.relation} {guard.right}"
            )
            where = FreezeReason("attribute", detail, "", guard.module, guard.source)
            # A comparison is one of the difference with zero.
            length = current_value(analysis, expr) if guard.right is None else 0
            constraint = Constraint(expr, untracked(length), where, guard.relation)
            analysis.units.constraints.append(constraint)


def _goes_without_saying(guard: Guard) -> bool:
    """Whether it says that a tensor has entries: one of each dim stays."""
    if guard.right == Constant(0):
        return guard.relation == "!=" and _counts_entries(guard.left)
    is_zero = guard.left == Constant(0) and guard.right is not None
    return is_zero and guard.relation in ("!=", "<", "<=") and _counts_entries(guard.right)


def _counts_entries(expr: SizeExpr | None) -> bool:
    if isinstance(expr, Computed):
        return expr.operator == "*" and _counts_entries(expr.left) and _counts_entries(expr.right)
    return isinstance(expr, DimOf) or (isinstance(expr, Constant) and expr.value > 0)


def _sizes(values: tuple[object, ...]) -> Iterator[Size]:
    for value in values:
        if isinstance(value, Size):
            yield value
        elif isinstance(value, tuple):
            yield from _sizes(value)
        elif isinstance(value, Slice):
            yield from _sizes((value.start, value.stop, value.step))


def settle(analysis: Analysis, policy: FactorPolicy) -> tuple[Partition, Assignment]:
    """Partition the units so that every size in the code comes out right.

    Adds ties and freezes to the unit table until it does.
    """
    climbed: dict[int, int] = {}
    while True:
        result = partition(analysis.units, policy)
        classes = _without_virtual(analysis, result.classes)
        sizes = _Sizes(analysis, classes)
        assignment = sizes.assign()
        failing = [c for c in analysis.units.constraints if not sizes.holds(c, assignment)]
        if not failing:
            result.classes = classes
            return result, assignment
        _climb(analysis, classes, failing, assignment, climbed)


def _without_virtual(analysis: Analysis, classes: Classes) -> Classes:
    """Freeze classes without any entry of a parameter or buffer: nothing makes them shrink."""
    real = np.zeros(len(classes.frozen), np.bool_)
    for column in analysis.units.columns:
        real[classes.labels[column.start : column.start + column.size]] = True
    return Classes(classes.labels, classes.frozen | ~real)


class _Sizes:
    """Sizes in the light of one partition."""

    def __init__(self, analysis: Analysis, classes: Classes) -> None:
        self.analysis = analysis
        self.classes = classes
        self._dims: dict[DimOf, Form | None] = {}
        self._axes: dict[int, Form | None] = {}

    def dim_form(self, dim: DimOf) -> Form | None:
        if dim not in self._dims:
            axis = self.analysis.state(dim.value).axes[dim.dim]
            self._dims[dim] = self.classes.axis_form(axis)
        return self._dims[dim]

    def axis_form(self, constraint: Constraint) -> Form | None:
        if id(constraint) not in self._axes:
            self._axes[id(constraint)] = self.classes.axis_form(constraint.axis)
        return self._axes[id(constraint)]

    def assign(self) -> Assignment:
        """Find the value of every attribute that some constraint reads.

        Attributes that stand alone speak first, then those that can be singled out of an
        expression. Where two are left, as in ``width // parts``, the divisor keeps its value.
        """
        assignment = Assignment()
        constraints = self.analysis.units.constraints
        demands = [c for c in constraints if c.relation == "=="]
        self._single_out([c for c in demands if isinstance(c.expr, AttributeOf)], assignment)
        self._single_out(demands, assignment)
        self._keep(assignment, (d for c in demands for d in _divisors(c.expr)))
        self._single_out(demands, assignment)
        self._keep(assignment, (leaf for c in constraints for leaf in leaves(c.expr)))
        return assignment

    def _single_out(self, constraints: list[Constraint], assignment: Assignment) -> None:
        """Solve for attributes one after the other until no constraint yields another."""
        progress = True
        while progress:
            progress = False
            for constraint in constraints:
                target = self.axis_form(constraint)
                if target is None:
                    continue
                found = solve_for(constraint.expr, target, self.dim_form, assignment.forms)
                if found is not None and self._is_current(*found):
                    attribute, form = found
                    assignment.forms[attribute] = form
                    assignment.causes[attribute] = [constraint]
                    progress = True

    def _keep(self, assignment: Assignment, expressions: Iterator[SizeExpr]) -> None:
        """Let attributes that are still open keep their values."""
        for expr in expressions:
            if isinstance(expr, AttributeOf):
                value = self.analysis.graph.attributes[expr.module, expr.path]
                assignment.forms.setdefault(expr, constant(value))

    def _is_current(self, attribute: AttributeOf, form: Form) -> bool:
        """Whether the value is the stored one as long as nothing is removed."""
        stored = self.analysis.graph.attributes[attribute.module, attribute.path]
        return form.constant + int(form.counts.sum()) == stored

    def holds(self, constraint: Constraint, assignment: Assignment) -> bool:
        """Whether the size comes out right whatever is removed."""
        target = self.axis_form(constraint)
        value = evaluate(constraint.expr, self.dim_form, assignment.forms)
        if constraint.relation != "==":
            return value is not None and value.always(constraint.relation)
        return target is not None and value is not None and target.equals(value)


def _divisors(expr: SizeExpr) -> Iterator[SizeExpr]:
    """Yield everything that an expression divides by."""
    if isinstance(expr, Computed):
        if expr.operator in ("//", "%"):
            yield from leaves(expr.right)
        yield from _divisors(expr.left)
        yield from _divisors(expr.right)


def _climb(
    analysis: Analysis,
    classes: Classes,
    failing: list[Constraint],
    assignment: Assignment,
    climbed: dict[int, int],
) -> None:
    """Take the next step for sizes that do not come out right.

    Ties first: they often put right what another size trips over. Then one size of each module
    is frozen, since its neighbours may fail for the same reason.
    """
    fresh = [c for c in failing if id(c) not in climbed]
    climbed.update((id(c), 0) for c in fresh)
    tied = [_tie_equated(analysis, classes, constraint, assignment) for constraint in fresh]
    if any(tied):
        return
    first = {constraint.where.module: constraint for constraint in reversed(failing)}
    for constraint in first.values():
        climbed[id(constraint)] += 1
        if climbed[id(constraint)] > _MOST_STEPS:
            raise CouplingError(
                f"The sizes in the code contradict each other: {constraint.where.detail}, at "
                f"{constraint.where.source or 'an unknown line'}. Please report the model."
            )
        for axis in _involved(analysis, constraint, assignment):
            analysis.units.freeze_axis(axis, constraint.where)


def _involved(analysis: Analysis, constraint: Constraint, assignment: Assignment) -> Iterator[Axis]:
    """Yield the axes that a size depends on, through attributes too."""
    yield constraint.axis
    for leaf in leaves(constraint.expr):
        if isinstance(leaf, DimOf):
            yield analysis.state(leaf.value).axes[leaf.dim]
        elif isinstance(leaf, AttributeOf):
            for cause in assignment.causes.get(leaf, []):
                yield cause.axis
                for other in leaves(cause.expr):
                    if isinstance(other, DimOf):
                        yield analysis.state(other.value).axes[other.dim]


def _tie_equated(
    analysis: Analysis, classes: Classes, constraint: Constraint, assignment: Assignment
) -> bool:
    """Tie the dims that the code takes to be equally long; say whether there were any."""
    expr, axis, units = constraint.expr, constraint.axis, analysis.units
    if constraint.relation != "==":
        return False
    if isinstance(expr, Computed) and expr.operator == "-" and axis_size(axis) == 0:
        return _tie_sides(analysis, expr, constraint.where)
    if not is_tracked(axis):
        return False
    whole = _multiplied(expr)
    other = _equated(analysis, whole or expr, axis_size(axis), assignment)
    if other is None:
        return _tie_parts(analysis, constraint, assignment)
    if whole is not None:
        part = _part(axis, axis_size(other), classes)
        if part:
            units.tie_axes(part, other, constraint.where)
        return bool(part)
    units.tie_axes(axis, other, constraint.where)
    return True


def _tie_parts(analysis: Analysis, constraint: Constraint, assignment: Assignment) -> bool:
    """Tie the equal parts of a length of which a size is so many, as ``2 * (C // 8)`` is 2 of 8."""
    expr, units = constraint.expr, analysis.units
    for leaf in dict.fromkeys(leaves(expr)):
        whole = _length_of(analysis, leaf, assignment)
        others = (other for other in leaves(expr) if other != leaf)
        if whole is None or not all(_stays(other, assignment) for other in others):
            continue
        parts = equal_parts(analysis, expr, leaf, axis_size(constraint.axis))
        if parts is None or (parts[1] == 1 and len(constraint.axis) > 1):
            continue
        cut = units.flat(whole, constraint.where).reshape(parts[1], -1)
        own = units.flat(constraint.axis, constraint.where).reshape(parts[0], -1)
        if isinstance(leaf, AttributeOf) and not np.array_equal(cut[0], own[0]):
            continue  # not the block behind the first one that the attribute measures
        for part in (*cut[1:], *own):
            units.tie(cut[0], part)
        return True
    return False


def _length_of(analysis: Analysis, leaf: SizeExpr, assignment: Assignment) -> Axis | None:
    """Return the axis whose length this is."""
    if isinstance(leaf, DimOf):
        return analysis.state(leaf.value).axes[leaf.dim]
    causes = assignment.causes.get(leaf, []) if isinstance(leaf, AttributeOf) else []
    return next((cause.axis for cause in causes if cause.expr == leaf), None)


def _stays(leaf: SizeExpr, assignment: Assignment) -> bool:
    return isinstance(leaf, Constant) or (
        isinstance(leaf, AttributeOf) and assignment.forms[leaf].is_constant
    )


def _multiplied(expr: SizeExpr) -> DimOf | None:
    """Return the dim in an expression such as ``dim * kernel * kernel``."""
    if not isinstance(expr, Computed) or expr.operator != "*":
        return None
    dims = [leaf for leaf in leaves(expr) if isinstance(leaf, DimOf)]
    if len(dims) != 1:
        return None
    sides = (expr.left, expr.right)
    return dims[0] if dims[0] in sides else next(filter(None, map(_multiplied, sides)), None)


def _part(axis: Axis, size: int, classes: Classes) -> Axis:
    """Return the outer or inner part of this size if all else of the axis never changes."""
    for cut in range(len(axis) + 1):
        for part, rest in ((axis[:cut], axis[cut:]), (axis[cut:], axis[:cut])):
            stays = all(
                classes.frozen[classes.labels[units]].all() for units in tracked_units(rest)
            )
            if axis_size(part) == size and is_tracked(part) and stays:
                return part
    return ()


def _equated(analysis: Analysis, expr: SizeExpr, size: int, assignment: Assignment) -> Axis | None:
    """Return an axis that the code takes to be as long as the expression says, if any."""
    if isinstance(expr, DimOf):
        return analysis.state(expr.value).axes[expr.dim]
    # Dims whose sizes the code computes alike from the same attributes shrink alike.
    for leaf in leaves(expr):
        for cause in assignment.causes.get(leaf, []) if isinstance(leaf, AttributeOf) else ():
            if axis_size(cause.axis) == size and _alike(analysis, cause.expr, expr, leaf):
                return cause.axis
    return None


def _alike(analysis: Analysis, a: SizeExpr, b: SizeExpr, shared: SizeExpr) -> bool:
    """Whether two sizes are computed alike: from the same attribute and otherwise equal numbers."""
    if a == b:
        return True
    if isinstance(a, Computed) and isinstance(b, Computed):
        return (
            a.operator == b.operator
            and _alike(analysis, a.left, b.left, shared)
            and _alike(analysis, a.right, b.right, shared)
        )
    plain = (Constant, AttributeOf)
    return (
        shared not in (a, b)
        and isinstance(a, plain)
        and isinstance(b, plain)
        and current_value(analysis, a) == current_value(analysis, b)
    )


def _tie_sides(analysis: Analysis, expr: Computed, where: FreezeReason) -> bool:
    sides = [
        analysis.state(side.value).axes[side.dim]
        for side in (expr.left, expr.right)
        if isinstance(side, DimOf)
    ]
    if len(sides) < 2:
        return False
    analysis.units.tie_axes(sides[0], sides[1], where)
    return True
