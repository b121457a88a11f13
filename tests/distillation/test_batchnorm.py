from __future__ import annotations

from pathlib import Path

import pytest
import torch
from distill_run import run, settings
from distill_toys import make_net, state
from torch import nn

from taskprune.distillation import StepRecord
from taskprune.errors import CheckpointError


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
