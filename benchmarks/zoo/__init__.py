"""The zoo: micro nets, one trap each; what the docstring says must come out, and stay exact.

``@net`` registers a class with its example inputs and the number of channels that can go, all
groups together. Every net is checked by the oracles of :mod:`taskprune.testing`.
"""

from __future__ import annotations

from zoo import forwards, groups, language, layers, maps, sizes, tokens
from zoo.case import ZOO, NetCase

__all__ = [
    "ZOO",
    "NetCase",
    "forwards",
    "groups",
    "language",
    "layers",
    "maps",
    "sizes",
    "tokens",
]
