from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from distill_run import run, settings
from distill_toys import make_batches, make_net, same_state, state
from torch import nn

from taskprune.distillation import StepRecord, recalibrate_batchnorm
from taskprune.errors import CheckpointError, InputError


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


def test_batches_with_nan_give_the_old_statistics_back_and_name_the_layer() -> None:
    net = make_net(1, norm=True)
    before, flags = state(net), [m.training for m in net.modules()]
    images, near, far = make_batches(1)[0]
    with pytest.raises(InputError, match=r"`running_mean` of `stage\.1`"):
        recalibrate_batchnorm(net, [*make_batches(1), (images * math.nan, near, far)])
    assert same_state(state(net), before)
    assert [m.training for m in net.modules()] == flags


def test_batches_are_moved_to_the_models_device() -> None:
    net = make_net(1, norm=True).to("meta")  # a second device that every machine has
    devices = []

    def forward(model: nn.Module, batch: Any) -> Any:
        devices.append(batch[0].device.type)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        recalibrate_batchnorm(net, make_batches(1), forward=forward)
    assert devices == ["meta"]


def test_a_model_without_batch_norm_is_left_alone() -> None:
    assert recalibrate_batchnorm(make_net(1), make_batches(1)) == 0


def test_frozen_statistics_stay_while_all_weights_learn() -> None:
    student, teacher = make_net(1, norm=True), make_net(2, norm=True)
    student.train()
    before, flags = state(student), [m.training for m in student.modules()]
    seen = []

    def look(_record: StepRecord, model: nn.Module) -> None:
        seen.append([m.training for m in model.modules() if not isinstance(m, nn.BatchNorm2d)])

    run(student, teacher, settings=settings(frozen_batchnorm=True, callbacks=(look,)))
    after = state(student)
    same = {name for name in before if torch.equal(before[name], after[name])}
    statistics = {"running_mean", "running_var", "num_batches_tracked"}
    assert same == {f"stage.1.{name}" for name in statistics}
    assert all(all(modes) for modes in seen)
    assert [m.training for m in student.modules()] == flags


def test_whether_statistics_are_frozen_is_part_of_the_run(tmp_path: Path) -> None:
    run(make_net(1, norm=True), make_net(2, norm=True), settings=settings(directory=tmp_path))
    frozen = settings(directory=tmp_path, frozen_batchnorm=True)
    with pytest.raises(CheckpointError, match="frozen_batchnorm"):
        run(make_net(1, norm=True), make_net(2, norm=True), settings=frozen)
