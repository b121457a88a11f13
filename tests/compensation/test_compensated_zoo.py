"""Every net of the zoo comes through, and removed equals masked in its compensated original."""

from __future__ import annotations

import pytest
import torch
from zoo import ZOO, NetCase

from taskprune.calling.forward import call_inputs
from taskprune.compensation import compensate
from taskprune.coupling import couple
from taskprune.graph import trace
from taskprune.plan.plan import build_plan
from taskprune.rewrite import apply_plan
from taskprune.testing import assert_masked_equals_pruned, random_drop, randomise_


@pytest.mark.parametrize("case", ZOO, ids=str)
def test_removing_channels_equals_zeroing_them_in_the_compensated_original(case: NetCase) -> None:
    torch.manual_seed(0)
    model, inputs = randomise_(case.make().double().eval(), seed=0), case.inputs()
    groups = couple(trace(model, inputs, tasks=case.tasks))
    plan = build_plan(groups, random_drop(groups, 0.4, seed=1))
    result = compensate(model, plan, [inputs], forward=call_inputs)
    original = result.original(model, plan)
    report = assert_masked_equals_pruned(original, plan, inputs, groups=groups)
    assert report.max_relative_error < 1e-9
    again = apply_plan(original, plan, verify=False).state_dict()
    assert all(torch.equal(again[n], value) for n, value in result.model.state_dict().items())
    for loss in result.losses.values():
        assert loss.compensated <= loss.sliced
