"""The decision which channels go, as data: made, composed, explained, printed."""

from taskprune.plan.composition import compose
from taskprune.plan.explanation import Explanation
from taskprune.plan.plan import AttributeChange, GroupDecision, KeptEntries, PruningPlan, build_plan
from taskprune.plan.rationale import FrozenDecision, GroupRationale, Saving, TaskShare

__all__ = [
    "AttributeChange",
    "Explanation",
    "FrozenDecision",
    "GroupDecision",
    "GroupRationale",
    "KeptEntries",
    "PruningPlan",
    "Saving",
    "TaskShare",
    "build_plan",
    "compose",
]
