"""The decision which channels go, as data: made, composed, explained, printed."""

from taskprune.plan.composition import compose
from taskprune.plan.decisions import AttributeChange, GroupDecision, KeptAttribute, KeptEntries
from taskprune.plan.explanation import Explanation
from taskprune.plan.plan import PruningPlan, build_plan
from taskprune.plan.rationale import FrozenDecision, GroupRationale, Saving, TaskShare

__all__ = [
    "AttributeChange",
    "Explanation",
    "FrozenDecision",
    "GroupDecision",
    "GroupRationale",
    "KeptAttribute",
    "KeptEntries",
    "PruningPlan",
    "Saving",
    "TaskShare",
    "build_plan",
    "compose",
]
