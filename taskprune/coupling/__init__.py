"""Find out which tensor entries live or die together."""

from taskprune.coupling.context import RuleContext
from taskprune.coupling.groups import (
    AttributeForm,
    CouplingGroup,
    CouplingGroups,
    FreezeReason,
    FrozenGroup,
    LinearForm,
    MacsTerm,
    OperatorSite,
    SizeProduct,
    TensorForm,
    TensorSlice,
)
from taskprune.coupling.partition import prefer_inner, prefer_outer
from taskprune.coupling.registry import channel_rule, known_operators
from taskprune.coupling.solving import couple

__all__ = [
    "AttributeForm",
    "CouplingGroup",
    "CouplingGroups",
    "FreezeReason",
    "FrozenGroup",
    "LinearForm",
    "MacsTerm",
    "OperatorSite",
    "RuleContext",
    "SizeProduct",
    "TensorForm",
    "TensorSlice",
    "channel_rule",
    "couple",
    "known_operators",
    "prefer_inner",
    "prefer_outer",
]
