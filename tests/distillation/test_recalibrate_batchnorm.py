from __future__ import annotations

from typing import Any

import pytest
import torch
from distill_toys import make_batches, make_net, same_state, state
from torch import nn

from taskprune.distillation import recalibrate_batchnorm
from taskprune.errors import InputError


def test_statistics_are_averages_over_the_batches() -> None:
    net, batches = make_net(1, norm=True), make_batches(3)
    assert recalibrate_batchnorm(net, batches) == 1
    with torch.no_grad():
        seen = [net.stage[0](net.stem(batch[0])) for batch in batches]
    means = torch.stack([x.mean(dim=(0, 2, 3)) for x in seen]).mean(0)
    variances = torch.stack([x.var(dim=(0, 2, 3)) for x in seen]).mean(0)
    layer = net.stage[1]
    assert isinstance(layer, nn.BatchNorm2d)
    torch.testing.assert_close(layer.running_mean, means)
    torch.testing.assert_close(layer.running_var, variances)


def test_only_statistics_change_and_flags_are_given_back() -> None:
    net = make_net(1, norm=True, dropout=0.5)
    net.stage[3].eval()
    before, flags = state(net), [m.training for m in net.modules()]
    momentum = net.stage[1].momentum
    recalibrate_batchnorm(net, make_batches(3), n_batches=2)
    after = state(net)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    statistics = {"running_mean", "running_var", "num_batches_tracked"}
    assert changed == {f"stage.1.{name}" for name in statistics}
    assert [m.training for m in net.modules()] == flags
    assert net.stage[1].momentum == momentum


def test_an_error_gives_the_old_statistics_back() -> None:
    net = make_net(1, norm=True)
    before, flags = state(net), [m.training for m in net.modules()]
    calls = []

    def forward(model: nn.Module, batch: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("no more")
        return model(batch[0])

    with pytest.raises(RuntimeError, match="no more"):
        recalibrate_batchnorm(net, make_batches(3), forward=forward)
    with pytest.raises(InputError, match="no batch"):
        recalibrate_batchnorm(net, [])
    assert same_state(state(net), before)
    assert [m.training for m in net.modules()] == flags


def test_a_model_without_batch_norm_is_left_alone() -> None:
    assert recalibrate_batchnorm(make_net(1), make_batches(1)) == 0
