"""Modules that cannot shrink as they are written, and what stands in for them."""

from taskprune.replace.attention import PrunableMultiheadAttention
from taskprune.replace.convolution import UnequalGroupsConv
from taskprune.replace.record import ModuleReplacement
from taskprune.replace.replacement import (
    CONVOLUTION,
    find_replacements,
    replace_modules,
    replaced_modules,
    split_parameters,
)

__all__ = [
    "CONVOLUTION",
    "ModuleReplacement",
    "PrunableMultiheadAttention",
    "UnequalGroupsConv",
    "find_replacements",
    "replace_modules",
    "replaced_modules",
    "split_parameters",
]
