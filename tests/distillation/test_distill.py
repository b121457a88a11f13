from __future__ import annotations

import copy
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from distill_toys import (
    TwoTaskNet,
    make_batches,
    make_loader,
    make_net,
    make_tasks,
    near_loss,
    same_state,
    sliced,
    state,
)
from rich.console import Console
from torch import Tensor, nn

from taskprune.distillation import (
    DistillResult,
    DistillSettings,
    Ramp,
    StepRecord,
    Tap,
    Validation,
    attention_transfer,
    distill,
    mse,
)
from taskprune.distillation.ema import WeightAverage
from taskprune.distillation.schedule import WarmupCosine
from taskprune.errors import (
    InputError,
    LossError,
    MissingDependencyError,
    TaskPruneError,
    TrainingError,
)
from taskprune.tasks import Task

KEEP = (0, 2, 5)


def settings(steps: int = 4, **changes: Any) -> DistillSettings:
    return DistillSettings(**{"steps": steps, "learning_rate": 1e-2, "cpu": True, **changes})


def run(student: nn.Module, teacher: nn.Module, **changes: Any) -> DistillResult:
    arguments: dict[str, Any] = {
        "tasks": make_tasks(),
        "data": make_batches(),
        "settings": settings(),
        "taps": ["stem", "stage"],
        **changes,
    }
    return distill(student, teacher, **arguments)


def features(records: Sequence[StepRecord]) -> float:
    return sum(sum(record.features.values()) for record in records)


def n_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


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


def test_the_teacher_is_left_bit_for_bit() -> None:
    teacher = make_net(0, norm=True, dropout=0.5)
    teacher.stage[1].eval()
    teacher.far.requires_grad_(False)
    weight = next(teacher.near.parameters())
    weight.grad = torch.ones_like(weight)
    before, flags = state(teacher), [m.training for m in teacher.modules()]
    run(make_net(1, norm=True), teacher)
    assert same_state(state(teacher), before)
    assert [m.training for m in teacher.modules()] == flags
    assert [p.requires_grad for p in teacher.far.parameters()] == [False, False]
    assert torch.equal(weight.grad, torch.ones_like(weight))
    assert teacher.stem[0].weight.grad is None
    assert n_hooks(teacher) == 0


def test_the_student_is_given_back_with_its_flags_and_without_gradients() -> None:
    student = make_net(1, norm=True)
    student.eval()
    student.near.train()
    flags = [m.training for m in student.modules()]
    attributes = {name: set(vars(module)) for name, module in student.named_modules()}
    run(student, make_net(0, norm=True))
    assert [m.training for m in student.modules()] == flags
    assert {name: set(vars(module)) for name, module in student.named_modules()} == attributes
    assert all(p.grad is None and p.requires_grad for p in student.parameters())
    assert n_hooks(student) == 0


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


def test_tasks_without_labels_are_left_out() -> None:
    images, near, far = make_batches(1)[0]
    data = [(images, near, None), (images, None, far), (images, None, None)]
    result = run(make_net(1), make_net(0), data=data, settings=settings(3))
    assert [set(record.tasks) for record in result.history] == [{"near"}, {"far"}, set()]
    with pytest.raises(TrainingError, match="no task has labels"):
        run(make_net(1), make_net(0), data=data, taps=())


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


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_at_the_last_good_weights(value: float) -> None:
    calls, good = [], []

    def loss(outputs: dict[str, Tensor], batch: Any) -> Tensor:
        calls.append(1)
        return outputs["near"].square().mean() * (value if len(calls) == 6 else 1.0)

    def keep(record: StepRecord, student: nn.Module) -> None:
        good.append(state(student))

    teacher, student = make_net(0, norm=True), make_net(1, norm=True)
    before = state(teacher)
    with pytest.raises(TrainingError, match=r"Step 6: the task loss `near` .* batch 1 of epoch 1"):
        run(
            student,
            teacher,
            tasks={"near": Task(loss)},
            settings=settings(10, callbacks=(keep,)),
        )
    assert len(good) == 5
    assert same_state(state(student), good[-1])
    assert same_state(state(teacher), before)
    assert all(p.grad is None for p in student.parameters())
    assert n_hooks(student) == n_hooks(teacher) == 0


def test_images_that_are_not_finite_spoil_no_statistics() -> None:
    student = make_net(1, norm=True)
    before = state(student)
    images, near, far = make_batches(1)[0]
    with pytest.raises(TrainingError, match="lower the learning rate"):
        run(student, make_net(0, norm=True), data=[(images * math.nan, near, far)])
    assert same_state(state(student), before)


def test_a_gradient_that_is_not_finite_is_an_error() -> None:
    def loss(outputs: dict[str, Tensor], batch: Any) -> Tensor:
        return (outputs["near"] * 0).abs().sqrt().mean()  # 0, with an infinite slope

    with pytest.raises(TrainingError, match="gradient norm"):
        run(make_net(1), make_net(0), tasks={"near": Task(loss)})


def test_hooks_are_removed_when_a_loss_raises() -> None:
    def loss(outputs: dict[str, Tensor], batch: Any) -> Tensor:
        raise ZeroDivisionError

    teacher, student = make_net(0), make_net(1)
    teacher.train()
    student.eval()
    with pytest.raises(ZeroDivisionError):
        run(student, teacher, tasks={"near": Task(loss)})
    assert n_hooks(student) == n_hooks(teacher) == 0
    assert teacher.training
    assert not student.training


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


class Tied(nn.Module):
    """One module called twice, one weight in two modules, one module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.shared = nn.Conv2d(6, 6, 1)
        self.alias = self.shared
        self.near = nn.Conv2d(6, 1, 1)
        self.far = nn.Conv2d(6, 1, 1)
        self.far.weight = self.near.weight

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = self.alias(self.shared(self.stem(images)).relu())
        return {"near": self.near(x), "far": self.far(x)}


def test_tied_and_shared_modules_stay_tied(tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher, student = Tied(), Tied()
    result = run(
        student,
        teacher,
        taps=["stem", Tap("shared", call=0), Tap("alias", call=1)],
        settings=settings(30, directory=tmp_path, ema_decay=0.5),
    )
    assert student.far.weight is student.near.weight
    assert student.alias is student.shared
    assert list(result.history[0].features) == ["stem", "shared@0", "alias@1"]
    assert result.history[-1].loss < result.history[0].loss
    again = Tied()
    run(
        again,
        teacher,
        taps=["stem", Tap("shared", call=0), Tap("alias", call=1)],
        settings=settings(30, directory=tmp_path, ema_decay=0.5),
    )
    assert same_state(state(again), state(student))


def test_adapters_bridge_other_widths_and_are_not_part_of_the_student() -> None:
    student = make_net(1, width=4)
    names = list(student.state_dict())
    result = run(student, make_net(0, width=6), settings=settings(40))
    assert list(student.state_dict()) == names
    assert result.history[-1].features["stage"] < result.history[0].features["stage"]


def test_attention_transfer_needs_no_adapter() -> None:
    result = run(
        make_net(1, width=4),
        make_net(0),
        settings=settings(3, feature_loss=partial(attention_transfer)),
    )
    assert result.history[0].features["stage"] > 0


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
        make_net(1), make_net(0), settings=settings(5, feature_weight=Ramp(2.0, 0.0, steps=4))
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
    ramp = settings(6, feature_weight=Ramp(1.0, 0.0, steps=2))
    run(student, teacher, forward=forward, settings=ramp)
    assert (calls.count(teacher), calls.count(student)) == (3, 7)  # one call each to align


def test_the_learning_rate_rises_and_falls() -> None:
    rate = WarmupCosine(1.0, steps=100, warmup=10, floor=0.01)
    assert [rate(0), rate(4), rate(9), rate(10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert rate(55) == pytest.approx(0.505)
    assert 0.01 < rate(99) < 0.011
    record = run(make_net(1), make_net(0), settings=settings(40, warmup=0.5)).history[9]
    assert record.learning_rate == pytest.approx(0.5e-2)


def test_the_learning_rate_reaches_the_optimizer() -> None:
    seen: list[dict[str, Tensor]] = []
    student = make_net(1)
    before = student.far.weight.detach().clone()
    chosen = settings(
        2,
        learning_rate=1e-3,
        warmup=1.0,
        weight_decay=0.0,
        callbacks=(lambda _, net: seen.append(state(net)),),
    )
    run(student, make_net(0), settings=chosen)
    # AdamW's first step moves every entry by the learning rate, here half of its peak.
    moved = (seen[0]["far.weight"] - before).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 5e-4), atol=1e-6, rtol=0)


def test_biases_have_no_weight_decay() -> None:
    student = make_net(1)
    before = state(student)
    run(student, make_net(0), settings=settings(1, learning_rate=1e-3, weight_decay=100.0))
    assert student.far.bias is not None
    bias = (student.far.bias.detach() - before["far.bias"]).abs()
    weight = (student.far.weight.detach() - before["far.weight"]).abs()
    assert bias.max().item() < 1.1e-3 < weight.max().item()


def test_the_student_trains_in_training_mode() -> None:
    student = make_net(1, norm=True)
    student.eval()
    before = state(student)
    run(student, make_net(0, norm=True))
    assert not torch.equal(
        student.state_dict()["stage.1.running_mean"], before["stage.1.running_mean"]
    )
    assert not student.training


def test_frozen_student_parameters_stay() -> None:
    student = make_net(1)
    student.stem.requires_grad_(False)
    before = state(student)
    run(student, make_net(0))
    after = state(student)
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"stage", "near", "far"}


def test_the_gradient_is_clipped() -> None:
    students = []
    for clip in (1e-12, math.inf):
        student = make_net(1)
        result = run(student, make_net(0), settings=settings(1, gradient_clip=clip))
        assert result.history[0].gradient_norm > 0.01
        students.append(state(student))
    assert not same_state(*students)


def test_a_weight_average_follows_its_formula() -> None:
    net = make_net(1, norm=True)
    average = WeightAverage(net, 0.9)
    expected = net.far.weight.detach().clone()
    for step in range(1, 120):
        with torch.no_grad():
            net.far.weight.add_(1.0)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * net.far.weight.detach()
        average.update(step)
    torch.testing.assert_close(average.average["far.weight"], expected)
    average.copy_to_model()
    assert torch.equal(net.far.weight, average.average["far.weight"])


def test_the_student_ends_with_the_average() -> None:
    plain, averaged = make_net(1), make_net(1)
    live: list[dict[str, Tensor]] = []
    run(plain, make_net(0), settings=settings(5))
    run(
        averaged,
        make_net(0),
        settings=settings(5, ema_decay=0.9, callbacks=(lambda _, net: live.append(state(net)),)),
    )
    assert same_state(live[-1], state(plain))
    expected = make_net(1).far.weight.detach()
    for step, weights in enumerate(live, start=1):
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weights["far.weight"]
    torch.testing.assert_close(averaged.far.weight.detach(), expected)


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


def test_the_users_own_accelerator_is_left_alone() -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState

    run(make_net(1), make_net(0))
    states = (AcceleratorState, GradientState, PartialState)
    assert [dict(kind._shared_state) for kind in states] == [{}, {}, {}]
    try:
        own = Accelerator(cpu=True, gradient_accumulation_steps=5)
        run(make_net(1), make_net(0), settings=settings(accumulation=2))
        assert own.gradient_accumulation_steps == 5
        with pytest.raises(InputError, match="bf16"):
            run(make_net(1), make_net(0), settings=settings(mixed_precision="bf16"))
    finally:
        for kind in states:
            kind._shared_state.clear()


def test_history_is_written_as_json_lines(tmp_path: Path) -> None:
    result = run(make_net(1), make_net(0), settings=settings(3, directory=tmp_path / "a" / "run"))
    lines = (tmp_path / "a" / "run" / "history.jsonl").read_text().splitlines()
    assert [StepRecord(**json.loads(line)) for line in lines] == list(result.history)


def test_progress_is_shown_where_a_console_is_passed(capsys: pytest.CaptureFixture[str]) -> None:
    text = StringIO()
    console = Console(file=text, force_terminal=True, width=120)
    run(make_net(1), make_net(0), settings=settings(3, console=console))
    assert "3/3" in text.getvalue()
    assert "near" in text.getvalue()
    run(make_net(1), make_net(0))
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


class MeanNear:
    """A metric for the test: minus the mean squared output."""

    def reset(self) -> None:
        self.values: list[float] = []

    def update(self, outputs: Any, batch: Any, /) -> None:
        self.values.append(-float(outputs["near"].square().mean()))

    def compute(self) -> float:
        return sum(self.values) / len(self.values)


def test_validation_joins_the_history_and_changes_nothing() -> None:
    tasks = {"near": Task(near_loss, metric=MeanNear())}
    validation = Validation(tasks, make_batches(2), every=2)
    plain, watched = make_net(1, norm=True, dropout=0.5), make_net(1, norm=True, dropout=0.5)
    teacher = make_net(0, norm=True)
    run(plain, teacher)
    result = run(watched, teacher, settings=settings(callbacks=(validation,)))
    assert [list(record.measured) for record in result.history] == [
        [],
        ["validation/near"],
        [],
        ["validation/near"],
    ]
    assert same_state(state(plain), state(watched))
    with pytest.raises(InputError, match="metric"):
        Validation(make_tasks(), make_batches(1), every=2)


def generator() -> Iterator[Any]:
    yield from make_batches()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": generator()}, "one-way iterator"),
        ({"data": 5}, "Found int"),
        ({"data": []}, "no batch"),
        ({"tasks": {}}, "at least one name"),
        ({"taps": ["neck"]}, "No module of the model fits the tap `neck`"),
        ({"taps": "stage"}, "must be a sequence"),
        ({"channel_map": {"stage": (0, 1)}}, "Tap `stage`: the channel map"),
        ({"settings": DistillSettings(epochs=1, accumulation=9, cpu=True)}, "less than one step"),
    ],
)
def test_bad_arguments_are_refused_and_change_nothing(
    changes: Mapping[str, Any], message: str
) -> None:
    student, teacher = make_net(1), make_net(0)
    before = state(student)
    with pytest.raises(TaskPruneError, match=message):
        run(student, teacher, **changes)
    assert same_state(state(student), before)
    assert n_hooks(student) == n_hooks(teacher) == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 3, "epochs": 1},
        {"steps": 0},
        {"epochs": 1.5},
        {"learning_rate": 0.0},
        {"weight_decay": -1.0},
        {"warmup": 1.5},
        {"accumulation": 0},
        {"ema_decay": 1.0},
        {"feature_weight": math.nan},
        {"mixed_precision": "int8"},
        {"seed": -1},
    ],
)
def test_settings_out_of_range_are_refused(changes: Mapping[str, Any]) -> None:
    with pytest.raises(InputError, match=list(changes)[-1]):
        DistillSettings(**changes)


def test_epochs_need_data_with_a_length() -> None:
    class Unsized:
        def __iter__(self) -> Iterator[Any]:
            return iter(make_batches())

    with pytest.raises(InputError, match="no length"):
        run(make_net(1), make_net(0), data=Unsized(), settings=DistillSettings(cpu=True))
    assert len(run(make_net(1), make_net(0), data=Unsized()).history) == 4


def test_a_student_that_shares_memory_with_its_teacher_is_refused() -> None:
    teacher = make_net(0)
    with pytest.raises(InputError, match=r"share the memory of `stem\.0\.weight`"):
        run(teacher, teacher)
    half = copy.copy(teacher)
    half._modules = {**teacher._modules, "stem": copy.deepcopy(teacher.stem)}
    with pytest.raises(InputError, match=r"share the memory of `stage\.0\.weight`"):
        run(half, teacher)


def test_a_student_that_cannot_learn_is_refused() -> None:
    student = make_net(1)
    student.requires_grad_(False)
    with pytest.raises(InputError, match="no parameter that requires a gradient"):
        run(student, make_net(0))


def test_a_missing_accelerate_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingDependencyError, match=r"taskprune\[distill\]"):
        run(make_net(1), make_net(0))
