"""Weights that are computed from others: what stays of them is what it was.

The oracle silences channels where they pass. It knows nothing of parameters, so that it sees what
zeroing them does not: a filter that is divided by its norm grows where it reads fewer channels.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

import taskprune
from taskprune.coupling import couple
from taskprune.errors import VerificationError
from taskprune.graph import trace
from taskprune.plan.plan import PruningPlan, build_plan
from taskprune.rewrite import apply_and_verify, apply_plan
from taskprune.testing import random_drop, randomise_

Layer = Callable[..., nn.Module]


def signal(size: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 4, size, dtype=torch.float64, generator=generator)


class Standardised(nn.Conv1d):
    """Its weight has mean zero and variance one over all inputs of a filter."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2), keepdim=True)
        weight = weight / (weight.std((1, 2), keepdim=True) + 1e-5)
        return F.conv1d(x, weight, self.bias, padding=self.padding)


class UnitRows(nn.Module):
    """Compares with prototypes of length one."""

    def __init__(self, inputs: int, outputs: int, _kernel: int, padding: int = 0) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(torch.randn(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x, F.normalize(self.prototypes, dim=1)[..., None])


def transposed(inputs: int, outputs: int, kernel: int, padding: int = 0) -> nn.Module:
    return nn.ConvTranspose1d(inputs, outputs, kernel, padding=padding)


def old_weight_norm(layer: nn.Conv1d, dim: Any = 0) -> nn.Module:
    with pytest.warns(FutureWarning):
        normed = weight_norm(layer, dim=dim)
    with torch.no_grad():
        normed(torch.zeros(1, layer.in_channels, 5))
    return normed


def parametrised(dim: Any = 0) -> Callable[[nn.Module], nn.Module]:
    return lambda layer: parametrizations.weight_norm(layer, dim=dim)


EXACT: dict[str, Layer] = {
    "weight norm": lambda *a, **k: parametrised()(nn.Conv1d(*a, **k)),
    "weight norm of inputs": lambda *a, **k: parametrised(1)(nn.Conv1d(*a, **k)),
    "one norm": lambda *a, **k: parametrised(None)(nn.Conv1d(*a, **k)),
    "transposed": lambda *a, **k: parametrised()(transposed(*a, **k)),
    "transposed, norm of outputs": lambda *a, **k: parametrised(1)(transposed(*a, **k)),
    "hook": lambda *a, **k: old_weight_norm(nn.Conv1d(*a, **k)),
    "hook, one norm": lambda *a, **k: old_weight_norm(nn.Conv1d(*a, **k), None),
    "spectral norm": lambda *a, **k: parametrizations.spectral_norm(nn.Conv1d(*a, **k)),
    "spectral norm, transposed": lambda *a, **k: parametrizations.spectral_norm(
        transposed(*a, **k)
    ),
    "spectral norm, hook": lambda *a, **k: spectral_norm(nn.Conv1d(*a, **k)),
}


def net(layer: Layer, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv1d(4, 8, 3, padding=1),
        activation(),
        layer(8, 10, 3, padding=1),
        activation(),
        layer(10, 6, 3, padding=1),
        activation(),
        nn.Conv1d(6, 2, 3, padding=1),
    )
    return made.double().eval()


def planned(model: nn.Module, ratio: float = 0.4) -> tuple[PruningPlan, Any]:
    groups = couple(trace(model, signal()), strict=True)
    return build_plan(groups, random_drop(groups, ratio, seed=0)), groups


def silenced(model: nn.Sequential, plan: PruningPlan, x: Tensor) -> Tensor:
    """Run the original with the removed channels at zero where the next layer reads them."""

    def zero(gone: list[int]) -> Any:
        return lambda _, args: (args[0].index_fill(1, torch.tensor(gone), 0.0),)

    with ExitStack() as stack, torch.no_grad():
        for kept in plan.activations:
            if kept.name in ("0", "2", "4"):
                gone = sorted(set(range(kept.size)) - set(kept.keep))
                reader = model[int(kept.name) + 2]
                stack.callback(reader.register_forward_pre_hook(zero(gone)).remove)
        return model(x)  # type: ignore[no-any-return]


def largest(difference: Tensor) -> float:
    return float(difference.detach().abs().max())


@pytest.mark.parametrize("activation", [nn.LeakyReLU, nn.Sigmoid], ids=["leaky", "sigmoid"])
@pytest.mark.parametrize("name", EXACT)
def test_what_stays_of_a_weight_is_what_it_was(name: str, activation: type[nn.Module]) -> None:
    model = net(EXACT[name], activation)
    plan, groups = planned(model)
    assert set(plan.kept.values()) == {5, 6, 4}
    smaller, report = apply_and_verify(model, plan, example_inputs=signal(), groups=groups)
    wanted = silenced(model, plan, signal())
    assert largest(smaller(signal()) - wanted) <= 1e-12 * largest(wanted)
    assert report is not None
    assert report.max_relative_error < 1e-12
    assert report.rescaled is None


@pytest.mark.parametrize("name", EXACT)
def test_a_stored_model_has_the_weights_of_the_pruned_one(name: str, tmp_path: Path) -> None:
    model = net(EXACT[name])
    plan, _ = planned(model)
    smaller = apply_plan(model, plan, verify=False)
    taskprune.save_checkpoint(tmp_path / "model.safetensors", smaller, plan)
    torch.manual_seed(1)
    again = taskprune.load_checkpoint(tmp_path / "model.safetensors", lambda: net(EXACT[name]))
    assert torch.equal(again.eval()(signal()), smaller(signal()))


@pytest.mark.parametrize("name", EXACT)
def test_pruning_twice_is_pruning_once(name: str) -> None:
    model = net(EXACT[name])
    plan, _ = planned(model, 0.3)
    smaller = apply_plan(model, plan, verify=False)
    second, groups = planned(smaller, 0.3)
    twice, report = apply_and_verify(smaller, second, example_inputs=signal(), groups=groups)
    assert report is not None
    assert report.rescaled is None
    wanted = silenced(smaller, second, signal())  # type: ignore[arg-type]
    assert largest(twice(signal()) - wanted) <= 1e-12 * largest(wanted)


@pytest.mark.parametrize("name", EXACT)
def test_the_original_and_what_was_refused_stay_as_they_were(name: str) -> None:
    model = net(EXACT[name]).train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    plan, _ = planned(model)
    apply_plan(model, plan, example_inputs=signal())

    def stumbles(model: nn.Module, x: Tensor) -> Any:
        if model[2].out_channels < 10:  # type: ignore[index]
            raise ValueError("too narrow")
        return model(x)

    for inplace in (False, True):
        with pytest.raises(VerificationError, match="too narrow"):
            apply_plan(model, plan, example_inputs=signal(), forward=stumbles, inplace=inplace)
        after = model.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
        assert model.training


def test_single_precision_is_as_good_as_its_rounding() -> None:
    model = net(EXACT["weight norm"]).float()
    groups = couple(trace(model, signal().float()))
    plan = build_plan(groups, random_drop(groups, 0.4, seed=0))
    smaller, report = apply_and_verify(model, plan, example_inputs=signal().float(), groups=groups)
    wanted = silenced(model, plan, signal().float())
    assert largest(smaller(signal().float()) - wanted) <= 1e-5 * largest(wanted)
    assert report is not None
    assert report.max_relative_error < 1e-9
    assert report.rescaled is None


def test_what_cannot_follow_is_measured_and_said() -> None:
    model = randomise_(net(Standardised), seed=0)
    result = taskprune.prune(model, None, 0.3, example_inputs=signal(), importance="magnitude")
    rescaled = result.report.verification.rescaled  # type: ignore[union-attr]
    assert rescaled is not None
    assert set(rescaled.names) <= {"2.weight", "4.weight"}
    wanted = silenced(model, result.plan, signal())  # type: ignore[arg-type]
    off = largest(result.model(signal()) - wanted) / largest(wanted)
    assert off > 0.01
    assert rescaled.change == pytest.approx(off, rel=1e-6)
    assert any("aten.mean at " in note and "are off by" in note for note in result.report.notes)


def test_a_change_that_cannot_be_measured_is_said_too() -> None:
    model = randomise_(net(UnitRows), seed=0)
    plan, groups = planned(model)
    _, report = apply_and_verify(model, plan, example_inputs=signal(), groups=groups)
    assert report is not None
    assert report.rescaled is not None
    assert report.rescaled.change is None
    assert "could not be measured" in str(report.rescaled)


def test_the_report_says_that_a_spectral_norm_is_gone() -> None:
    result = taskprune.prune(
        net(EXACT["spectral norm"]), None, 0.2, example_inputs=signal(), importance="magnitude"
    )
    assert any("spectral norm of 2, 4" in note for note in result.report.notes)
    assert type(result.model[2]) is nn.Conv1d  # type: ignore[index]
    assert "weight" in dict(result.model[2].named_parameters())  # type: ignore[index]


class LowRank(nn.Module):
    """The rank of a product of weights is no channel that something else makes."""

    def __init__(self, inputs: int, outputs: int, _kernel: int, padding: int = 0) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.randn(outputs, 5))
        self.right = nn.Parameter(torch.randn(5, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x, (self.left @ self.right)[..., None])


@pytest.mark.parametrize("layer", [nn.Conv1d, LowRank], ids=["plain", "low rank"])
def test_nothing_is_said_of_weights_that_stay(layer: Layer) -> None:
    model = randomise_(net(layer), seed=0)
    plan, groups = planned(model)
    _, report = apply_and_verify(model, plan, example_inputs=signal(), groups=groups)
    assert report is not None
    assert report.rescaled is None
