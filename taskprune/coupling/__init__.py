"""Find out which tensor entries live or die together."""

from taskprune.coupling.context import RuleContext
from taskprune.coupling.fixpoint import couple
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
from taskprune.coupling.modalities import (
    find_modalities,
    labelled,
    mask_points,
    modality_of_groups,
    modality_of_tensors,
    modality_of_work,
)
from taskprune.coupling.partition import prefer_inner, prefer_outer
from taskprune.coupling.registry import channel_rule, known_operators

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
    "find_modalities",
    "known_operators",
    "labelled",
    "mask_points",
    "modality_of_groups",
    "modality_of_tensors",
    "modality_of_work",
    "prefer_inner",
    "prefer_outer",
]
