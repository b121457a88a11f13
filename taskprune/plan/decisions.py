"""What a plan is made of: a record for each thing that it decides."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from taskprune.errors import InputError


@dataclass(frozen=True, slots=True)
class KeptEntries:
    """Which entries stay along one dim of a tensor or of a module's output.

    Attributes:
        name: Parameter or buffer name, or the module's path for an activation.
        dim: The axis.
        size: Its length in the original model.
        keep: Positions that stay, ascending, in original coordinates.
    """

    name: str
    dim: int
    size: int
    keep: tuple[int, ...]

    def __post_init__(self) -> None:
        _check_ascending(self.keep, self.size, f"`keep` of `{self.name}`, dim {self.dim}")


@dataclass(frozen=True, slots=True)
class AttributeChange:
    """An integer that a module stores, and its value before and after pruning.

    Attributes:
        module: Path of the module (empty for the root).
        path: Attribute name, then keys or positions inside containers.
        before: What it says in the original.
        value: What it will say.
    """

    module: str
    path: tuple[str | int, ...]
    before: int
    value: int

    def __str__(self) -> str:
        return f"`{_place(self.module, self.path)}` says {self.value} in place of {self.before}"


@dataclass(frozen=True, slots=True)
class KeptAttribute:
    """An integer that equals a size which changes below its module, and that keeps its value.

    Attributes:
        module: Path of the module that holds it (empty for the root).
        path: Attribute name, then keys or positions inside containers.
        value: What it says.
        is_read: Whether the recorded forward computes with it, and is right with it as it is.
    """

    module: str
    path: tuple[str | int, ...]
    value: int
    is_read: bool

    def __str__(self) -> str:
        return f"`{_place(self.module, self.path)}` still says {self.value}"


@dataclass(frozen=True, slots=True)
class GroupDecision:
    """What happens to one coupling group.

    Attributes:
        name: The group's name.
        n_channels: How many channels it has.
        drop: Channel numbers that go, ascending.
        tasks: Tasks that they can reach.
        crossed_by: What computes a statistic across them, see
            :class:`~taskprune.coupling.CouplingGroup`.
        made_by: Parameters and buffers whose entries make the channels.
        read_by: Parameters and buffers whose entries read them.
        modality: Modality that they belong to, or ``"fusion"``; empty where none were declared.
    """

    name: str
    n_channels: int
    drop: tuple[int, ...]
    tasks: tuple[str, ...] = ()
    crossed_by: tuple[str, ...] = ()
    made_by: tuple[str, ...] = ()
    read_by: tuple[str, ...] = ()
    modality: str = ""

    def __post_init__(self) -> None:
        _check_ascending(self.drop, self.n_channels, f"`drop` of group `{self.name}`")

    @property
    def n_kept(self) -> int:
        """How many channels stay."""
        return self.n_channels - len(self.drop)


def notes_on(attributes: Iterable[KeptAttribute]) -> tuple[str, ...]:
    """Return a sentence for each reason to stay; attributes of modules that are alike are one."""
    alike: dict[tuple[bool, tuple[str | int, ...], int], list[KeptAttribute]] = {}
    for kept in attributes:
        alike.setdefault((kept.is_read, kept.path, kept.value), []).append(kept)
    reasons = {
        False: "No recorded forward was seen to read these, so they stay, though",
        True: "The forward computes with these and is right with them as they are, though",
    }
    notes = []
    for is_read, reason in reasons.items():
        told = [
            f"{first}" + (f" (and in {len(more)} modules like it)" if more else "")
            for (read, *_), (first, *more) in alike.items()
            if read == is_read
        ]
        if told:
            notes.append(f"{reason} a size of that value changes below: {', '.join(told)}.")
    return tuple(notes)


def _place(module: str, path: tuple[str | int, ...]) -> str:
    return ".".join([module or "model", *map(str, path)])


def _check_ascending(numbers: tuple[int, ...], size: int, what: str) -> None:
    array = np.asarray(numbers, dtype=np.int64)
    if array.size and (array[0] < 0 or array[-1] >= size or (np.diff(array) <= 0).any()):
        raise InputError(f"Expected {what} to ascend within 0 to {size - 1}. Found {numbers[:8]}…")
