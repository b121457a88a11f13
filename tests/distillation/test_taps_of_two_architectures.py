from __future__ import annotations

from typing import Any

import pytest
import torch
from distill_run import run
from distill_toys import make_net, randomise
from torch import Tensor, nn

from taskprune.distillation import Role, Tap, resolve_taps
from taskprune.errors import InputError


class Other(nn.Module):
    """The outputs of ``TwoTaskNet`` with other parts."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(width, width, 1)
        )
        self.near, self.far = nn.Conv2d(width, 1, 1), nn.Conv2d(width, 1, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.features(images)
        return {"near": self.near(features), "far": self.far(features)}


def pair(student: Any = None, teacher: Any = None) -> tuple[nn.Module, nn.Module]:
    one, two = randomise(Other(), 1), make_net(0)
    for net, roles in ((one, student), (two, teacher)):
        if roles is not None:
            net.taskprune_roles = roles
    return one, two


def test_a_tap_pairs_modules_of_two_architectures() -> None:
    student, teacher = pair()
    result = run(student, teacher, taps=[Tap("stage", student="features")])
    assert [tap.label for tap in result.taps] == ["features->stage"]
    assert all(record.features["features->stage"] > 0 for record in result.history)


@pytest.mark.parametrize("taps", [[Role("backbone")], Role("backbone"), None])
def test_modules_of_a_role_are_paired_in_order(taps: Any) -> None:
    student, teacher = pair(
        {"backbone": ("features.0", "features")}, {"backbone": ("stem", "st*ge")}
    )
    result = run(student, teacher, taps=taps)
    expected = (Tap("stem", student="features.0"), Tap("stage", student="features"))
    assert result.taps == expected


def test_a_role_with_other_counts_is_refused_with_both_lists() -> None:
    student, teacher = pair({"backbone": ("features",)}, {"backbone": ("stem", "stage")})
    with pytest.raises(InputError, match=r"\['stem', 'stage'\] in the teacher and \['features'\]"):
        run(student, teacher, taps=[Role("backbone")])


def test_a_map_of_channels_is_not_used_for_another_path() -> None:
    student, teacher = pair()
    taps = [Tap("stage", student="features")]
    run(student, teacher, taps=taps, channel_map={"stage": (0, 1)})


@pytest.mark.parametrize(
    ("taps", "message"),
    [
        (["stage"], r"module of the student fits the tap `stage`.*student='path"),
        (None, r"module of the student fits the tap `st"),
        ([Tap("stage", student="feature")], r"of the student fits the tap `feature`.*features"),
        ([Tap("stages", student="features")], r"of the teacher fits the tap `stages`"),
    ],
)
def test_errors_say_which_model_has_no_such_module(taps: Any, message: str) -> None:
    student, teacher = pair()
    with pytest.raises(InputError, match=message):
        run(student, teacher, taps=taps)


@pytest.mark.parametrize("order", [1, -1])
def test_what_a_tap_says_counts_more_than_a_pattern(order: int) -> None:
    net = make_net(0)
    explicit = Tap("stage.0", adapter=True)
    selectors: list[Any] = ["stage.*", explicit, nn.Conv2d][::order]
    taps = resolve_taps(net, selectors)
    assert [tap for tap in taps if tap.module == "stage.0"] == [explicit]


def test_taps_that_contradict_each_other_are_refused() -> None:
    taps = [Tap("stage", adapter=True), Tap("stage", channel_dim=1)]
    with pytest.raises(InputError, match="two taps of one feature"):
        resolve_taps(make_net(0), taps)


@pytest.mark.parametrize("selector", ["stage", Tap("stage"), nn.Sequential])
def test_a_single_selector_needs_no_list(selector: Any) -> None:
    net = make_net(0)
    assert resolve_taps(net, selector) == resolve_taps(net, [selector])


def test_the_module_that_did_not_run_is_named_with_its_model() -> None:
    student, teacher = pair()
    student.idle = nn.Conv2d(5, 5, 1)
    with pytest.raises(InputError, match="`idle` of the student did not run"):
        run(student, teacher, taps=[Tap("stage", student="idle")])
    assert torch.is_grad_enabled()
