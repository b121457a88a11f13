from __future__ import annotations

import pytest
import torch
from distill_toys import make_net, n_hooks
from torch import Tensor, nn

from taskprune.distillation import Tap, resolve_taps, tapped
from taskprune.errors import InputError

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Collections(nn.Module):
    """Modules that put out something else than a tensor, and one that runs twice."""

    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, 2 * x

    class Named(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"fine": x, "coarse": x[..., ::2, ::2]}

    def __init__(self) -> None:
        super().__init__()
        self.pair = self.Pair()
        self.named = self.Named()
        self.twice = nn.Conv2d(3, 3, 1)
        self.alias = self.twice
        self.idle = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pair(x)[1]
        x = self.named(x)["fine"]
        return self.twice(self.twice(x))  # type: ignore[no-any-return]


def test_names_patterns_and_types_choose_modules() -> None:
    net = make_net(0)
    assert [t.module for t in resolve_taps(net, ["stage", "stem"])] == ["stage", "stem"]
    assert [t.module for t in resolve_taps(net, ["near.*"])] == ["near.0", "near.1", "near.2"]
    convolutions = resolve_taps(net, [nn.Conv2d])
    assert [t.module for t in convolutions] == ["stem.0", "stage.0", "near.0", "near.2", "far"]
    assert resolve_taps(net, ["stage", "st*e", Tap("stage")]) == (Tap("stage"),)


@pytest.mark.parametrize("selector", ["stagee", "neck.*", nn.LSTM, Tap("nowhere")])
def test_a_selector_that_fits_nothing_is_refused(selector: str | type[nn.Module] | Tap) -> None:
    with pytest.raises(InputError, match="fits the tap"):
        resolve_taps(make_net(0), [selector])


def test_recorded_features_are_the_module_outputs() -> None:
    net = make_net(0)
    with tapped(net, resolve_taps(net, ["stem", "stage"])) as recorder:
        outputs, features = recorder.run(lambda: net(IMAGES))
    torch.testing.assert_close(features["stem"], net.stem(IMAGES), atol=0, rtol=0)
    torch.testing.assert_close(net.far(features["stage"]), outputs["far"], atol=0, rtol=0)
    assert features["stage"].requires_grad


def test_hooks_are_removed_after_an_exception() -> None:
    net = make_net(0)
    seen = []

    def fail() -> None:
        seen.append(n_hooks(net))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), tapped(net, resolve_taps(net, ["*"])) as recorder:
        recorder.run(fail)
    assert seen[0] > 0
    assert n_hooks(net) == 0


def test_a_failing_hook_installation_leaves_no_hooks() -> None:
    net = make_net(0)
    with pytest.raises(InputError), tapped(net, [Tap("stem"), Tap("nowhere")]):
        pass
    assert n_hooks(net) == 0


def test_nothing_is_recorded_outside_of_a_run() -> None:
    net = make_net(0)
    with tapped(net, [Tap("stem")]) as recorder:
        net(IMAGES)
        recorder.run(lambda: net(IMAGES))  # a second output would be refused
        net(IMAGES)
        _, features = recorder.run(lambda: net(IMAGES))
    assert list(features) == ["stem"]


@pytest.mark.parametrize(
    ("tap", "message"),
    [
        (Tap("pair"), r"a tuple with \[0, 1\]"),
        (Tap("pair", output=2), r"a tuple with \[0, 1\]"),
        (Tap("named"), r"a dict with \['fine', 'coarse'\]"),
        (Tap("twice"), "ran 2 times"),
        (Tap("twice", call=2), "asks for call 2"),
        (Tap("idle"), "did not run"),
    ],
    ids=str,
)
def test_an_output_that_is_no_single_tensor_is_refused(tap: Tap, message: str) -> None:
    net = Collections()
    with tapped(net, [tap]) as recorder, pytest.raises(InputError, match=message):
        recorder.run(lambda: net(IMAGES))


def test_elements_and_calls_can_be_chosen() -> None:
    net = Collections()
    taps = [
        Tap("pair", output=1),
        Tap("named", output="coarse"),
        Tap("twice", call=0),
        Tap("alias", call=-1),
    ]
    with tapped(net, taps) as recorder:
        output, features = recorder.run(lambda: net(IMAGES))
    assert list(features) == ["pair[1]", "named[coarse]", "twice@0", "alias@-1"]
    assert torch.equal(features["pair[1]"], 2 * IMAGES)
    assert features["named[coarse]"].shape == (2, 3, 4, 4)
    assert torch.equal(net.twice(features["twice@0"]), features["alias@-1"])
    assert torch.equal(features["alias@-1"], output)
