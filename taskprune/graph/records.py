"""The recorded forward pass as plain data: values, operators, calls and outputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from taskprune.graph.attributes import Place
from taskprune.graph.sizes import Relation, SizeExpr
from taskprune.replace import ModuleReplacement
from taskprune.restore.modes import Mode

ValueKind: TypeAlias = Literal["parameter", "buffer", "outside", "result"]


@dataclass(frozen=True, slots=True)
class Ref:
    """A tensor argument: the number of its value."""

    value: int


def references(arguments: Iterable[Any]) -> Iterator[int]:
    """Iterate over the value numbers among recorded arguments."""
    for argument in arguments:
        if isinstance(argument, Ref):
            yield argument.value
        elif isinstance(argument, tuple):
            yield from references(argument)


@dataclass(frozen=True, slots=True)
class Size:
    """An integer argument that carries its origin."""

    value: int
    expr: SizeExpr


@dataclass(frozen=True, slots=True)
class Slice:
    """A Python slice inside an index; ``None`` where the code left a bound out."""

    start: Any
    stop: Any
    step: Any


@dataclass(frozen=True, slots=True)
class TensorValue:
    """A tensor of the forward pass.

    Attributes:
        id: Its number, the position in :attr:`ModelGraph.values`.
        shape: Sizes on the example inputs.
        kind: ``outside`` is an input or a constant: a tensor that no recorded operator made.
        name: Parameter or buffer name; empty for the others.
        is_floating: Whether its entries are floating-point (or complex) numbers.
        is_mask: Whether its entries are booleans; as an index, such a tensor selects.
        storage: Number of the first value with the same memory; views share it.
        dtype: Of its entries.
        strides: Of its dims on the example inputs; empty where it has none.
    """

    id: int
    shape: tuple[int, ...]
    kind: ValueKind
    name: str
    is_floating: bool
    is_mask: bool
    storage: int
    dtype: torch.dtype
    strides: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Call:
    """The Python call that ran some operators, with sizes as the code wrote them.

    Attributes:
        function: Name such as ``"view"`` or ``"conv2d"``; empty where none was seen.
        args: Positional arguments, tensors as :class:`Ref`, traced integers as :class:`Size`.
        kwargs: Keyword arguments, likewise.
        module: Path of the innermost module whose forward was running.
        source: ``file.py:line`` of the user's code.
    """

    function: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    module: str
    source: str


@dataclass(frozen=True, slots=True)
class Operation:
    """One ATen operator.

    Attributes:
        target: Overload name, ``"aten.view.default"``.
        arguments: All arguments by their schema names, defaults filled in.
        outputs: Value numbers of the tensors it returned, lists flattened; ``None`` where it
            returned something else.
        mutates: Value numbers of the arguments that it wrote to.
        call: The Python call it was part of.
        mode: The pass it belongs to.
    """

    target: str
    arguments: Mapping[str, Any]
    outputs: tuple[int | None, ...]
    mutates: tuple[int, ...]
    call: Call
    mode: Mode

    @property
    def operands(self) -> Iterator[int]:
        """The value numbers among the arguments, in order."""
        return references(self.arguments.values())


@dataclass(frozen=True, slots=True)
class Guard:
    """Two sizes that the code compared, and how they relate.

    ``right`` is ``None`` where the value itself matters: the size was used as a number.
    """

    left: SizeExpr
    right: SizeExpr | None
    module: str
    source: str
    relation: Relation = "=="


@dataclass(frozen=True, slots=True)
class ModuleOutput:
    """A module returned this tensor, alone or among others.

    ``path`` is empty where it is all that the module returned, else its place in that, see
    :func:`taskprune.graph.flatten_outputs`.
    """

    module: str
    value: int
    mode: Mode
    path: str = ""


@dataclass(frozen=True, slots=True)
class GraphInput:
    """A tensor among the arguments of the model's ``forward``.

    ``path`` is the argument's name, followed by keys, fields or positions where it holds several
    tensors: ``"images"``, ``"batch.points"``, ``"args.0"``.
    """

    path: str
    value: int
    mode: Mode


@dataclass(frozen=True, slots=True)
class GraphOutput:
    """A tensor among the model's outputs, see :func:`taskprune.graph.flatten_outputs`."""

    path: str
    value: int
    mode: Mode


@dataclass(frozen=True, eq=False)
class ModelGraph:
    """What a model computes, recorded once; plain data that outlives the model.

    Attributes:
        values: All tensors, by number.
        operations: All operators in the order they ran, one recorded pass after the other.
        calls: The Python calls that carried traced sizes or ran operators, in order.
        guards: Sizes that the code compared or used as numbers.
        inputs: What the model was called with, in every recorded mode.
        outputs: The model's outputs, of every recorded mode.
        module_outputs: Tensors that modules returned, in order.
        parameters: Value number of each distinct parameter by its first name.
        buffers: Value number of each distinct buffer by its first name.
        attributes: The integers stored in modules.
        shared_attributes: Further modules that hold a container of such integers, by the place
            where it was found first.
        tied: First name of each further name of a parameter or buffer.
        modules: Class of each module by path (the root has the empty path).
        tasks: Output paths of each task, empty for a task that declared none.
        modes: The recorded passes.
        notes: What could not be recorded, for the report.
        untraced: Parameters that no recorded operator read.
        batch_size: Size of dim 0 of the first input, 1 where there is none.
        used_real_tensors: Whether the forward needed values, so that it really ran.
        replacements: Modules that cannot shrink as they are written; what was recorded, parameters
            included, is that of what stands in for them.
    """

    values: tuple[TensorValue, ...]
    operations: tuple[Operation, ...]
    calls: tuple[Call, ...]
    guards: tuple[Guard, ...]
    outputs: tuple[GraphOutput, ...]
    module_outputs: tuple[ModuleOutput, ...]
    parameters: Mapping[str, int]
    buffers: Mapping[str, int]
    attributes: Mapping[Place, int]
    modules: Mapping[str, type[nn.Module]]
    tasks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    modes: tuple[Mode, ...] = ("eval",)
    notes: tuple[str, ...] = ()
    untraced: tuple[str, ...] = ()
    batch_size: int = 1
    used_real_tensors: bool = False
    replacements: tuple[ModuleReplacement, ...] = ()
    inputs: tuple[GraphInput, ...] = ()
    shared_attributes: Mapping[Place, tuple[str, ...]] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return (
            f"ModelGraph({len(self.operations)} operators, {len(self.parameters)} parameters, "
            f"{len(self.outputs)} outputs, {'+'.join(self.modes)})"
        )
