from __future__ import annotations

from typing import Any

import pytest
import torch
from distill_run import run, settings
from distill_toys import make_net
from torch import Tensor, nn

from taskprune.distillation import Tap, mse, tapped
from taskprune.errors import InputError

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    """A block as torchvision's: the sum and the activation are in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.5, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.conv(x))
        out += x
        return self.drop(out.relu() + 1)  # type: ignore[no-any-return]


def test_a_tap_before_an_activation_in_place_sees_what_the_module_gave() -> None:
    net = make_net(0, norm=True).eval()
    with tapped(net, [Tap("stage.1"), Tap("stage")]) as recorder:
        for _ in range(2):  # the first run finds out, the second knows
            _, features = recorder.run(lambda: net(IMAGES))
            assert torch.equal(features["stage.1"], net.stage[1](net.stage[0](net.stem(IMAGES))))
            assert features["stage.1"].min() < 0
            assert torch.equal(features["stage"], net.stage(net.stem(IMAGES)))
    features["stage.1"].sum().backward()  # type: ignore[no-untyped-call]
    assert net.stage[0].weight.grad is not None


@pytest.mark.parametrize("grad", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_a_tap_before_a_sum_in_place_sees_what_the_module_gave(grad: Any) -> None:
    net = Residual().eval()
    with grad(), tapped(net, [Tap("norm")]) as recorder:
        for _ in range(2):
            _, features = recorder.run(lambda: net(IMAGES))
            assert torch.equal(features["norm"], net.norm(net.conv(IMAGES)))


def test_what_is_changed_in_training_only_is_found_in_training() -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.drop = nn.Conv2d(3, 3, 1), nn.Dropout(0.5, inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.drop(self.conv(x))  # type: ignore[no-any-return]

    net = Dropping()
    with tapped(net, [Tap("conv")]) as recorder:
        for training in (False, False, True, True):
            net.train(training)
            _, features = recorder.run(lambda: net(IMAGES))
            assert torch.equal(features["conv"], net.conv(IMAGES))


def test_what_is_never_changed_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    net = make_net(0)
    outputs: list[Tensor] = []
    handle = net.stage.register_forward_hook(lambda *args: outputs.append(args[2]))
    with tapped(net, [Tap("stage")]) as recorder:
        features = [recorder.run(lambda: net(IMAGES))[1]["stage"] for _ in range(2)]
        copies: list[Any] = []
        monkeypatch.setattr(Tensor, "clone", lambda *args, **_: copies.append(args))
        recorder.run(lambda: net(IMAGES))
    handle.remove()
    assert [f is o for f, o in zip(features, outputs, strict=False)] == [True, True]
    assert not copies


def test_a_change_that_comes_later_is_refused_by_name() -> None:
    net = make_net(0)
    with tapped(net, [Tap("stem")]) as recorder:
        recorder.run(lambda: net(IMAGES))
        handle = net.stem.register_forward_hook(lambda *args: args[2].add_(1))
        with pytest.raises(InputError, match=r"Tap `stem`: the model changed in place"):
            recorder.run(lambda: net(IMAGES))
        handle.remove()


def test_losses_see_the_negative_values_before_an_activation_in_place() -> None:
    lowest: list[tuple[float, float]] = []

    def spy(student: Tensor, teacher: Tensor) -> Tensor:
        lowest.append((float(student.detach().min()), float(teacher.min())))
        return mse(student, teacher)

    teacher, student = make_net(0, norm=True), make_net(1, norm=True)
    run(student, teacher, taps=["stage.1"], settings=settings(feature_loss=spy))
    assert lowest
    assert all(s < 0 and t < 0 for s, t in lowest)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_parts_give_what_the_module_gave(backend: str) -> None:
    net = make_net(0, norm=True).eval()
    expected = net.stage[1](net.stage[0](net.stem(IMAGES)))
    net.stage.compile(backend=backend)
    with tapped(net, [Tap("stage.1")]) as recorder:
        for _ in range(2):
            _, features = recorder.run(lambda: net(IMAGES))
            torch.testing.assert_close(features["stage.1"], expected)
