"""From atomic channels to the records: groups, members, attributes, costs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from taskprune.coupling.context import Analysis
from taskprune.coupling.forms import Classes, Form
from taskprune.coupling.group_steps import fewest_channels, group_steps
from taskprune.coupling.groups import (
    AttributeForm,
    CouplingGroup,
    CouplingGroups,
    FreezeReason,
    FrozenGroup,
    IntArray,
    LinearForm,
    MacsTerm,
    TensorSlice,
)
from taskprune.coupling.module_outputs import module_outputs
from taskprune.coupling.partition import Partition
from taskprune.coupling.provenance import Assignment
from taskprune.coupling.sites import operator_sites
from taskprune.coupling.standard_sizes import standard_sizes
from taskprune.coupling.statistics import contracted, crossings, weight_statistics
from taskprune.coupling.stored_integers import stored_integers
from taskprune.graph.reach import follow_inputs, tasks_reached

_LONE = FreezeReason("structure", "is a single channel, and one must stay")


@dataclass(frozen=True, eq=False, slots=True)
class Entries:
    """The class of every position along one dim of a tensor or module output."""

    name: str
    dim: int
    labels: IntArray
    produces: bool = True


@dataclass(frozen=True, eq=False, slots=True)
class Kinds:
    """Classes with the same entries everywhere, hence interchangeable: the groups-to-be.

    Attributes:
        of_class: Kind of each class, -1 for those that belong to none.
        rank: Channel number of each class within its kind.
        sizes: How many classes each kind has.
        names: Name of each kind.
    """

    of_class: IntArray
    rank: IntArray
    sizes: IntArray
    names: tuple[str, ...]


def assemble(analysis: Analysis, solution: Partition, assignment: Assignment) -> CouplingGroups:
    """Build the records from a settled partition."""
    graph, classes = analysis.graph, solution.classes
    tensors = _tensor_entries(analysis, classes)
    taps = [
        Entries(tap.module, tap.dim, classes.labels[tap.units])
        for tap in module_outputs(analysis, classes)
    ]
    work = [(w, [classes.units_form(u) for u in w.units]) for w in _simplified(analysis, classes)]
    stored = {**assignment.forms, **standard_sizes(analysis, classes, assignment)}
    attributes = {a: f for a, f in stored.items() if not f.is_constant}
    forms = [*attributes.values(), *(form for _, own in work for form in own)]
    signature = _signatures(len(classes.frozen), [*tensors, *taps], forms)
    first = _first_positions(tensors, len(classes.frozen))
    kinds = _kinds(~classes.frozen, signature, first, tensors, fewest=2)  # one must stay
    reached = tasks_reached(graph)
    inputs = follow_inputs(graph)
    linear = _Linear(kinds)
    return CouplingGroups(
        groups=_groups(analysis, classes, kinds, tensors, taps, reached),
        frozen=_frozen_groups(analysis, solution, kinds, tensors, first, reached),
        shapes={
            name: graph.values[value].shape
            for name, value in {**graph.parameters, **graph.buffers}.items()
        },
        parameter_names=frozenset(graph.parameters),
        attributes=tuple(
            AttributeForm(a.module, a.path, form)
            for a, form in (
                (a, linear(attributes[a]))
                for a in sorted(attributes, key=lambda a: (a.module, str(a.path)))
            )
            if form.coefficients
        ),
        integers=tuple(
            stored_integers(
                graph,
                (
                    (entries.name, entries.dim, len(entries.labels))
                    for entries in (*tensors, *taps)
                    if not classes.frozen[entries.labels].all()
                ),
                followed=attributes,
                read=assignment.forms,
            )
        ),
        macs=tuple(
            MacsTerm(
                w.operator,
                w.module,
                w.multiplier,
                tuple(linear(f) for f in own),
                frozenset() if w.made is None else inputs.values.get(w.made, frozenset()),
            )
            for w, own in work
        ),
        sites=operator_sites(analysis, classes, linear.share),
        activation_sizes={(tap.name, tap.dim): len(tap.labels) for tap in taps},
        tasks=tuple(graph.tasks),
        untraced=graph.untraced,
        replacements=graph.replacements,
        batch_size=graph.batch_size,
        input_reach=replace(inputs, values={}),
    )


# -- entries -------------------------------------------------------------------------------------


def _tensor_entries(analysis: Analysis, classes: Classes) -> list[Entries]:
    table = analysis.units
    read = table.reading()
    return [
        Entries(
            column.name,
            column.dim,
            classes.labels[column.start : column.start + column.size],
            not read[column.start : column.start + column.size].any(),
        )
        for column in table.columns
    ]


@dataclass(frozen=True, eq=False, slots=True)
class _UnitWork:
    operator: str
    module: str
    multiplier: int
    units: tuple[IntArray, ...]
    made: int | None


def _simplified(analysis: Analysis, classes: Classes) -> Iterable[_UnitWork]:
    """Move every length that never changes into the multiplier."""
    for work in analysis.work:
        multiplier = work.multiplier
        units = []
        for factor in (f for axis in work.axes for f in axis):
            if factor.units is None or classes.frozen[classes.labels[factor.units]].all():
                multiplier *= factor.size
            else:
                units.append(factor.units)
        yield _UnitWork(work.operator, work.module, multiplier, tuple(units), work.made)


# -- kinds ---------------------------------------------------------------------------------------


def _signatures(
    n_classes: int, entries: Sequence[Entries], forms: Sequence[Form]
) -> NDArray[np.uint64]:
    """Return 128 bits for each class that tell how often it occurs in every dim and size.

    A random linear map of the counts, the same in every run: two classes agree exactly if their
    counts do, but for a chance of about 1 in 10^38.
    """
    columns = [e.labels for e in entries] + [f.classes for f in forms]
    counts = [np.ones(len(e.labels), np.uint64) for e in entries]
    counts += [f.counts.astype(np.uint64) for f in forms]
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 2**64, size=(len(columns), 2), dtype=np.uint64)
    signature = np.zeros((n_classes, 2), np.uint64)
    if columns:
        where = np.concatenate(columns)
        number = np.repeat(np.arange(len(columns)), [len(c) for c in columns])
        weight = np.concatenate(counts)
        for half in (0, 1):
            np.add.at(signature[:, half], where, weight * bits[number, half])
    return signature


def _first_positions(entries: Sequence[Entries], n_classes: int) -> IntArray:
    """Return where each class first occurs, entries that produce it before those that read it."""
    labels = np.concatenate([e.labels for e in entries]) if entries else np.empty(0, np.int64)
    reads = np.repeat([not e.produces for e in entries], [len(e.labels) for e in entries])
    total = len(labels)
    first = np.full(n_classes, 2 * total, np.int64)
    np.minimum.at(first, labels, np.arange(total) + total * reads)
    return first


def _kinds(
    classes: NDArray[np.bool_],
    signature: NDArray[np.uint64],
    first: IntArray,
    entries: Sequence[Entries],
    *,
    fewest: int,
) -> Kinds:
    """Gather classes of one signature, where there are ``fewest`` of them at the least."""
    members = np.flatnonzero(classes)
    members = members[np.argsort(first[members], kind="stable")]
    _, start, inverse, counts = np.unique(
        signature[members], axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    inverse = inverse.reshape(-1)
    order = np.argsort(start, kind="stable")
    order = order[counts[order] >= fewest]
    number = np.full(len(start), -1, np.int64)
    number[order] = np.arange(len(order))
    of_class = np.full(len(classes), -1, np.int64)
    of_class[members] = number[inverse]
    rank = np.zeros(len(classes), np.int64)
    by_kind = members[np.argsort(of_class[members], kind="stable")]
    by_kind = by_kind[of_class[by_kind] >= 0]
    sizes = counts[order].astype(np.int64)
    starts = np.cumsum(sizes) - sizes
    rank[by_kind] = np.arange(len(by_kind)) - np.repeat(starts, sizes)
    names = _names(first[members[start[order]]], entries)
    return Kinds(of_class, rank, sizes, names)


def _names(positions: IntArray, entries: Sequence[Entries]) -> tuple[str, ...]:
    """Name kinds after the tensor in which they first occur; number those that share one."""
    bounds = np.cumsum([len(e.labels) for e in entries])
    total = int(bounds[-1]) if len(bounds) else 0
    taken: dict[str, int] = {}
    names = []
    for position in positions:
        entry = entries[int(np.searchsorted(bounds, position % max(total, 1), side="right"))]
        name = entry.name.removesuffix(".weight")
        taken[name] = taken.get(name, 0) + 1
        names.append(name if taken[name] == 1 else f"{name}#{taken[name]}")
    return tuple(names)


class _Linear:
    """Rewrites forms over classes as forms over groups."""

    def __init__(self, kinds: Kinds) -> None:
        self.kinds = kinds

    def __call__(self, form: Form) -> LinearForm:
        of_class = self.kinds.of_class[form.classes]
        lone = of_class < 0
        constant = form.constant + int(form.counts[lone].sum())
        numbers, where = np.unique(of_class[~lone], return_index=True)
        counts = form.counts[~lone][where]
        return LinearForm(
            constant,
            {self.kinds.names[n]: int(c) for n, c in zip(numbers, counts, strict=True)},
        )

    def share(self, form: Form) -> tuple[LinearForm, int]:
        """Return a form and a divisor, for sizes that may hold a part of a group's channels."""
        of_class = self.kinds.of_class[form.classes]
        lone = of_class < 0
        constant = form.constant + int(form.counts[lone].sum())
        total: IntArray = np.zeros(len(self.kinds.names), np.int64)
        np.add.at(total, of_class[~lone], form.counts[~lone])
        numbers = np.flatnonzero(total)
        sizes = self.kinds.sizes[numbers]
        divisor = math.lcm(*(sizes // np.gcd(total[numbers], sizes)).tolist())
        coefficients = total[numbers] * divisor // sizes
        names = [self.kinds.names[n] for n in numbers]
        of_group = dict(zip(names, coefficients.tolist(), strict=True))
        return LinearForm(constant * divisor, of_group), divisor


# -- groups --------------------------------------------------------------------------------------


def _slices(entries: Sequence[Entries], kinds: Kinds) -> dict[int, list[TensorSlice]]:
    """Return the entries of each kind, channel by channel."""
    found: dict[int, list[TensorSlice]] = {}
    for entry in entries:
        of_entry = kinds.of_class[entry.labels]
        positions = np.flatnonzero(of_entry >= 0)
        if not len(positions):
            continue
        own = of_entry[positions]
        order = np.lexsort((positions, kinds.rank[entry.labels[positions]], own))
        positions, own = positions[order], own[order]
        numbers, starts = np.unique(own, return_index=True)
        for number, part in zip(numbers, np.split(positions, starts[1:]), strict=True):
            index = np.ascontiguousarray(part.reshape(int(kinds.sizes[number]), -1), dtype=np.int64)
            found.setdefault(int(number), []).append(
                TensorSlice(entry.name, entry.dim, index, entry.produces)
            )
    return found


def _groups(
    analysis: Analysis,
    classes: Classes,
    kinds: Kinds,
    tensors: Sequence[Entries],
    taps: Sequence[Entries],
    reached: Mapping[str, frozenset[str]],
) -> tuple[CouplingGroup, ...]:
    members, activations = _slices(tensors, kinds), _slices(taps, kinds)
    crossed = crossings(analysis, classes, kinds.of_class)
    statistics = weight_statistics(analysis, classes, kinds.of_class)
    summed = contracted(analysis, classes, kinds.of_class)
    steps = group_steps(analysis, classes, kinds.of_class, len(kinds.names))
    fewest = fewest_channels(analysis, classes, kinds.of_class, len(kinds.names))
    return tuple(
        CouplingGroup(
            name=name,
            n_channels=int(kinds.sizes[number]),
            members=tuple(members[number]),
            activations=tuple(activations.get(number, ())),
            tasks=_tasks(members[number], reached),
            crossed_by=tuple(crossed.get(number, ())),
            statistics=tuple(statistics.get(number, ())),
            step=steps[number],
            fewest=fewest[number],
            contracted=number in summed,
        )
        for number, name in enumerate(kinds.names)
    )


def _tasks(members: Sequence[TensorSlice], reached: Mapping[str, frozenset[str]]) -> frozenset[str]:
    return frozenset().union(*(reached[m.name] for m in members))


def _frozen_groups(
    analysis: Analysis,
    solution: Partition,
    kinds: Kinds,
    tensors: Sequence[Entries],
    first: IntArray,
    reached: Mapping[str, frozenset[str]],
) -> tuple[FrozenGroup, ...]:
    reasons, reason_of = _reasons(analysis, solution, kinds)
    signature = _signatures(len(reason_of), tensors, [])
    frozen = (kinds.of_class < 0) & (reason_of >= 0) & signature.any(axis=1)
    signature[:, 0] += reason_of.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    alike = _kinds(frozen, signature, first, tensors, fewest=1)
    slices = _slices(tensors, alike)
    of_kind = np.empty(len(alike.names), np.int64)
    of_kind[alike.of_class[frozen]] = reason_of[frozen]
    return tuple(
        FrozenGroup(
            name=name,
            n_channels=int(alike.sizes[n]),
            members=tuple(slices[n]),
            reasons=(reasons[int(of_kind[n])],),
            tasks=_tasks(slices[n], reached),
        )
        for n, name in enumerate(alike.names)
    )


def _reasons(
    analysis: Analysis, solution: Partition, kinds: Kinds
) -> tuple[list[FreezeReason], IntArray]:
    """Return all reasons, and the number of the first that applies to each class, or -1."""
    labels = solution.classes.labels
    reasons = list(analysis.units.reasons)
    none = np.iinfo(np.int64).max
    reason_of = np.full(len(solution.classes.frozen), none, np.int64)
    for units, number in analysis.units.frozen:
        if number >= 0:
            np.minimum.at(reason_of, labels[units], number)
    later = [(units, record.reason) for units, record in solution.passed_over]
    for record in solution.rigid:
        own = [reason_of[labels[u]].min() for u in record.factors if u is not None]
        known = min(own, default=none)
        later.append((record.flat, record.reason if known == none else reasons[known]))
    for units, reason in later:
        reasons.append(reason)
        np.minimum.at(reason_of, labels[units], len(reasons) - 1)
    reasons.append(_LONE)
    alone = ~solution.classes.frozen & (kinds.of_class < 0)
    reason_of[alone & (reason_of == none)] = len(reasons) - 1
    return reasons, np.where(reason_of == none, -1, reason_of)
