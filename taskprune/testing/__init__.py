"""Oracles: what must hold for every model, every group and every plan, without golden files.

For tests of your own channel rules, criteria and models::

    model = randomise_(MyNet(), seed=0)
    groups = couple(trace(model, x))
    for group in groups:
        assert_permutation_invariant(model, groups, group.name, x)
    assert_masked_equals_pruned(model, build_plan(groups, random_drop(groups, 0.4, seed=0)), x)

For an importance criterion, :func:`assert_importance_conforms` brings the nets;
for a channel rule, :func:`assert_rule_is_exact` builds the nets as well.
:func:`unchanged` asserts that nothing of a model changes.

All of them raise ``AssertionError`` (or what the stage itself raises) and change nothing.
"""

from taskprune.testing.importance import (
    ImportanceCase,
    assert_importance_conforms,
    importance_cases,
    sensor_cases,
)
from taskprune.testing.leaving_alone import unchanged, visible
from taskprune.testing.oracles import (
    assert_cost_is_exact,
    assert_identity_plan,
    assert_masked_equals_pruned,
    assert_permutation_invariant,
    masked_model,
    permuted_model,
    random_drop,
    randomise_,
)
from taskprune.testing.rules import RuleCheck, RuleReport, assert_rule_is_exact

__all__ = [
    "ImportanceCase",
    "RuleCheck",
    "RuleReport",
    "assert_cost_is_exact",
    "assert_identity_plan",
    "assert_importance_conforms",
    "assert_masked_equals_pruned",
    "assert_permutation_invariant",
    "assert_rule_is_exact",
    "importance_cases",
    "masked_model",
    "permuted_model",
    "random_drop",
    "randomise_",
    "sensor_cases",
    "unchanged",
    "visible",
]
