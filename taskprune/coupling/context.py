"""What an operator rule sees and may say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

from taskprune.coupling.axes import (
    Axis,
    Origin,
    axis_size,
    is_tracked,
    tracked,
    tracked_units,
    untracked,
)
from taskprune.coupling.groups import ORDERED_BY_SIZES, FreezeKind, FreezeReason, IntArray
from taskprune.coupling.unit_table import Constraint, UnitTable
from taskprune.errors import CouplingError
from taskprune.graph.records import ModelGraph, Operation, Ref, Size, TensorValue, references
from taskprune.graph.sizes import AttributeOf, Constant, DimOf, SizeExpr, is_literal, leaves

OUTSIDE = Origin("interface", "meets an input or constant of the model, whose sizes are given")
LITERAL = Origin("literal", "meets a size that the code writes as a number")


@dataclass(frozen=True, eq=False, slots=True)
class TensorState:
    """What is known of a tensor.

    Attributes:
        axes: One per dim.
        zero: Whether zeroing all entries of a removed channel makes it zero here.
        weight: Whether it was computed from parameters and buffers alone.
    """

    axes: tuple[Axis, ...]
    zero: bool = False
    weight: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes on the example inputs."""
        return tuple(axis_size(axis) for axis in self.axes)


@dataclass(frozen=True, eq=False, slots=True)
class Work:
    """Multiply-adds of one operator: ``multiplier`` times the lengths of ``axes``.

    ``made`` is the number of its first result.
    """

    operator: str
    module: str
    multiplier: int
    axes: tuple[Axis, ...]
    made: int | None = None


@dataclass(eq=False)
class Analysis:
    """All that the rules have written down about a graph so far."""

    graph: ModelGraph
    units: UnitTable
    states: dict[int, TensorState] = field(default_factory=dict)
    work: list[Work] = field(default_factory=list)
    claimed: set[tuple[int, SizeExpr]] = field(default_factory=set)
    largest_dim: int = 1

    def state(self, value: int) -> TensorState:
        """Return the state of a value; inputs and constants enter on first use."""
        known = self.states.get(value)
        if known is None:
            shape = self.graph.values[value].shape
            known = TensorState(tuple(untracked(n, OUTSIDE) for n in shape))
            self.states[value] = known
        return known

    def follows(self, expr: SizeExpr) -> bool:
        """Whether a size may change with pruning: it reads a tracked dim or an attribute."""
        return any(self._leaf_follows(leaf) for leaf in leaves(expr))

    def _leaf_follows(self, leaf: Constant | DimOf | AttributeOf) -> bool:
        if isinstance(leaf, DimOf):
            return is_tracked(self.state(leaf.value).axes[leaf.dim])
        return isinstance(leaf, AttributeOf)


class RuleContext:
    """One operator, as its rule sees it.

    Arguments are asked for by their schema names. A rule must :meth:`produce` the axes of every
    tensor result.
    """

    def __init__(self, analysis: Analysis, operation: Operation) -> None:
        self.analysis = analysis
        self.units = analysis.units
        self.operation = operation
        self.call = operation.call

    @cached_property
    def _makes_weight(self) -> bool:
        """Whether everything that the operator takes is a parameter or made of such."""
        states = self.tensors()
        return bool(states) and all(state.weight for state in states)

    # -- arguments -------------------------------------------------------------------------

    def argument(self, name: str) -> Any:
        """Return an argument as recorded."""
        return self.operation.arguments.get(name)

    def has(self, name: str) -> bool:
        """Whether a tensor was passed for ``name``."""
        return isinstance(self.argument(name), Ref)

    def tensor(self, name: str) -> TensorState:
        """Return a tensor argument."""
        return self.analysis.state(self.argument(name).value)

    def tensors(self, name: str | None = None) -> list[TensorState]:
        """Return the tensors of a list argument, or of all arguments."""
        values = self.operation.arguments.values() if name is None else [self.argument(name)]
        return [self.analysis.state(number) for number in references(values)]

    def axes(self, name: str) -> tuple[Axis, ...]:
        """Return the axes of a tensor argument."""
        return self.tensor(name).axes

    def dim(self, name: str, rank: int) -> int:
        """Return a dim argument as a non-negative number."""
        return int(self.argument(name)) % max(rank, 1)

    def output(self, index: int = 0) -> TensorValue | None:
        """Return the record of a result."""
        number = self.operation.outputs[index]
        return None if number is None else self.analysis.graph.values[number]

    def output_shape(self, index: int = 0) -> tuple[int, ...]:
        """Return the shape of a result on the example inputs."""
        value = self.output(index)
        return () if value is None else value.shape

    def results(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Yield the number of each result that is a tensor, and its shape."""
        for index in range(len(self.operation.outputs)):
            value = self.output(index)
            if value is not None:
                yield index, value.shape

    # -- sizes as the code wrote them --------------------------------------------------------

    def value(self, name: str) -> TensorValue:
        """Return the record of a tensor argument."""
        number: int = self.argument(name).value
        return self.analysis.graph.values[number]

    def call_argument(self, position: int, name: str) -> Any:
        """Return an argument of the Python call, by position or name."""
        if name in self.call.kwargs:
            return self.call.kwargs[name]
        return self.call.args[position] if position < len(self.call.args) else None

    def call_number(self, position: int, name: str) -> Any:
        """Return an integer argument of the Python call as a number, whatever its origin."""
        value = self.call_argument(position, name)
        return value.value if isinstance(value, Size) else value

    def call_tensors(self) -> list[TensorState]:
        """Return the tensors given to the Python call, alone or in lists, to read from."""
        given = (value for name, value in self.call.kwargs.items() if name != "out")
        return [self.analysis.state(number) for number in references((*self.call.args, *given))]

    def call_sizes(self, position: int, name: str) -> tuple[Any, ...] | None:
        """Return sizes given to the Python call as one sequence or as several arguments."""
        value = self.call_argument(position, name)
        if isinstance(value, tuple):
            return value
        if value is None:
            return None
        return tuple(self.call.args[position:])

    def expr(self, size: Any, value: int | None = None) -> SizeExpr:
        """Return the origin of an integer argument of the call, and mark it as understood.

        Args:
            size: The argument as recorded.
            value: What it came to, for a size that the code worked out with tensors.
        """
        if isinstance(size, Size):
            self.analysis.claimed.add((id(self.call), size.expr))
            return size.expr
        return Constant(value if isinstance(size, Ref) and value is not None else int(size))

    # -- saying something ----------------------------------------------------------------------

    def reason(self, kind: FreezeKind, detail: str) -> FreezeReason:
        """Return a freeze reason at this operator."""
        return FreezeReason(kind, detail, self.operation.target, self.call.module, self.call.source)

    def tie(self, left: Axis, right: Axis, detail: str = "meets a size that cannot change") -> None:
        """Let two axes of equal length shrink together, entry by entry."""
        n_ties = len(self.units.ties)
        self.units.tie_axes(left, right, self.reason("structure", detail))
        if self._makes_weight:
            self.units.alike += self.units.ties[n_ties:]

    def freeze(self, axis: Axis, kind: FreezeKind, detail: str) -> None:
        """Keep all of an axis."""
        self.units.freeze_axis(axis, self.reason(kind, detail))

    def fix(self, axis: Axis) -> None:
        """Keep all of an axis that nobody would think of removing, such as kernel dims."""
        self.units.freeze_axis(axis, None)

    def flat(self, axis: Axis) -> IntArray:
        """Return one unit per entry of an axis."""
        return self.units.flat(axis, self.reason("structure", "meets a size that cannot change"))

    def regroup(self, axes: Sequence[Axis], sizes: Sequence[int]) -> list[Axis]:
        """Return the axes of a row-major reshape."""
        return self.units.regroup(
            axes,
            sizes,
            self.reason("structure", "a reshape keeps this factor because another one shrinks"),
        )

    def piece(self, units: IntArray) -> Axis:
        """Return the axis of some units; a single one has to stay."""
        if len(units) == 1:
            self.units.freeze(units, None)
            return ()
        return tracked(units)

    def constrain(self, expr: SizeExpr, axis: Axis) -> None:
        """Demand that a size in the code comes out as the length of ``axis`` after pruning."""
        if is_literal(expr):
            self.freeze(axis, "literal", f"the code writes this size as {axis_size(axis)}")
        elif is_tracked(axis) or self.analysis.follows(expr):
            detail = f"the code computes this size as {expr}, which does not follow"
            if any(operator in str(expr) for operator in ("//", "%")):
                detail += "; without a remainder, or stored by a module as one number, it would"
            self.units.constraints.append(Constraint(expr, axis, self.reason("attribute", detail)))

    def following(self, size: int, expr: SizeExpr | None) -> Axis:
        """Return the axis of a new dim of this length, tracked where the size may change."""
        if size == 1:
            return ()
        if expr is None:
            # The operator computes the size from its operands, to which a later rule ties it.
            return (
                tracked(self.units.fresh(size))
                if size <= self.analysis.largest_dim
                else untracked(size)
            )
        if is_literal(expr):
            return untracked(size, LITERAL)
        if not self.analysis.follows(expr):
            return untracked(size)
        axis = tracked(self.units.fresh(size))
        self.constrain(expr, axis)
        return axis

    def read(self, state: TensorState, axis: Axis) -> None:
        """Note that a parameter reads channels along ``axis`` that others produce."""
        if state.weight:
            self.units.read += tracked_units(axis)

    def contract(self, state: TensorState, axis: Axis) -> None:
        """Note that a product of activations sums over ``axis``."""
        if not state.weight:
            self.units.contracted += tracked_units(axis)

    def cross(self, *axes: Axis, statistic: str = "") -> None:
        """Note that the operator computes a statistic across the channels of ``axes``.

        Args:
            *axes: The axes.
            statistic: What to call it. Default: the operator's name.
        """
        text = self._described(statistic)
        for axis in axes:
            self.units.crossings += [(units, text) for units in tracked_units(axis)]

    def align(self, axis: Axis, multiple: int) -> None:
        """Note that the operator only takes lengths of ``axis`` that are a multiple of this."""
        if multiple > 1 and is_tracked(axis):
            self.units.aligned.append((axis, multiple))

    def at_least(self, axis: Axis, length: int) -> None:
        """Note that the operator is another one, or none, where ``axis`` is shorter than this."""
        if is_tracked(axis):
            self.units.shortest.append((axis, length))

    def weigh(self, state: TensorState, *axes: Axis) -> None:
        """Note that the operator sums up a weight along ``axes``, as the norm of a filter is."""
        if state.weight:
            text = self._described("")
            for axis in axes:
                self.units.weighed += [(units, text) for units in tracked_units(axis)]

    def _described(self, statistic: str) -> str:
        name = statistic or self.operation.target.rpartition(".")[0]
        return f"{name} at {self.call.module or 'model'}"

    def count(self, multiplier: int, *axes: Axis) -> None:
        """Note multiply-adds: ``multiplier`` times the lengths of ``axes``."""
        ordered = self.call.function in ORDERED_BY_SIZES
        ordered = ordered and sum(1 for _ in references(self.call.args)) > 2
        self.analysis.work.append(
            Work(
                self.call.function if ordered else self.operation.target,
                self.call.module,
                multiplier,
                tuple(axes),
                self.operation.outputs[0],
            )
        )

    def produce(
        self,
        axes: Sequence[Axis],
        *,
        index: int = 0,
        zero: bool = False,
        weight: bool | None = None,
    ) -> None:
        """Hand on the axes of a result.

        Args:
            axes: One per dim.
            index: Which result.
            zero: Whether removed channels are zero in it once their entries are zeroed.
            weight: Whether it stems from parameters alone. Default: if all tensor arguments do.
        """
        number = self.operation.outputs[index]
        if number is None:
            return
        shape = self.analysis.graph.values[number].shape
        sizes = tuple(axis_size(axis) for axis in axes)
        if sizes != shape:
            raise CouplingError(
                f"The channel rule of {self.operation.target} returned axes of sizes {sizes} for "
                f"a result of shape {shape} at {self.call.source or 'an unknown line'}."
            )
        if weight is None:
            arguments = self.tensors()
            weight = bool(arguments) and all(state.weight for state in arguments)
        known = self.analysis.states.get(number)
        if known is None:
            self.analysis.states[number] = TensorState(tuple(axes), zero, weight)
            return
        # In place: the tensor keeps its axes, and whatever it is now called with agrees with them.
        for before, after in zip(known.axes, axes, strict=True):
            self.tie(before, after)
        self.analysis.states[number] = TensorState(known.axes, zero, known.weight and weight)

    def produce_fixed(self, origin: Origin | None = None) -> None:
        """Hand on results whose sizes never change; `origin` says why, to what meets them."""
        for index, number in enumerate(self.operation.outputs):
            if number is not None and number not in self.analysis.states:
                shape = self.output_shape(index)
                self.produce([untracked(n, origin) for n in shape], index=index, weight=False)


def spatial(shape: Sequence[int], first: int) -> list[Axis]:
    """Return untracked axes for the dims from ``first`` on."""
    return [untracked(n) for n in shape[first:]]


def volume(shape: Sequence[int]) -> int:
    """Return the product of sizes."""
    return prod(shape)
