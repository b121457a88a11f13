"""Modules that cannot shrink as they are written, and what stands in for them."""

from taskprune.replace.prunable_attention import PrunableMultiheadAttention
from taskprune.replace.replacement import (
    CONVOLUTION,
    PLAIN,
    find_replacements,
    reference_replacements,
    replace_modules,
    replaced_modules,
    split_parameters,
)
from taskprune.replace.replacement_record import ModuleReplacement
from taskprune.replace.unequal_groups import UnequalGroupsConv

__all__ = [
    "CONVOLUTION",
    "PLAIN",
    "ModuleReplacement",
    "PrunableMultiheadAttention",
    "UnequalGroupsConv",
    "find_replacements",
    "reference_replacements",
    "replace_modules",
    "replaced_modules",
    "split_parameters",
]
