"""The zoo: micro nets, one trap each; what the docstring says must come out, and stay exact.

``@net`` registers a class with its example inputs and the number of channels that can go, all
groups together. Every net is checked by the oracles of :mod:`taskprune.testing`.
"""

from __future__ import annotations

import zoo_forwards
import zoo_groups
import zoo_language
import zoo_layers
import zoo_maps
import zoo_sizes
import zoo_tokens
from zoo_case import ZOO, NetCase

__all__ = [
    "ZOO",
    "NetCase",
    "zoo_forwards",
    "zoo_groups",
    "zoo_language",
    "zoo_layers",
    "zoo_maps",
    "zoo_sizes",
    "zoo_tokens",
]
