"""Modules that cannot shrink as they are written, and what stands in for them."""

from taskprune.replace.attention import PrunableMultiheadAttention
from taskprune.replace.record import ModuleReplacement
from taskprune.replace.replacement import (
    find_replacements,
    replace_modules,
    replaced_modules,
    split_parameters,
)

__all__ = [
    "ModuleReplacement",
    "PrunableMultiheadAttention",
    "find_replacements",
    "replace_modules",
    "replaced_modules",
    "split_parameters",
]
