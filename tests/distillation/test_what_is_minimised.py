from __future__ import annotations

from typing import Any

import pytest
import torch
from distill_run import features, run, settings
from distill_toys import (
    TwoTaskNet,
    make_batches,
    make_net,
    sliced,
)
from torch import Tensor, nn

from taskprune.calling.task import Task
from taskprune.distillation import (
    Tap,
    mse,
)
from taskprune.errors import (
    LossError,
)

KEEP = (0, 2, 5)


def test_distillation_reduces_feature_and_task_losses() -> None:
    teacher, student = make_net(0, norm=True), make_net(1, norm=True)
    result = run(student, teacher, settings=settings(80, feature_weight=5.0))
    assert result.student is student
    assert [record.step for record in result.history] == list(range(1, 81))
    first, last = result.history[:4], result.history[-4:]  # the first and last epoch
    assert features(last) < 0.7 * features(first)
    assert sum(r.tasks["far"] for r in last) < sum(r.tasks["far"] for r in first)


def test_a_sliced_teacher_starts_at_feature_loss_zero() -> None:
    teacher = make_net(0)
    student = sliced(teacher, KEEP)
    aligned = run(student, teacher, channel_map={"stage": KEEP, "far": (0,)})
    assert aligned.history[0].features == pytest.approx({"stem": 0.0, "stage": 0.0}, abs=1e-9)
    crossed = run(sliced(teacher, KEEP), teacher, channel_map={"stage": (1, 2, 5)})
    assert crossed.history[0].features["stage"] > 0.01


def test_the_loss_is_the_weighted_sum_of_tasks_and_features() -> None:
    result = run(make_net(1), make_net(0), settings=settings(feature_weight=3.0))
    for record in result.history:
        tasks = record.tasks["near"] + 0.5 * record.tasks["far"]
        assert record.loss == pytest.approx(tasks + 3.0 * sum(record.features.values()), rel=1e-5)


def test_tasks_without_labels_are_left_out() -> None:
    images, near, far = make_batches(1)[0]
    data = [(images, near, None), (images, None, far), (images, None, None)]
    result = run(make_net(1), make_net(0), data=data, settings=settings(3))
    assert [set(record.tasks) for record in result.history] == [{"near"}, {"far"}, set()]


def test_accumulated_batches_equal_one_big_batch() -> None:
    small, big = make_batches(6, batch_size=2), make_batches(2, batch_size=6)
    students = []
    for data, accumulation in ((small, 3), (big, 1)):
        student = make_net(1).double()
        double = [tuple(t.double() for t in batch if t is not None) for batch in data]
        run(
            student,
            make_net(0).double(),
            data=double,
            settings=settings(4, accumulation=accumulation, feature_loss=mse),
        )
        students.append(student)
    for first, second in zip(*(s.parameters() for s in students), strict=True):
        torch.testing.assert_close(first, second, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize(
    "loss",
    [
        lambda outputs, _: outputs["near"],
        lambda *_: 1.0,
        lambda outputs, _: outputs["near"].detach().mean(),
    ],
    ids=["map", "number", "detached"],
)
def test_a_loss_that_is_no_scalar_of_the_student_is_refused(loss: Any) -> None:
    with pytest.raises(LossError, match="task `near`"):
        run(make_net(1), make_net(0), tasks={"near": Task(loss)})


@pytest.mark.parametrize(
    ("loss", "found"),
    [(nn.MSELoss(reduction="none"), "shape"), (lambda *_: 0.5, "float")],
    ids=["map", "number"],
)
def test_a_feature_loss_that_is_no_scalar_is_refused_with_its_tap(loss: Any, found: str) -> None:
    with pytest.raises(LossError, match=f"tap `stem` to be a scalar tensor. Found {found}"):
        run(make_net(1), make_net(0), settings=settings(feature_loss=loss))


def gap(student: dict[str, Tensor], teacher: dict[str, Tensor]) -> Tensor:
    return (student["near"] - teacher["near"]).square().mean()


def test_outputs_can_be_followed_without_labels_or_features() -> None:
    images = make_batches(1)[0][0]
    result = run(
        make_net(1),
        make_net(0),
        data=[(images, None, None)],
        taps=(),
        settings=settings(30, output_losses={"near": gap}),
    )
    first, last = result.history[0], result.history[-1]
    assert first.loss == first.outputs["near"] > last.outputs["near"] > 0
    assert first.tasks == first.features == {}
    with pytest.raises(LossError, match="output loss `far`"):
        run(
            make_net(1),
            make_net(0),
            settings=settings(output_losses={"far": lambda _, teacher: teacher["far"].mean()}),
        )


def test_adapters_bridge_other_widths_and_are_not_part_of_the_student() -> None:
    student = make_net(1, width=4)
    names = list(student.state_dict())
    result = run(student, make_net(0, width=6), settings=settings(40))
    assert list(student.state_dict()) == names
    assert result.history[-1].features["stage"] < result.history[0].features["stage"]


def test_default_taps_are_found() -> None:
    result = run(make_net(1), make_net(0), taps=None)
    assert result.taps == (Tap("stem"), Tap("stage"))


def test_without_taps_the_teacher_does_not_run() -> None:
    class Silent(TwoTaskNet):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            raise AssertionError

    result = run(make_net(1), Silent(), taps=())
    assert result.history[0].features == {}


def test_the_feature_weight_may_follow_the_step() -> None:
    result = run(
        make_net(1), make_net(0), settings=settings(5, feature_weight=lambda step: 2.0 - step / 2)
    )
    for record, weight in zip(result.history, (2.0, 1.5, 1.0, 0.5, 0.0), strict=True):
        tasks = record.tasks["near"] + 0.5 * record.tasks["far"]
        expected = tasks + weight * sum(record.features.values())
        assert record.loss == pytest.approx(expected, rel=1e-5)


def test_a_feature_weight_of_zero_saves_the_teachers_forward_pass() -> None:
    calls = []

    def forward(model: nn.Module, batch: Any) -> Any:
        calls.append(model)
        return model(batch[0])

    teacher, student = make_net(0), make_net(1)
    ramp = settings(6, feature_weight=lambda step: max(0.0, 1.0 - step / 2))
    run(student, teacher, forward=forward, settings=ramp)
    assert (calls.count(teacher), calls.count(student)) == (3, 7)  # one call each to align


def test_bfloat16_leaves_float32_weights_and_losses() -> None:
    student, teacher = make_net(1, norm=True), make_net(0, norm=True)
    forward = student.forward
    result = run(student, teacher, settings=settings(20, mixed_precision="bf16"))
    assert student.forward == forward
    assert {p.dtype for p in student.parameters()} == {torch.float32}
    assert features(result.history[-4:]) < features(result.history[:4])
    exact = run(make_net(1, norm=True), teacher, settings=settings(20))
    assert exact.history[0].loss == pytest.approx(result.history[0].loss, rel=0.05)
    assert exact.history[0].loss != result.history[0].loss
