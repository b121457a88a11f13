"""A pruning plan: the decision which channels go, as data.

A plan can be printed, compared, stored as JSON and replayed on a freshly built model of the same
class. It needs neither the trace nor the scores it came from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from taskprune.coupling.groups import CouplingGroups, IntArray, TensorSlice
from taskprune.errors import InputError, PlanMismatchError
from taskprune.files import read_bytes, write_text
from taskprune.plan.decisions import (
    AttributeChange,
    GroupDecision,
    KeptAttribute,
    KeptEntries,
    notes_on,
)
from taskprune.plan.explanation import Explanation, TensorLine, explain
from taskprune.plan.plan_json import plan_parts, plan_text
from taskprune.plan.rationale import FrozenDecision, GroupRationale
from taskprune.plan.tables import plan_summary, plan_table
from taskprune.replace import ModuleReplacement
from taskprune.terminal import plain_text

if TYPE_CHECKING:
    from rich.console import Group


@dataclass(frozen=True, repr=False)
class PruningPlan:
    """The whole decision. Made by ``taskprune.solve`` or :func:`build_plan`.

    Attributes:
        groups: One decision per prunable group, also where nothing is dropped.
        tensors: Parameters and buffers that shrink.
        activations: Module outputs that shrink, for aligning features with the original's.
        attributes: Integers to store in modules.
        kept_attributes: Integers of modules that equal a size which changes below, and that stay.
        shapes: Shapes of all parameters and buffers of the model the plan was made for, with the
            replacements in place.
        costs: Figures such as ``params`` and ``macs`` as ``{name: (before, after)}``.
        replacements: Modules that cannot shrink as they are written and are replaced by something
            equal before anything is pruned, whether or not it loses channels.
        frozen: Groups that stay whole, and why.
        rationale: Why each group loses what it loses: a record per group and round of solving.
    """

    groups: tuple[GroupDecision, ...]
    tensors: tuple[KeptEntries, ...]
    activations: tuple[KeptEntries, ...]
    attributes: tuple[AttributeChange, ...]
    shapes: Mapping[str, tuple[int, ...]]
    costs: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    replacements: tuple[ModuleReplacement, ...] = ()
    frozen: tuple[FrozenDecision, ...] = ()
    rationale: tuple[GroupRationale, ...] = ()
    kept_attributes: tuple[KeptAttribute, ...] = ()

    @property
    def kept(self) -> dict[str, int]:
        """``{group name: channels kept}``."""
        return {decision.name: decision.n_kept for decision in self.groups}

    @property
    def drop(self) -> dict[str, tuple[int, ...]]:
        """``{group name: channels dropped}``, groups that lose none left out."""
        return {d.name: d.drop for d in self.groups if d.drop}

    @property
    def pruned_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all parameters and buffers of the pruned model."""
        shapes = {name: list(shape) for name, shape in self.shapes.items()}
        for kept in self.tensors:
            shapes[kept.name][kept.dim] = len(kept.keep)
        return {name: tuple(shape) for name, shape in shapes.items()}

    def __repr__(self) -> str:
        return f"PruningPlan({self.summary()})"

    def __str__(self) -> str:
        return plain_text(self.__rich__())

    def __rich__(self) -> Group:
        return plan_table(self.groups, self.costs)

    def summary(self) -> str:
        """Return one line: how many channels go, and what that saves."""
        return plan_summary(self.groups, self.costs)

    def notes(self) -> tuple[str, ...]:
        """Return what may surprise: integers in modules that stay though a size like it changes."""
        return notes_on(self.kept_attributes)

    def explain(self, subject: str) -> Explanation:
        """Say what happens to one module and why: print the answer, or take its fields.

        Which of its channels go, whose importance and what conflict they carry, what their going
        saves, which limit holds the rest, what froze those that cannot go, and which integers
        that modules store change with them.

        Args:
            subject: Path of a module (empty for the whole model), name of a parameter or buffer, or
                name of a group.

        Raises:
            InputError: The plan knows nothing of that name; suggests close ones.
        """
        after = self.pruned_shapes
        return explain(
            subject,
            groups=self.groups,
            tensors=[TensorLine(n, tuple(s), after[n]) for n, s in self.shapes.items()],
            rationale=self.rationale,
            frozen=self.frozen,
            attributes=self.attributes,
            kept_attributes=self.kept_attributes,
        )

    def to_json(self) -> str:
        """Return the plan as JSON text.

        Every record has a line of its own and channels are written as ranges (``"0-3 7"``), so that
        two plans can be compared with any line-by-line tool.
        """
        return plan_text({part.name: getattr(self, part.name) for part in fields(self)})

    @classmethod
    def from_json(cls, text: str) -> PruningPlan:
        """Rebuild a plan from :meth:`to_json`.

        A plan says what becomes of a model's weights, so one that was changed since is refused: to
        change a plan, change the record (:func:`dataclasses.replace`) and write it again.

        Raises:
            InputError: The text is no plan of this version, was changed, or contradicts itself.
        """
        try:
            return cls(**plan_parts(text))
        except InputError as error:
            raise InputError(
                "Expected the JSON text of a pruning plan (from `PruningPlan.to_json`). Found "
                f"something else. {error}"
            ) from error

    def save(self, path: str | Path) -> None:
        """Write the plan to a JSON file, which appears under its name when it is complete.

        Raises:
            CheckpointError: The file cannot be written; what was there before still is.
        """
        write_text(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> PruningPlan:
        """Read a plan from a JSON file.

        Raises:
            InputError: The file is missing, or holds no plan that :meth:`from_json` reads.
        """
        try:
            return cls(**plan_parts(read_bytes(Path(path))))
        except (OSError, InputError) as error:
            raise InputError(
                f"Expected a pruning plan (from `PruningPlan.save`) in `{path}`. Found something "
                f"else. {error}"
            ) from error

    def check_fits(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Check that a model with these parameter and buffer shapes is the one planned for.

        They are those of the model with the plan's replacements in place.

        Raises:
            PlanMismatchError: Names the first tensor that is missing, unknown or differs.
        """
        for name, shape in self.shapes.items():
            if name not in shapes:
                raise PlanMismatchError(
                    f"The plan was made for a model with a tensor `{name}` of shape {shape}; this "
                    "model has none. Build the model with the arguments of the original."
                )
            if tuple(shapes[name]) != tuple(shape):
                raise PlanMismatchError(
                    f"The plan was made for `{name}` of shape {tuple(shape)}. Found shape "
                    f"{tuple(shapes[name])}: another configuration, or already pruned."
                )
        unknown = sorted(set(shapes) - set(self.shapes))
        if unknown:
            raise PlanMismatchError(
                f"This model has a tensor `{unknown[0]}` that the plan knows nothing of"
                f" ({len(unknown)} in all). Build the model with the arguments of the original."
            )


def build_plan(
    groups: CouplingGroups,
    drop: Mapping[str, IntArray],
    costs: Mapping[str, tuple[int, int]] | None = None,
    rationale: tuple[GroupRationale, ...] = (),
) -> PruningPlan:
    """Work out what a choice of channels means for every tensor, activation and attribute.

    Args:
        groups: The model's coupling groups.
        drop: ``{group name: channel numbers to remove}``; groups left out lose none.
        costs: Figures to carry along, see :class:`PruningPlan`.
        rationale: Reasons to carry along.

    Raises:
        InputError: An unknown group, a channel out of range, a group that would keep fewer than
            must stay, or one of which so many channels cannot go.
    """
    dropped = {name: _checked_drop(groups, name, channels) for name, channels in drop.items()}
    kept = {g.name: g.n_channels - len(dropped.get(g.name, ())) for g in groups}
    decisions = tuple(
        GroupDecision(
            name=group.name,
            n_channels=group.n_channels,
            drop=tuple(dropped.get(group.name, np.empty(0, np.int64)).tolist()),
            tasks=tuple(sorted(group.tasks)),
            crossed_by=group.crossed_by,
            made_by=_names(m for m in group.members if m.produces),
            read_by=_names(m for m in group.members if not m.produces),
            modality=group.modality,
        )
        for group in groups
    )

    slices = [(group, dropped[group.name]) for group in groups if group.name in dropped]
    tensors = _kept_entries(
        ((entries, gone) for group, gone in slices for entries in group.members),
        lambda name, dim: groups.shapes[name][dim],
    )
    activations = _kept_entries(
        ((entries, gone) for group, gone in slices for entries in group.activations),
        lambda name, dim: groups.activation_sizes[name, dim],
    )
    full = groups.full_counts()
    changes = (
        AttributeChange(a.module, a.path, a.value.value(full), a.value.value(kept))
        for a in groups.attributes
    )
    smaller = {(entries.name, entries.dim) for entries in (*tensors, *activations)}
    return PruningPlan(
        groups=decisions,
        tensors=tensors,
        activations=activations,
        attributes=tuple(change for change in changes if change.value != change.before),
        shapes=dict(groups.shapes),
        costs=dict(costs or {}),
        replacements=groups.replacements,
        frozen=tuple(FrozenDecision.of(group) for group in groups.frozen),
        rationale=rationale,
        kept_attributes=tuple(
            KeptAttribute(stored.module, stored.path, stored.value, stored.is_read)
            for stored in groups.integers
            if not smaller.isdisjoint(stored.sizes)
        ),
    )


def _names(slices: Iterable[TensorSlice]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(entries.name for entries in slices))


def _checked_drop(groups: CouplingGroups, name: str, channels: IntArray) -> IntArray:
    if name not in groups:
        raise InputError(
            f"There is no prunable group `{name}`. The model's groups: "
            f"{', '.join(g.name for g in groups.groups[:8])}, … ({len(groups)} in all)."
        )
    n_channels = groups[name].n_channels
    unique = np.unique(np.asarray(channels, dtype=np.int64))
    if unique.size and (unique[0] < 0 or unique[-1] >= n_channels):
        raise InputError(
            f"Group `{name}` has channels 0 to {n_channels - 1}. Found "
            f"{unique[0] if unique[0] < 0 else unique[-1]} among those to drop."
        )
    if unique.size > (most := n_channels - (fewest := groups[name].fewest)):
        why = "" if fewest == 1 else ": fewer, and an operator fails or computes something else"
        raise InputError(
            f"Expected group `{name}` to keep at least {fewest} of its {n_channels} channels{why}. "
            f"Found {unique.size} to drop; drop {most} at most."
        )
    if unique.size % (step := groups[name].step):
        raise InputError(
            f"Channels of group `{name}` go {step} at a time: an operator takes no width in "
            f"between. Found {unique.size} to drop."
        )
    return unique


def _kept_entries(
    slices: Iterator[tuple[TensorSlice, IntArray]], size_of: Callable[[str, int], int]
) -> tuple[KeptEntries, ...]:
    masks: dict[tuple[str, int], np.ndarray[Any, np.dtype[np.bool_]]] = {}
    for entries, dropped in slices:
        key = (entries.name, entries.dim)
        if key not in masks:
            masks[key] = np.ones(size_of(*key), dtype=np.bool_)
        masks[key][entries.index[dropped].ravel()] = False
    return tuple(
        KeptEntries(name, dim, len(mask), tuple(np.flatnonzero(mask).tolist()))
        for (name, dim), mask in sorted(masks.items())
        if not mask.all()
    )
