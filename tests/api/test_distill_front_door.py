"""``prune`` and ``distill`` fit together: the plan aligns features, nobody else is touched."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from front_nets import batches, mean_losses, two_task_net, two_tasks
from torch import Tensor, nn

import taskprune
from taskprune import DistillSettings
from taskprune.coupling import couple
from taskprune.errors import InputError, TaskPruneError
from taskprune.graph import trace
from taskprune.plan.plan import build_plan
from taskprune.testing import randomise_, unchanged


def pruned() -> tuple[torch.nn.Module, taskprune.PruneResult]:
    teacher = two_task_net().eval()
    return teacher, taskprune.prune(teacher, two_tasks(), 0.4, data=batches(2))


def test_distilling_repairs_the_student_and_leaves_the_teacher() -> None:
    teacher, result = pruned()
    data = batches(4)
    before = mean_losses(result.model, data).sum()
    with unchanged(teacher):
        student = taskprune.distill(
            result.model,
            teacher=teacher,
            tasks=two_tasks(),
            data=data,
            plan=result.plan,
            settings=DistillSettings(steps=12, learning_rate=3e-3),
        )
    assert student is result.model
    assert mean_losses(student, data).sum() < before


def test_features_are_compared_at_the_kept_channels() -> None:
    """With the plan no adapter is needed: the student starts where masking left the teacher."""
    teacher, result = pruned()
    settings = DistillSettings(steps=1, learning_rate=1e-3)
    common = {"teacher": teacher, "tasks": two_tasks(), "data": batches(1), "settings": settings}
    kept = {entry.name: entry.keep for entry in result.plan.activations}
    assert len(kept["inner"]) == result.model.inner.out_channels  # type: ignore[union-attr]
    taskprune.distill(result.model, plan=result.plan, taps=["inner"], **common)  # type: ignore[arg-type]


def test_a_plan_of_another_student_is_refused() -> None:
    teacher, result = pruned()
    other = taskprune.prune(teacher, two_tasks(), 0.6, data=batches(2)).plan
    with pytest.raises(TaskPruneError, match="inner"):
        taskprune.distill(
            result.model,
            teacher=teacher,
            tasks=two_tasks(),
            data=batches(1),
            plan=other,
            taps=["inner"],
            settings=DistillSettings(steps=1),
        )


def test_student_and_teacher_must_be_modules() -> None:
    teacher, result = pruned()
    for student, other in ((result, teacher), (result.model, "teacher.pt")):
        with pytest.raises(InputError, match=r"torch\.nn\.Module"):
            taskprune.distill(student, teacher=other, tasks=two_tasks(), data=batches(1))  # type: ignore[arg-type]


def test_a_pruned_and_distilled_model_survives_its_file(tmp_path: Path) -> None:
    teacher, result = pruned()
    student = taskprune.distill(
        result.model,
        teacher=teacher,
        tasks=two_tasks(),
        data=batches(2),
        plan=result.plan,
        settings=DistillSettings(steps=2),
    ).eval()
    taskprune.save_checkpoint(tmp_path / "student.safetensors", student, result.plan)
    again = taskprune.load_checkpoint(tmp_path / "student.safetensors", two_task_net(7)).eval()
    with torch.no_grad():
        first, second = student(batches(1)[0][0]), again(batches(1)[0][0])
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_learned_tokens_that_have_gone_are_no_default_tap(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Summed(nn.Module):
        """Tokens read a few learned ones that have read them, as induced points do."""

        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Linear(5, 6), nn.Linear(6, 2)
            self.few, self.value = nn.Parameter(torch.randn(1, 4, 6)), nn.Linear(6, 6)

        def attend(self, x: Tensor, memory: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, memory, self.value(memory))

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            found: Tensor = self.head(
                self.attend(x, self.attend(self.few.expand(len(x), -1, -1), x))
            )
            return found

    teacher, x = randomise_(Summed(), seed=0), torch.randn(2, 7, 5)
    groups = couple(trace(teacher, x))
    plan = build_plan(groups, {"few": np.array([1])})
    with caplog.at_level(logging.WARNING, "taskprune"):
        taskprune.distill(
            taskprune.apply_plan(teacher, plan, example_inputs=x, groups=groups),
            teacher=teacher,
            tasks={"all": taskprune.Task(lambda outputs, _: outputs.square().mean())},
            data=[x],
            plan=plan,
            settings=DistillSettings(steps=1),
        )
    assert "goes without it" in caplog.text
