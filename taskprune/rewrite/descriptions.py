"""Integers of the user's modules that only describe: which of them have a certain new value.

A network often stores its widths for people, printing and later code (``embed_dim``,
``num_features``, ``config.hidden_size``) and computes with the shapes alone. What the forward reads
is in the plan. Of the rest, an integer is updated where its name says what it counts, the
tensors nearby of that length all get the same new length, and no code that the forward can reach
reads it. Anything less certain stays and is listed. The rule is our own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from taskprune.graph.attributes import is_configuration
from taskprune.plan.plan import AttributeChange, PruningPlan
from taskprune.rewrite.nearby import NearbySizes, agreed
from taskprune.rewrite.reading import EVERYTHING, is_standard, read_names

Role: TypeAlias = Literal["in", "out", "width", "stream"]
"""``in``, ``out``: what the module reads, makes. ``width``: either. ``stream``: reads and makes."""

Path: TypeAlias = tuple[str | int, ...]

_NAMES: Mapping[Role, str] = {
    "in": "in_channels in_features in_dim in_chs in_planes inplanes input_dim",
    "out": "out_channels out_features out_dim out_chs out_planes output_dim feature_dim",
    "width": (
        "num_features num_channels channels hidden_dim hidden_features hidden_channels width "
        "feature_channels inner_dim intermediate_size mlp_dim ffn_dim dim_feedforward d_ff "
        "head_hidden_size hidden_sizes dims embed_dims"
    ),
    "stream": "embed_dim embedding_dim d_model dim hidden_size model_dim n_embd",
}
_ROLES: Mapping[str, Role] = {
    name: role for role, names in _NAMES.items() for name in names.split()
}

_HEADS = frozenset({"num_heads", "n_heads", "n_head", "nhead", "num_attention_heads"})
_HEAD_WIDTHS = frozenset({"head_dim", "head_width", "dim_head", "attention_head_size"})
_KNOWN = frozenset(_ROLES) | _HEADS | _HEAD_WIDTHS

_DEEPEST = 3
"""How far configurations inside of configurations are followed."""

_READ = "code that the forward can reach reads an attribute of that name"
_ALL_READ = "code that the forward may reach reads all attributes of an object at once"
_COMPUTED = "the class that holds it computes its attributes"
_HEADS_UNCLEAR = "the number of heads and their width after pruning do not follow from the sizes"


@dataclass(frozen=True, slots=True)
class KeptDescription:
    """An integer that names a size which shrinks nearby, and that keeps its value.

    Attributes:
        module: Path of the module that holds it (empty for the root).
        path: Attribute name, then keys or positions inside containers.
        value: What it says.
        reason: Why it was left alone.
    """

    module: str
    path: Path
    value: int
    reason: str

    def __str__(self) -> str:
        place = ".".join([self.module or "model", *map(str, self.path)])
        return f"`{place}` still says {self.value}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Descriptions:
    """What becomes of the integers that only describe."""

    updated: tuple[AttributeChange, ...]
    kept: tuple[KeptDescription, ...]

    def notes(self) -> tuple[str, ...]:
        """Return a line for each attribute that was kept; layers that are alike share one."""
        alike: dict[tuple[Path, int, str], list[KeptDescription]] = {}
        for kept in self.kept:
            alike.setdefault((kept.path, kept.value, kept.reason), []).append(kept)
        return tuple(
            f"{first}" + (f" (and in {len(more)} modules like it)" if more else "")
            for first, *more in alike.values()
        )


@dataclass(frozen=True, slots=True)
class _Place:
    """An integer and where it lies; `owner` tells one object from another."""

    module: str
    path: Path
    value: int
    owner: tuple[int, Path]
    aliases: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return next(key for key in reversed(self.path) if isinstance(key, str))


def describe(model: nn.Module, plan: PruningPlan) -> Descriptions:
    """Work out the new values of the descriptive attributes of a model that a plan fits.

    Args:
        model: The model before anything is changed; with or without the plan's replacements.
        plan: The plan.
    """
    if not plan.tensors:
        return Descriptions((), ())
    sizes = NearbySizes(model, plan)
    planned = {(change.module, change.path): change.value for change in plan.attributes}
    by_owner: dict[tuple[int, Path], list[_Place]] = {}
    for path, module in model.named_modules():
        if not is_standard(module):
            for place in _places(module, path):
                by_owner.setdefault(place.owner, []).append(place)
    bare = list(_norms_without_tensors(model, sizes, planned))
    # What the plan sets in one holder of a shared object, it sets in all.
    unplanned = [
        places
        for places in by_owner.values()
        if not any((place.module, place.path) in planned for place in places)
    ]
    suspects = [
        (places, found)
        for places in unplanned
        if places[0].name in _ROLES and (found := _verdict(sizes, places)) is not None
    ]
    heads = _head_pairs(by_owner.values(), sizes)
    if not suspects and not heads:
        return Descriptions(tuple(bare), ())
    names = read_names(model)

    why_read = _ALL_READ if names is EVERYTHING else _READ

    def is_read(place: _Place) -> bool:
        return names is EVERYTHING or not names.isdisjoint((place.name, *place.aliases))

    decisions: list[tuple[_Place, int | str]] = [
        (places[0], why_read if is_read(places[0]) else found) for places, found in suspects
    ]
    for pair, width in heads:
        decisions += _heads_and_width(pair, width, planned, is_read)
    return Descriptions(
        (
            *bare,
            *(AttributeChange(p.module, p.path, n) for p, n in decisions if isinstance(n, int)),
        ),
        tuple(
            KeptDescription(p.module, p.path, p.value, why)
            for p, why in decisions
            if isinstance(why, str)
        ),
    )


def _norms_without_tensors(
    model: nn.Module, sizes: NearbySizes, planned: Mapping[tuple[str, Path], int]
) -> Iterator[AttributeChange]:
    """Yield the channels of standard norms that have no tensor to read them off."""
    for path, module in model.named_modules():
        if not isinstance(module, nn.GroupNorm | _NormBase) or not is_standard(module):
            continue
        name = "num_channels" if isinstance(module, nn.GroupNorm) else "num_features"
        if any(True for _ in (*module.parameters(), *module.buffers())):
            continue
        returned = sizes.returned(path, getattr(module, name))
        if returned is not None and (path, (name,)) not in planned:
            yield AttributeChange(path, (name,), returned)


def _heads_and_width(
    pair: tuple[_Place, _Place],
    total: int | str,
    planned: Mapping[tuple[str, Path], int],
    is_read: Callable[[_Place], bool],
) -> Iterator[tuple[_Place, int | str]]:
    """Yield what becomes of a number of heads and of their width.

    One follows from the other where the code computes with that one: the plan sets it, or it is a
    number of heads that stays.
    """
    heads, width = pair
    n_heads = planned.get((heads.module, heads.path))
    n_each = planned.get((width.module, width.path))
    if n_heads is None and is_read(heads):
        n_heads = heads.value
    for place, mine, other in ((heads, n_heads, n_each), (width, n_each, n_heads)):
        if mine is None:
            new = total // other if isinstance(total, int) and other and not total % other else None
            if new != place.value:
                yield place, _READ if is_read(place) else _HEADS_UNCLEAR if new is None else new


def _verdict(sizes: NearbySizes, places: list[_Place]) -> int | str | None:
    """Return the new value, why there is none, or ``None`` where nothing of that size shrinks."""
    first = places[0]
    if len(first.path) > 1 or len(places) > 1:
        # One number for all below those that hold it.
        below = (d for place in places for d in sizes.below(place.module))
        found = agreed(d for d in below if d.old == first.value)
        return found if found is None or "" not in first.aliases else _COMPUTED
    role = _ROLES[first.name]
    returned = sizes.returned(first.module, first.value)
    if role == "out" and returned is not None:
        return returned
    near = [d for d in sizes.near(first.module) if d.old == first.value]
    fitting = [d for d in near if (d.reads or role != "in") and (d.makes or role != "out")]
    if not near:
        fitting = [d for d in sizes.below(first.module) if d.old == first.value]
    found = agreed(fitting)
    if isinstance(found, str) and role == "stream" and returned is not None:
        # What it takes and returns; another dim of that length is the width inside of it.
        return returned if any(d.reads and d.new == returned for d in fitting) else found
    return found


def _head_pairs(
    owners: Iterable[list[_Place]], sizes: NearbySizes
) -> list[tuple[tuple[_Place, _Place], int | str]]:
    """Return the number of heads and their width of each module that stores both.

    With the new width of all heads together, or why it is not known; where any shrinks.
    """
    counts: dict[str, dict[bool, _Place]] = {}
    for place, *others in owners:
        if not others and len(place.path) == 1 and place.name in _HEADS | _HEAD_WIDTHS:
            counts.setdefault(place.module, {})[place.name in _HEADS] = place
    found: list[tuple[tuple[_Place, _Place], int | str]] = []
    for module, pair in counts.items():
        if len(pair) == 2:
            total = pair[True].value * pair[False].value
            width = _inner_width(sizes, module, total)
            if width is not None:
                found.append(((pair[True], pair[False]), width))
    return found


def _inner_width(sizes: NearbySizes, module: str, total: int) -> int | str | None:
    dims = [d for d in sizes.near(module) if d.old == total]
    found = agreed(dims)
    returned = sizes.returned(module, total)
    if not isinstance(found, str) or returned is None:
        return found
    inside = [d for d in dims if d.new != returned]
    return agreed(inside, or_same=True) if any(d.reads for d in inside) else found


def _places(module: nn.Module, path: str) -> Iterator[_Place]:
    """Yield the integers with a name that says what they count."""
    for name, value in vars(module).items():
        if not name.startswith("_"):
            yield from _inside(value, path, (name,), (id(module), (name,)), ())


def _inside(
    value: Any, module: str, path: Path, owner: tuple[int, Path], aliases: tuple[str, ...]
) -> Iterator[_Place]:
    if type(value) is int:
        if path[-1] in _KNOWN or isinstance(path[-1], int):
            yield _Place(module, path, value, owner, aliases)
    elif type(value) is tuple and path[-1] in _KNOWN:
        for i, inner in enumerate(value):
            if type(inner) is int:
                yield _Place(module, (*path, i), inner, (owner[0], (*owner[1], i)), aliases)
    elif type(value) is list and path[-1] in _KNOWN:
        for i, inner in enumerate(value):
            if type(inner) is int:
                yield _Place(module, (*path, i), inner, (id(value), (i,)), aliases)
    elif len(path) <= _DEEPEST and is_configuration(value):
        for name, inner in vars(value).items():
            more = _aliases(type(value), name)
            yield from _inside(inner, module, (*path, name), (id(value), (name,)), more)


def _aliases(kind: type, name: str) -> tuple[str, ...]:
    """Return the other names of a configuration's attribute; an empty one stands for any."""
    renamed = getattr(kind, "attribute_map", None)
    if isinstance(renamed, Mapping):
        return tuple(str(other) for other, own in renamed.items() if own == name)
    own = {method for base in kind.__mro__[:-1] for method in vars(base)}
    computes = "__getattribute__" in own or "__getattr__" in own
    return ("",) if computes else ()
