"""The record of a replacement: plain data that a plan carries."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModuleReplacement:
    """One part of a model and what takes its place.

    Attributes:
        path: Its path in the model; of several paths of one module the first.
        kind: What takes its place.
        detail: What else it takes to redo it, in a form that the kind knows; mostly empty.
    """

    path: str
    kind: str
    detail: str = ""
