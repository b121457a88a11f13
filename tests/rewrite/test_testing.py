"""The oracles' own helpers: random values that hide nothing, random choices that repeat."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_nets import ZOO, ConvNet, conv_net

from taskprune.plan.plan import build_plan
from taskprune.testing import assert_cost_is_exact, random_drop, randomise_


def test_randomised_models_have_no_two_equal_channels() -> None:
    model = randomise_(ConvNet(), seed=0)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            assert len(tensor.flatten().unique()) == tensor.numel(), name
    assert (model.get_buffer("norm1.running_var") >= 0.5).all()
    assert model.get_buffer("norm1.num_batches_tracked") == 0


def test_one_seed_gives_one_model_and_leaves_the_generator_alone() -> None:
    state = torch.get_rng_state()
    nets = [ConvNet() for _ in range(3)]
    torch.set_rng_state(state)
    for net, seed in zip(nets, (1, 1, 2), strict=True):
        randomise_(net, seed)
    assert torch.equal(torch.get_rng_state(), state)
    a, b, c = (net.get_parameter("conv1.weight") for net in nets)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize("case", ZOO)
@pytest.mark.parametrize("ratio", [0.0, 0.01, 0.5, 1.0])
def test_random_drop_leaves_a_channel_and_repeats(case: str, ratio: float) -> None:
    groups = ZOO[case]().groups
    drop = random_drop(groups, ratio, seed=5)
    again = random_drop(groups, ratio, seed=5)
    assert drop.keys() == again.keys()
    assert bool(drop) is (ratio > 0)
    for name, channels in drop.items():
        np.testing.assert_array_equal(channels, again[name])
        assert 1 <= len(channels) < groups[name].n_channels
        assert (np.diff(channels) > 0).all()


def test_cost_of_a_wrong_group_is_noticed() -> None:
    made = conv_net()
    plan = build_plan(made.groups, {"conv1": np.array([0])})
    assert_cost_is_exact(made.model, made.groups, plan, made.inputs)
    wider = conv_net().groups
    object.__setattr__(wider, "macs", wider.macs[1:])
    with pytest.raises(AssertionError, match="MACs before pruning"):
        assert_cost_is_exact(made.model, wider, plan, made.inputs)
