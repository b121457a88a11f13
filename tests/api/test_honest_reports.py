"""What stays is said, with its reason, in the record and in print; strict mode refuses it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from front_nets import Plain, TwoTaskNet, batches, images, settled, two_task_net, two_tasks
from torch import Tensor, nn

import taskprune
from taskprune import Safety
from taskprune.errors import InputError, UnsupportedOperatorError


class Odd(nn.Module):
    """An operator without a rule between two convolutions that could shrink and two that cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.free, self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 3), nn.Conv2d(8, 2, 3)

    def forward(self, x: Tensor) -> Any:
        return self.b(torch.special.bessel_j1(self.a(self.free(x))))


def pruned(net: nn.Module, ratio: float = 0.2, **keywords: Any) -> taskprune.PruneResult:
    return taskprune.prune(
        net, None, ratio, example_inputs=images(2), importance="magnitude", **settled(keywords)
    )


def flat(text: str) -> str:
    """Join what a table has folded."""
    return "".join(text.replace("│", " ").split())


def test_each_frozen_group_is_printed_with_operator_module_and_line() -> None:
    result = pruned(Odd())
    lines = {line.name: line for line in result.report.frozen if line.kind == "unknown"}
    assert "bessel_j1" in lines["a"].operator
    assert "test_honest_reports.py:" in lines["a"].source
    rows = [row for row in str(result).splitlines() if row.startswith("│ a ")]
    assert rows
    assert "bessel_j1" in flat(str(result))
    assert "Frozen groups" in str(result)


def test_strict_mode_names_what_it_refuses() -> None:
    with pytest.raises(UnsupportedOperatorError, match=r"bessel_j1.*test_honest_reports\.py"):
        pruned(Odd(), strict=True)
    assert pruned(Plain(), strict=True).report.removed("params") >= 0.2


def test_replaced_modules_are_reported() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
            self.head = nn.Linear(16, 2)

        def forward(self, x: Tensor) -> Any:
            return self.head(self.attention(x, x, x)[0])

    result = taskprune.prune(
        Attending(), None, 0.2, example_inputs=torch.randn(2, 5, 16), importance="magnitude"
    )
    assert [line.path for line in result.report.replacements] == ["attention"]
    assert "Replaced by equal modules" in str(result)
    assert json.loads(result.report.to_json())["replacements"][0]["path"] == "attention"


def test_limits_that_hold_groups_back_are_reported() -> None:
    result = pruned(Plain(), 0.3, safety=Safety(max_removed=0.25))
    bound = {line.limit for line in result.report.limits}
    assert "max_removed" in bound
    assert "Held back by safety limits" in str(result)
    assert json.loads(result.report.to_json())["limits"]


def test_a_run_without_limits_or_replacements_prints_no_empty_tables() -> None:
    text = str(pruned(Plain(), 0.05, safety=Safety(protected_quantile=1.0)))
    assert "Replaced" not in text
    assert "Held back" not in text


class Auxiliary(nn.Module):
    """A head that only training uses, and a parameter that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Dropout(0.5))
        self.head, self.extra = nn.Conv2d(16, 2, 1), nn.Conv2d(16, 4, 1)
        self.idle = nn.Parameter(torch.zeros(7))

    def forward(self, x: Tensor) -> Any:
        x = self.body(x)
        return (self.head(x), self.extra(x)) if self.training else (self.head(x),)


def test_a_pruned_model_with_a_training_branch_still_trains() -> None:
    result = pruned(Auxiliary())
    out, extra = result.model.train()(images(2))
    (out.sum() + extra.sum()).backward()
    assert (out.shape[1], extra.shape[1]) == (2, 4)


def test_a_training_branch_without_parameters_of_its_own_is_traced_as_well() -> None:
    """The width is written as a number in code that only training runs."""

    class Reshaping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 1), nn.Conv2d(24, 2, 1)

        def forward(self, x: Tensor) -> Any:
            x = self.a(x)
            if self.training:
                x = x.view(x.shape[0], 16, x.shape[2], x.shape[3])
            return self.c(self.b(x))

    result = pruned(Reshaping())
    assert result.model.train()(images(2)).shape[1] == 2
    assert "a" in {line.name for line in result.report.frozen}


def test_parameters_that_nothing_touches_are_reported() -> None:
    result = pruned(Auxiliary())
    assert result.report.untraced == ("idle",)
    assert "never reached" in str(result)
    assert "idle" in str(result)


def test_a_training_pass_that_does_not_run_is_noted() -> None:
    class Fussy(Plain):
        def forward(self, x: Tensor) -> Any:
            if self.training:
                raise ValueError("targets, please")
            return super().forward(x)

    result = pruned(Fussy())
    assert any("targets, please" in note for note in result.report.notes)
    assert "targets, please" in flat(str(result)).replace("targets,please", "targets, please")


def test_a_single_name_or_type_protects() -> None:
    graph = taskprune.trace(two_task_net(), images(2))
    assert "inner" not in {g.name for g in taskprune.couple(graph, protect="inner")}
    alone, listed = (taskprune.couple(graph, protect=p) for p in (nn.Linear, [nn.Linear]))
    assert [g.name for g in alone] == [g.name for g in listed]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(value: float) -> None:
    net = TwoTaskNet()
    with torch.no_grad():
        net.outer.weight[0, 0, 0, 0] = value
    with pytest.raises(InputError, match=r"`outer\.weight` holds NaN or inf"):
        taskprune.prune(net, two_tasks(), 0.3, data=batches(1), importance="magnitude")


def test_outputs_that_belong_to_no_task_are_named_and_their_heads_not_gutted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    net, data = two_task_net(), batches(1)
    with caplog.at_level("WARNING", logger="taskprune"):
        result = taskprune.prune(
            net, {"map": two_tasks()["map"]}, 0.4, data=data, importance="task_taylor"
        )
    (note,) = result.report.notes
    assert "Outputs `kind` belong to no task" in note
    assert "protect=" in note
    assert note in caplog.text
    assert not any(group.tasks for group in result.report.groups if group.name == "kind.0")
    assert result.plan.kept["kind.0"] == 20 - int(0.75 * 20)
    (held,) = [line.limit for line in result.report.limits if line.group == "kind.0"]
    assert held == "max_removed_private"


@pytest.mark.parametrize("tasks", [two_tasks(), None], ids=["all owned", "no tasks"])
def test_no_output_is_named_where_tasks_own_all_or_there_are_none(
    tasks: dict[str, taskprune.Task] | None,
) -> None:
    result = taskprune.prune(
        two_task_net(), tasks, 0.3, example_inputs=images(2), importance="magnitude"
    )
    assert result.report.notes == ()


def test_groups_that_give_up_their_multiple_are_named_and_so_is_what_is_missed() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 2, 1))
    rounded, single = (
        pruned(net, 0.3, safety=Safety(round_to=n, protected_quantile=1.0)) for n in (8, 1)
    )
    odd, missed = rounded.report.notes
    assert "No multiple of 8 channels in `0` (11)" in odd
    assert "of the original below the target" in missed
    assert single.report.notes == ()


def test_multiples_that_land_near_the_target_need_no_note() -> None:
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 2, 1))
    assert pruned(net, 0.497, safety=Safety(round_to=8)).report.notes == ()
