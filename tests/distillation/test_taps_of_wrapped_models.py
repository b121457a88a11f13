from __future__ import annotations

import pytest
import torch
from distill_toys import TwoTaskNet, make_batches, make_net, make_tasks, same_state, state
from torch import nn

from taskprune.distillation import (
    DistillSettings,
    default_taps,
    distill,
    resolve_taps,
    tapped,
)


def compiled_in_place(net: TwoTaskNet) -> nn.Module:
    net.compile(backend="eager")
    return net


def compiled(net: TwoTaskNet) -> nn.Module:
    wrapped = torch.compile(net, backend="eager")
    assert isinstance(wrapped, nn.Module)
    return wrapped


def go(student: nn.Module) -> list[float]:
    result = distill(
        student,
        make_net(0),
        tasks=make_tasks(),
        data=make_batches(),
        taps=["stem", "stage"],
        settings=DistillSettings(steps=3, learning_rate=1e-2, cpu=True),
    )
    return [sum(record.features.values()) for record in result.history]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("has_run", [False, True], ids=["new", "run before"])
@pytest.mark.parametrize("wrap", [compiled_in_place, compiled])
def test_a_compiled_student_is_distilled_like_any_other(wrap: object, has_run: bool) -> None:
    plain, inner = make_net(1), make_net(1)
    student = wrap(inner)  # type: ignore[operator]
    images = make_batches()[0][0]
    if has_run:
        student(images)
    assert go(student) == pytest.approx(go(plain), rel=1e-5)
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(inner.state_dict()[name], tensor)
    assert not any(module._forward_hooks for module in student.modules())
    with torch.no_grad():
        torch.testing.assert_close(student(images)["near"], plain(images)["near"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_taps_of_a_wrapped_model_have_the_users_own_paths() -> None:
    net = make_net(0)
    wrapped = compiled(net)
    batch = make_batches()[0]
    assert resolve_taps(wrapped, ["stage.*"]) == resolve_taps(net, ["stage.*"])
    assert default_taps(wrapped, batch) == default_taps(net, batch)
    before = state(net)
    with tapped(wrapped, resolve_taps(wrapped, ["stage"])) as recorder:
        _, features = recorder.run(lambda: wrapped(batch[0]))
    torch.testing.assert_close(features["stage"], net.stage(net.stem(batch[0])))
    assert same_state(state(net), before)
