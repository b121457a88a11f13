"""The records that coupling hands on: which tensor entries live or die together.

Nothing here knows how the couplings were found. Scores, costs, plans and oracles are written
against these records alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from taskprune.calling.modality import Modality
from taskprune.graph.reach import InputReach
from taskprune.replace import ModuleReplacement

IntArray: TypeAlias = NDArray[np.int64]

FreezeKind: TypeAlias = Literal["interface", "literal", "attribute", "structure", "unknown", "user"]
"""Why channels cannot be removed.

``interface``: they are inputs or outputs of the model. ``literal``: the code writes the size as a
number. ``attribute``: no assignment of the module's attributes makes the code follow.
``structure``: the mathematics needs them (kernel dims, reductions, index tables, the factor of a
reshape that another factor was preferred to). ``unknown``: no rule for the operator
("frozen by ignorance"). ``user``: protected on request.
"""


@dataclass(frozen=True, slots=True)
class FreezeReason:
    """What froze some channels.

    Attributes:
        kind: The class of reasons.
        detail: One sentence for the report.
        operator: The operator's name, such as ``aten.flip.default``; empty where none is involved.
        module: Path of the innermost module whose forward ran it.
        source: ``file.py:line`` of the user's code that called it.
    """

    kind: FreezeKind
    detail: str
    operator: str = ""
    module: str = ""
    source: str = ""


@dataclass(frozen=True, eq=False, slots=True)
class TensorSlice:
    """The entries along one dim of one named tensor that belong to the channels of a group.

    Attributes:
        name: For a member of a group: name of a parameter or buffer, as in
            ``model.named_parameters()`` (tied tensors appear under their first name only). For an
            activation: path of the module whose output this is.
        dim: The axis that is indexed.
        index: Positions along ``dim``; row *c* belongs to channel *c* of the group. Shape
            ``[n_channels, entries_per_channel]``, int64.
        produces: True where these entries *make* the channel (a convolution's output dim, its
            bias, a norm's scale), false where they read it (the next convolution's input dim).
    """

    name: str
    dim: int
    index: IntArray
    produces: bool = True


@dataclass(frozen=True, slots=True)
class WeightStatistic:
    """A dim of a tensor along which the code sums up a weight before it uses it.

    Without the entries that a plan removes along it, the entries that stay come out as others:
    filters that are divided by their norm, for one.

    Attributes:
        name: Of the parameter or buffer.
        dim: The axis.
        operator: What sums it up, as ``"operator at module"``.
    """

    name: str
    dim: int
    operator: str


@dataclass(frozen=True, eq=False, slots=True)
class CouplingGroup:
    """Channels of one kind: any of them can go, each with all of its entries.

    Attributes:
        name: Unique in its model, stable between runs: the first producing parameter's path
            without ``.weight``.
        n_channels: How many channels there are; at least :attr:`fewest` must stay.
        members: All parameter and buffer entries.
        activations: Where the channels appear in outputs of modules (for feature taps and
            activation-based scores).
        tasks: Names of the tasks whose outputs the channels can reach, from the graph alone.
            Empty where no tasks were given.
        modality: The modality that the channels belong to, or ``"fusion"``; empty where no
            modalities were declared, see :func:`taskprune.coupling.labelled`.
        crossed_by: Normalisations and other operators that compute a statistic *across* these
            channels, as ``"operator at module"``. Where this is empty, removing a channel equals
            zeroing all of its entries. ``aten.native_layer_norm`` of a module counts too.
        statistics: Where weights are summed up along these channels, which parameters read.
        step: Channels can only go so many at a time: an operator takes no other widths.
        fewest: How many channels must stay: an operator takes no fewer.
        contracted: Whether something else than a parameter adds the channels up: a sum, a product
            of activations. What is lost there when one goes, no weight can make up for.
        readers: Parameters and float buffers that no traced forward read and that could read these
            channels, where code ran that was not traced, see :mod:`taskprune.coupling.unread`.
    """

    name: str
    n_channels: int
    members: tuple[TensorSlice, ...]
    activations: tuple[TensorSlice, ...] = ()
    tasks: frozenset[str] = frozenset()
    crossed_by: tuple[str, ...] = ()
    modality: str = ""
    statistics: tuple[WeightStatistic, ...] = ()
    step: int = 1
    fewest: int = 1
    contracted: bool = False
    readers: tuple[str, ...] = ()

    def __repr__(self) -> str:
        tasks = ", ".join(sorted(self.tasks)) or "no task"
        return (
            f"CouplingGroup({self.name}: {self.n_channels} channels, "
            f"{len(self.members)} members, {tasks})"
        )


@dataclass(frozen=True, eq=False, slots=True)
class FrozenGroup:
    """Channels that must all stay, and why."""

    name: str
    n_channels: int
    members: tuple[TensorSlice, ...]
    reasons: tuple[FreezeReason, ...]
    tasks: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class LinearForm:
    """A size as a function of how many channels each group keeps.

    ``value = constant + sum(coefficients[g] * kept[g] for g in coefficients)``.
    """

    constant: int
    coefficients: Mapping[str, int] = field(default_factory=dict)

    def value(self, kept: Mapping[str, int]) -> int:
        """Return the size when group ``g`` keeps ``kept[g]`` channels."""
        return self.constant + sum(c * kept[g] for g, c in self.coefficients.items())


ORDERED_BY_SIZES = frozenset({"linalg_multi_dot", "chain_matmul", "einsum"})
"""Functions that multiply several matrices in the order that is cheapest for their sizes.

In smaller matrices another order may be; the recorded one then costs more than they do.
"""


@dataclass(frozen=True, slots=True)
class MacsTerm:
    """Multiply-adds of one operator call: ``multiplier * prod(factor.value(kept))``.

    ``operator`` is its name, or that of the function if that is among :data:`ORDERED_BY_SIZES`;
    ``multiplier`` holds every size that pruning does not change (batch, space, kernel, tokens);
    ``inputs`` are those of the model that the operator's result was computed from.
    """

    operator: str
    module: str
    multiplier: int
    factors: tuple[LinearForm, ...]
    inputs: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class SizeProduct:
    """A length as ``multiplier * prod(factor.value(kept)) // divisor``.

    The divisor is 1 unless only some channels of a group occur in the tensor; then the size is that
    of an even choice among them.
    """

    multiplier: int
    factors: tuple[LinearForm, ...] = ()
    divisor: int = 1

    def value(self, kept: Mapping[str, int]) -> int:
        """Return the size when group ``g`` keeps ``kept[g]`` channels."""
        return self.multiplier * prod(f.value(kept) for f in self.factors) // self.divisor


@dataclass(frozen=True, slots=True)
class TensorForm:
    """A tensor that an operator reads or makes, with sizes as functions of the kept counts.

    Attributes:
        shape: One size per dim.
        dtype: Of its entries.
        storage: Number of its memory; views share it.
        is_activation: Whether the forward pass made its memory. Parameters, buffers, inputs and
            constants were there before.
    """

    shape: tuple[SizeProduct, ...]
    dtype: torch.dtype
    storage: int
    is_activation: bool

    def sizes(self, kept: Mapping[str, int]) -> tuple[int, ...]:
        """Return the shape when group ``g`` keeps ``kept[g]`` channels."""
        return tuple(size.value(kept) for size in self.shape)


@dataclass(frozen=True, eq=False, slots=True)
class OperatorSite:
    """One operator call that takes time or memory; those that only make views do neither.

    Attributes:
        operator: Such as ``"aten.relu.default"``; ``"output"`` for the last record, which reads
            what the model returns.
        module: Path of the innermost module whose forward ran it.
        arguments: All arguments by their schema names, with a :class:`TensorForm` for each tensor,
            and for numbers the values of the unpruned model.
        outputs: What it returned, ``None`` where that was no tensor.
    """

    operator: str
    module: str
    arguments: Mapping[str, Any]
    outputs: tuple[TensorForm | None, ...] = ()

    @property
    def inputs(self) -> tuple[TensorForm, ...]:
        """The tensors among the arguments, in order."""
        return tuple(_tensors(self.arguments.values()))


def _tensors(values: Iterable[Any]) -> Iterator[TensorForm]:
    for value in values:
        if isinstance(value, TensorForm):
            yield value
        elif isinstance(value, tuple):
            yield from _tensors(value)


@dataclass(frozen=True, slots=True)
class AttributeForm:
    """An integer that a module stores and that follows, as a function of the kept counts.

    The forward computes with it, or it is one by which a standard layer tells its sizes.

    Attributes:
        module: Path of the module (empty string for the root).
        path: Attribute name, then keys or positions inside containers: ``("split", 1)``.
        value: The integer to store after pruning.
    """

    module: str
    path: tuple[str | int, ...]
    value: LinearForm


@dataclass(frozen=True, slots=True)
class StoredInteger:
    """An integer that a module stores, that equals a size which can shrink, and that stays.

    Attributes:
        module: Path of the module (empty string for the root).
        path: Attribute name, then keys or positions inside containers.
        value: What it says.
        sizes: The dims of that length below the modules that hold it: of parameters and buffers by
            name, of outputs by the module's path.
        is_read: Whether recorded code computes with it, and is right with it as it is.
    """

    module: str
    path: tuple[str | int, ...]
    value: int
    sizes: tuple[tuple[str, int], ...]
    is_read: bool


@dataclass(frozen=True, eq=False)
class CouplingGroups:
    """Everything the later stages need to know of a model's structure.

    Iterating yields the prunable groups, ordered by first use in the forward pass.

    Attributes:
        groups: The prunable groups.
        frozen: Groups that cannot shrink, with reasons.
        shapes: Shape of each distinct parameter and buffer by its first name.
        parameter_names: Those of ``shapes`` that are parameters.
        attributes: Integers to update in modules.
        integers: Integers of modules that may come to differ from a size that they equal.
        macs: Cost of one forward pass on the traced example inputs, whole batch.
        sites: Every operator call of that pass that takes time or memory, in order.
        activation_sizes: Full size of the indexed dim of each activation,
            ``{(module, dim): size}``.
        tasks: Names of the declared tasks, in their order.
        untraced: Parameters that no traced forward touched.
        batch_size: Size of dim 0 of the traced inputs.
        replacements: Modules that something equal takes the place of, before anything is pruned.
            All names and shapes are those of the model with the replacements.
        input_reach: Which of the model's inputs parameters and operators work on.
        modalities: The declared modalities; empty where there are none.
    """

    groups: tuple[CouplingGroup, ...]
    frozen: tuple[FrozenGroup, ...]
    shapes: Mapping[str, tuple[int, ...]]
    parameter_names: frozenset[str]
    attributes: tuple[AttributeForm, ...] = ()
    integers: tuple[StoredInteger, ...] = ()
    macs: tuple[MacsTerm, ...] = ()
    sites: tuple[OperatorSite, ...] = ()
    activation_sizes: Mapping[tuple[str, int], int] = field(default_factory=dict)
    tasks: tuple[str, ...] = ()
    untraced: tuple[str, ...] = ()
    batch_size: int = 1
    replacements: tuple[ModuleReplacement, ...] = ()
    input_reach: InputReach = field(default_factory=InputReach, repr=False)
    modalities: tuple[Modality, ...] = ()

    def __iter__(self) -> Iterator[CouplingGroup]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, name: str) -> CouplingGroup:
        return self._by_name[name]

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    @property
    def _by_name(self) -> dict[str, CouplingGroup]:
        # Computed on first use; the record is frozen, so it goes past __setattr__.
        cached: dict[str, CouplingGroup] | None = self.__dict__.get("_index")
        if cached is None:
            cached = {group.name: group for group in self.groups}
            object.__setattr__(self, "_index", cached)
        return cached

    def full_counts(self) -> dict[str, int]:
        """Return ``{group name: n_channels}``: the counts of the unpruned model."""
        return {group.name: group.n_channels for group in self.groups}
