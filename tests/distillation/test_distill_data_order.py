from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from distill_run import run, settings
from distill_toys import (
    make_batches,
    make_loader,
    make_net,
    near_loss,
    same_state,
    state,
)
from torch import Tensor

from taskprune.calling.task import Task
from taskprune.distillation import (
    DistillSettings,
)
from taskprune.errors import (
    InputError,
)


def test_generators_are_given_back_and_do_not_matter() -> None:
    loader = make_loader()
    loader.generator = torch.Generator().manual_seed(3)
    own = loader.generator.get_state()
    teacher, students = make_net(0), []
    for seed in (1, 2):
        student = make_net(1, dropout=0.5)
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        run(student, teacher, data=loader, settings=settings(7))
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(loader.generator.get_state(), own)
        students.append(state(student))
    assert same_state(*students)
    other = make_net(1, dropout=0.5)
    run(other, make_net(0), data=loader, settings=settings(7, seed=1))
    assert not same_state(state(other), students[0])


def test_each_epoch_has_its_own_order_and_all_of_the_data() -> None:
    seen: list[Tensor] = []

    def watch(outputs: Any, batch: Any) -> Tensor | None:
        seen.append(batch[1].flatten(1).sum(1))
        return near_loss(outputs, batch)

    loader = make_loader(6, 2, augment=False)
    run(make_net(1), make_net(0), data=loader, tasks={"near": Task(watch)}, settings=settings(6))
    first, second = torch.cat(seen[:3]), torch.cat(seen[3:])
    assert not torch.equal(first, second)
    assert torch.equal(first.sort().values, second.sort().values)


def test_steps_go_on_across_the_end_of_an_epoch() -> None:
    data = make_batches(3)
    result = run(make_net(1), make_net(0), data=data, settings=settings(3, accumulation=2))
    assert [record.epoch for record in result.history] == [0, 1, 1]
    by_epochs = run(
        make_net(1),
        make_net(0),
        data=data,
        settings=settings(steps=None, epochs=4, accumulation=2),  # type: ignore[arg-type]
    )
    assert len(by_epochs.history) == 6


def test_epochs_need_data_with_a_length() -> None:
    class Unsized:
        def __iter__(self) -> Iterator[Any]:
            return iter(make_batches())

    with pytest.raises(InputError, match="no length"):
        run(make_net(1), make_net(0), data=Unsized(), settings=DistillSettings(cpu=True))
    assert len(run(make_net(1), make_net(0), data=Unsized()).history) == 4
