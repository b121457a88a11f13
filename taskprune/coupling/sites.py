"""Operator calls with the sizes of their tensors, for the costs that depend on them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeAlias

from taskprune.coupling.axes import Axis
from taskprune.coupling.context import Analysis
from taskprune.coupling.forms import Classes, Form
from taskprune.coupling.groups import LinearForm, OperatorSite, SizeProduct, TensorForm
from taskprune.coupling.registry import operator_of
from taskprune.graph.records import Operation, Ref

Share: TypeAlias = Callable[[Form], tuple[LinearForm, int]]
"""Turns a form over classes into one over groups, and the divisor it is to be taken with."""


def operator_sites(analysis: Analysis, classes: Classes, share: Share) -> tuple[OperatorSite, ...]:
    """Return the calls of the first recorded pass that take time or memory, and its outputs."""
    graph = analysis.graph
    mode = graph.modes[0] if graph.modes else "eval"
    forms = _Forms(analysis, classes, share)
    sites = [
        OperatorSite(
            operation.target,
            operation.call.module,
            {name: forms.argument(value) for name, value in operation.arguments.items()},
            tuple(None if n is None else forms.tensor(n) for n in operation.outputs),
        )
        for operation in graph.operations
        if operation.mode == mode and _works(analysis, operation)
    ]
    returned = {o.path: forms.tensor(o.value) for o in graph.outputs if o.mode == mode}
    return (*sites, OperatorSite("output", "", returned))


def _works(analysis: Analysis, operation: Operation) -> bool:
    """Whether the operator writes entries: into new memory, or into that of an argument."""
    values = analysis.graph.values
    return bool(operation.mutates) or (
        not only_views(operation.target)
        and any(n is not None and values[n].storage == n for n in operation.outputs)
    )


@cache
def only_views(target: str) -> bool:
    """Whether all that the operator returns shares memory with its arguments."""
    returns = operator_of(target)._schema.returns
    return all(returned.alias_info is not None for returned in returns)


class _Forms:
    """Sizes of tensors; each array of units is looked at once."""

    def __init__(self, analysis: Analysis, classes: Classes, share: Share) -> None:
        self.analysis = analysis
        self.classes = classes
        self.share = share
        self.tensors: dict[int, TensorForm] = {}
        self.lengths: dict[int, tuple[LinearForm, int]] = {}
        # A view of a tensor with values, of a parameter say, is recorded with memory of its own.
        self.memory = {value.id: value.storage for value in analysis.graph.values}
        for operation in analysis.graph.operations:
            source = next(operation.operands, None)
            if source is not None and only_views(operation.target):
                own = {n: self.memory[source] for n in operation.outputs if n is not None}
                self.memory.update(own)

    def argument(self, value: Any) -> Any:
        if isinstance(value, Ref):
            return self.tensor(value.value)
        if isinstance(value, tuple):
            return tuple(self.argument(v) for v in value)
        return value

    def tensor(self, number: int) -> TensorForm:
        known = self.tensors.get(number)
        if known is None:
            value = self.analysis.graph.values[number]
            shape = tuple(self._size(axis) for axis in self.analysis.state(number).axes)
            storage = self.memory[number]
            made = self.analysis.graph.values[storage].kind == "result"
            known = TensorForm(shape, value.dtype, storage, made)
            self.tensors[number] = known
        return known

    def _size(self, axis: Axis) -> SizeProduct:
        multiplier, divisor, factors = 1, 1, []
        for factor in axis:
            if factor.units is None:
                multiplier *= factor.size
                continue
            # The analysis keeps the arrays, so that no two have the same number.
            found = self.lengths.get(id(factor.units))
            if found is None:
                found = self.share(self.classes.units_form(factor.units))
                self.lengths[id(factor.units)] = found
            form, own = found
            divisor *= own
            if form.coefficients:
                factors.append(form)
            else:
                multiplier *= form.constant
        return SizeProduct(multiplier, tuple(factors), divisor)
