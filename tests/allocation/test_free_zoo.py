"""What is found to be free is, whatever reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo import ZOO, NetCase

from taskprune.allocation import find_free
from taskprune.calling.forward import call_inputs
from taskprune.calling.outputs import flatten_outputs
from taskprune.coupling import couple
from taskprune.coupling.groups import CouplingGroups
from taskprune.graph import trace
from taskprune.plan.plan import build_plan
from taskprune.replace import replaced_modules
from taskprune.rewrite import apply_plan
from taskprune.rewrite.surgery import named_tensors
from taskprune.testing import randomise_


def plant(model: nn.Module, groups: CouplingGroups) -> None:
    """Let one channel of each group be as another, and one be made of zeros."""
    with replaced_modules(model, groups.replacements), torch.no_grad():
        tensors = named_tensors(model)
        for group in groups:
            for member in (m for m in group.members if m.produces and m.name in tensors):
                index = torch.from_numpy(member.index)
                own = tensors[member.name]
                own.index_copy_(member.dim, index[1], own.index_select(member.dim, index[0]))
                if len(index) > 3 and isinstance(own, nn.Parameter):
                    own.index_fill_(member.dim, index[2], 0)


def outputs_of(model: nn.Module, inputs: Any) -> Mapping[str, Tensor]:
    with torch.no_grad():
        return flatten_outputs(call_inputs(model, inputs))


READERS = {
    *("GramMatrix", "GroupedOverConcat", "Transposed", "SqueezeExcite", "DeepRecurrent"),
    *("EinsumAttention", "LibraryAttention", "RoutedExperts", "ChunkedHalves", "SpectralNorm"),
}
"""Nets with readers of all kinds."""


@pytest.mark.parametrize("case", [case for case in ZOO if str(case) in READERS], ids=str)
def test_no_output_notices(case: NetCase) -> None:
    torch.manual_seed(0)
    model = randomise_(case.make().double().eval(), seed=0)
    data = [case.inputs() for _ in range(6)]
    groups = couple(trace(model, data[0], tasks=case.tasks))
    plant(model, groups)
    free = find_free(model, groups, data, forward=call_inputs)
    folded, plan = free.folded(model, build_plan(groups, dict(free.channels)))
    smaller = apply_plan(folded, plan, verify=False)
    for inputs in data:
        wanted, found = outputs_of(model, inputs), outputs_of(smaller, inputs)
        for path, value in wanted.items():
            if value.is_floating_point():
                scale = float(value.double().std()) if value.numel() > 1 else 1.0
                assert float((found[path] - value).abs().max()) <= 1e-5 * max(scale, 1e-3), path
    assert free.channels
