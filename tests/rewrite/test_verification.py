"""What the verification reports, and that it is not fooled."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_nets import choosing_net, crossing_net, hand_made, member, rows
from torch import Tensor, nn

from taskprune.coupling import couple
from taskprune.coupling.groups import AttributeForm, CouplingGroup, LinearForm
from taskprune.errors import VerificationError
from taskprune.graph import trace
from taskprune.plan.decisions import KeptEntries
from taskprune.plan.plan import PruningPlan, build_plan
from taskprune.restore.caches import Caches
from taskprune.rewrite import VerificationReport, apply_and_verify
from taskprune.rewrite.choices import RecordedChoices, RepeatedChoices
from taskprune.rewrite.comparison import compare
from taskprune.rewrite.norms import KeptStatistics
from taskprune.testing import randomise_


def hidden_group(n: int, reader: str = "head", crossed_by: tuple[str, ...] = ()) -> CouplingGroup:
    members = (
        member("hidden.weight", 0, rows(n)),
        member("hidden.bias", 0, rows(n)),
        member(f"{reader}.weight", 1, rows(n), False),
    )
    return CouplingGroup("hidden", n, members, crossed_by=crossed_by)


class Hidden(nn.Module):
    """One hidden layer; what happens in the middle is up to the test."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(3, 6)
        self.head = nn.Linear(6, 2)

    def middle(self, x: Tensor) -> Tensor:
        return torch.relu(x)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.middle(self.hidden(x)))
        return out


def verified(
    model: nn.Module,
    inputs: Any,
    crossed_by: tuple[str, ...] = (),
    attributes: tuple[AttributeForm, ...] = (),
    **options: Any,
) -> VerificationReport:
    made = hand_made(
        model, (hidden_group(6, crossed_by=crossed_by),), inputs, attributes=attributes
    )
    plan = build_plan(made.groups, {"hidden": np.array([1, 2, 5])})
    if options.pop("with_groups", False):
        options["groups"] = made.groups
    report = apply_and_verify(made.model, plan, example_inputs=inputs, **options)[1]
    assert report is not None
    return report


def test_report_is_plain_data_and_one_line() -> None:
    report = verified(Hidden(), torch.randn(4, 3))
    assert report.oracle == "masked"
    assert [error.path for error in report.outputs] == ["output"]
    data = json.loads(json.dumps(dataclasses.asdict(report)))
    assert data["dtype"] == "float64"
    assert data["tolerance"] == 1e-9
    assert len(str(report).splitlines()) == 1
    assert str(report).startswith("1 output compared with the masked original, largest")


def test_own_statistics_across_channels_are_checked_by_permutation() -> None:
    made = crossing_net()
    plan = build_plan(made.groups, {"first": np.array([0]), "second": np.array([1, 2])})
    report = apply_and_verify(made.model, plan, example_inputs=made.inputs, groups=made.groups)[1]
    assert report is not None
    assert report.oracle == "permutation"
    assert [(e.name, e.checked_by) for e in report.excluded] == [("first", "permutation")]
    assert report.max_relative_error < 1e-12
    assert "by permutation only: first" in str(report)


def test_without_groups_own_statistics_are_only_known_to_run() -> None:
    made = crossing_net()
    plan = build_plan(made.groups, {"first": np.array([0])})
    report = apply_and_verify(made.model, plan, example_inputs=made.inputs)[1]
    assert report is not None
    assert report.oracle == "shapes"
    assert report.outputs == ()
    assert report.excluded[0].checked_by == "shapes"
    assert "pass `groups=`" in report.excluded[0].reason


def test_own_statistics_excuse_no_other_group() -> None:
    made = crossing_net()
    second = made.groups["second"]
    shifted = member("head.weight", 1, np.roll(rows(5), 1, axis=0), False)
    wrong = CouplingGroup("second", 5, (*second.members[:-1], shifted))
    groups = hand_made(made.model, (made.groups["first"], wrong), made.inputs).groups
    plan = build_plan(groups, {"first": np.array([0]), "second": np.array([1])})
    with pytest.raises(VerificationError, match="is off by"):
        apply_and_verify(made.model, plan, example_inputs=made.inputs, groups=groups)


def test_wrong_group_with_own_statistics_is_found_by_permutation() -> None:
    made = crossing_net()
    first = made.groups["first"]
    shifted = member("second.weight", 1, np.roll(rows(6), 1, axis=0), False)
    wrong = CouplingGroup("first", 6, (*first.members[:-1], shifted), crossed_by=first.crossed_by)
    groups = hand_made(made.model, (wrong, made.groups["second"]), made.inputs).groups
    plan = build_plan(groups, {"first": np.array([0])})
    with pytest.raises(VerificationError, match="Permuting the channels of group `first`"):
        apply_and_verify(made.model, plan, example_inputs=made.inputs, groups=groups)


def test_channels_whose_zeros_make_nan_are_masked_at_their_readers() -> None:
    class Normalised(Hidden):
        def middle(self, x: Tensor) -> Tensor:
            # 0 / 0 for a channel that is zero over the whole batch.
            return x / x.square().sum(dim=0, keepdim=True).sqrt()

    inputs = torch.randn(4, 3)
    report = verified(Normalised(), inputs, with_groups=True)
    assert report.oracle == "masked"
    assert report.max_relative_error < 1e-12
    report = verified(Normalised(), inputs)
    assert report.oracle == "shapes"
    assert "NaN" in report.excluded[0].reason


@pytest.mark.parametrize(
    "norm",
    [nn.LayerNorm(6, elementwise_affine=False), nn.RMSNorm(6, elementwise_affine=False)],
    ids=["layer", "rms"],
)
def test_norms_without_parameters_are_known_by_their_module(norm: nn.Module) -> None:
    class Normed(Hidden):
        def __init__(self) -> None:
            super().__init__()
            self.norm = norm

        def middle(self, x: Tensor) -> Tensor:
            # cos(0) is not 0: what the norm makes of a masked channel must not matter.
            out: Tensor = self.norm(torch.cos(x))
            return out

    made = hand_made(
        Normed(),
        (hidden_group(6, crossed_by=("aten.native_layer_norm.default at norm",)),),
        torch.randn(4, 3),
        attributes=(AttributeForm("norm", ("normalized_shape", 0), LinearForm(0, {"hidden": 1})),),
    )
    plan = build_plan(made.groups, {"hidden": np.array([0, 3])})
    activations = (KeptEntries("norm", 1, 6, (1, 2, 4, 5)),)
    plan = dataclasses.replace(plan, activations=activations)
    report = apply_and_verify(made.model, plan, example_inputs=made.inputs)[1]
    assert report is not None
    assert report.oracle == "masked"
    assert report.max_relative_error < 1e-12


@pytest.mark.parametrize("widths", [(8, 8), (8, 4)], ids=["one width", "two widths"])
@pytest.mark.parametrize("parts", [1, 2])
def test_a_norm_without_parameters_may_run_on_several_groups(
    widths: tuple[int, int], parts: int
) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, widths[0]), nn.Linear(*widths)
            self.last, self.norm = nn.Linear(widths[1], 2), nn.GroupNorm(parts, 8, affine=False)

        def forward(self, x: Tensor) -> Any:
            x = self.norm(self.first(x)).tanh()
            return self.last(self.norm(self.second(x)).tanh())

    model, inputs = randomise_(Twice(), seed=0), torch.randn(4, 3)
    groups = couple(trace(model, inputs))
    for group in groups:
        drop = {group.name: np.arange(group.step)}
        report = apply_and_verify(
            model, build_plan(groups, drop), example_inputs=inputs, groups=groups
        )[1]
        assert report is not None
        assert [excluded.name for excluded in report.excluded] == [group.name]


def test_outputs_that_only_the_pruned_model_cannot_compute_are_wrong() -> None:
    class Spread(Hidden):
        def middle(self, x: Tensor) -> Tensor:
            return x / (x - x.mean(1, keepdim=True)).square().sum(1, keepdim=True)

    model, inputs = Spread(), torch.randn(4, 3)
    groups = couple(trace(model, inputs))
    plan = build_plan(groups, {"hidden": np.arange(5)})
    with pytest.raises(VerificationError, match="in one model only"):
        apply_and_verify(model, plan, example_inputs=inputs, groups=groups)


def test_statistics_of_unmasked_norms_are_torchs_own() -> None:
    norm = nn.LayerNorm(6)
    x = torch.randn(2, 6)
    with KeptStatistics(norm, ()):
        inside = norm(x)
    assert torch.equal(inside, norm(x))


def test_spatial_and_functional_norms_count_kept_entries_only() -> None:
    x = torch.randn(2, 4, 3, 5)
    scale, shift = torch.randn(4, 3), torch.randn(4, 3)

    class Functional(nn.Module):
        def __init__(self, scale: Tensor, shift: Tensor) -> None:
            super().__init__()
            self.scale, self.shift = nn.Parameter(scale), nn.Parameter(shift)

        def forward(self, x: Tensor) -> Tensor:
            return F.layer_norm(x, tuple(self.scale.shape), self.scale, self.shift)

    keep = [0, 2, 3]
    x = x.movedim(3, 1)
    wide = Functional(scale, shift)
    with KeptStatistics(wide, [KeptEntries("scale", 0, 4, tuple(keep))]):
        masked = wide(x)[:, :, keep]
    small = Functional(scale[keep], shift[keep])(x[:, :, keep])
    torch.testing.assert_close(masked, small)


def test_model_that_insists_on_float32_is_compared_in_it() -> None:
    class Stubborn(Hidden):
        def middle(self, x: Tensor) -> Tensor:
            return torch.relu(torch.from_numpy(x.numpy().astype("float32")))

    report = verified(Stubborn(), torch.randn(4, 3))
    assert report.dtype == "float32"
    assert report.tolerance == 1e-4
    assert report.max_relative_error < 1e-5


def test_norms_that_ask_for_float32_are_compared_in_double() -> None:
    class RootMeanSquare(Hidden):
        def middle(self, x: Tensor) -> Tensor:
            wide = x.to(torch.float32)
            scale = torch.ones(len(x), 1, dtype=torch.float32) / wide.shape[0]
            return (wide.type(torch.float32) * scale).softmax(0, dtype=torch.float32).type_as(x)

    report = verified(RootMeanSquare(), torch.randn(4, 3))
    assert report.dtype == "float64"
    assert report.max_relative_error < 1e-14


def test_tensors_the_forward_makes_follow_into_double() -> None:
    class Gridded(Hidden):
        def middle(self, x: Tensor) -> Tensor:
            grid = torch.linspace(0, 1, x.shape[0])
            return x * (grid[None] @ torch.ones(x.shape[0], 1))

    report = verified(Gridded(), torch.randn(4, 3))
    assert report.dtype == "float64"
    assert torch.get_default_dtype() is torch.float32


@dataclass
class Batch:
    images: Tensor
    names: tuple[str, ...]


def test_batches_may_be_dataclasses() -> None:
    batch = Batch(torch.randn(4, 3), ("a", "b"))
    report = verified(Hidden(), batch, forward=lambda model, b: {"x": model(b.images)})
    assert report.dtype == "float64"
    assert report.outputs[0].path == "x"
    assert batch.images.dtype is torch.float32


def test_forward_left_overs_do_not_reach_the_result() -> None:
    class Caching(Hidden):
        def forward(self, x: Tensor) -> Tensor:
            self.last = super().forward(x)
            return self.last

    made = hand_made(Caching(), (hidden_group(6),), torch.randn(4, 3))
    plan = build_plan(made.groups, {"hidden": np.array([0])})
    pruned, _ = apply_and_verify(made.model, plan, example_inputs=made.inputs)
    assert not hasattr(pruned, "last")
    assert not hasattr(made.model, "last")


def test_ties_are_made_to_agree() -> None:
    scores = torch.tensor([[1.0, 3.0, 3.0, 2.0]])
    other = scores + torch.tensor([[0.0, 0.0, 1e-12, 0.0]])
    recorded = RecordedChoices()
    with recorded:
        first = scores.topk(1, dim=1).indices
    repeated = RepeatedChoices(recorded, 1e-9)
    with repeated:
        second = other.topk(1, dim=1)
    assert torch.equal(first, second.indices)
    assert repeated.n_repeated == int(not torch.equal(first, other.topk(1, dim=1).indices))


@pytest.mark.parametrize(
    "choose",
    [
        lambda s: s.topk(2, dim=1)[1],
        lambda s: torch.sort(s, dim=1, descending=True)[1],
        lambda s: s.argsort(dim=1, descending=True),
        lambda s: s.max(dim=1)[1],
        lambda s: torch.argmax(s, dim=1, keepdim=True),
        lambda s: (-s).argmin(1),
    ],
)
@pytest.mark.parametrize(("gap", "agree"), [(1e-12, True), (0.5, False)])
def test_only_ties_are_repeated(choose: Any, gap: float, agree: bool) -> None:
    scores = torch.tensor([[0.0, 3.0, 2.0], [4.0, 4.0, -1.0]], dtype=torch.float64)
    other = scores.clone()
    scores[0, 1] += gap
    scores[0, 2] += 1
    other[0, 1] += 0
    other[0, 2] += 1 + gap
    recorded = RecordedChoices()
    with recorded:
        first = choose(scores)
    repeated = RepeatedChoices(recorded, 1e-9)
    with repeated:
        second = choose(other)
    assert not torch.equal(first, choose(other))
    assert torch.equal(first, second) is agree
    assert repeated.n_repeated == agree


def test_chosen_tokens_do_not_confuse_the_comparison() -> None:
    made = choosing_net()
    plan = build_plan(made.groups, {"hidden": np.array([0, 5, 6, 13])})

    # Nudge the scores' last bits in the candidate only, as another order of summation would.
    def forward(model: nn.Module, x: Tensor) -> Any:
        if model.get_parameter("hidden.weight").shape[0] == 16:
            return model(x)
        noise = torch.linspace(0, 1e-13, 12, dtype=x.dtype)[None, :, None]
        return model(x * (1 + noise))

    report = apply_and_verify(made.model, plan, example_inputs=made.inputs, forward=forward)[1]
    assert report is not None
    assert report.repeated_choices == 1
    assert report.max_relative_error < 1e-9


def test_different_outputs_are_told_apart() -> None:
    def outputs(value: Any) -> Any:
        return compare(
            nn.Identity,
            nn.Flatten,
            torch.ones(2, 3),
            lambda model, x: {"a": x} if isinstance(model, nn.Identity) else value,
            caches=Caches(nn.Identity()),
        ).wrong

    ones = torch.ones(2, 3, dtype=torch.float64)
    assert outputs({"a": ones}) == ()
    assert "is gone" in str(outputs({})[0])
    assert "is new" in str(outputs({"a": ones, "b": ones})[0])
    assert "has shape (1, 2) in place of (2, 3)" in str(outputs({"a": ones[:1, :2]})[0])
    assert "infinities or NaN" in str(outputs({"a": ones / 0})[0])
    assert "off by 1 " in str(outputs({"a": ones.long() * 2})[0])


def test_equal_infinities_are_equal() -> None:
    x = torch.tensor([1.0, float("inf"), float("nan"), -float("inf")])
    assert (
        compare(
            nn.Identity, nn.Flatten, x, lambda _, y: y.clone(), caches=Caches(nn.Identity())
        ).wrong
        == ()
    )


def test_empty_plan_verifies() -> None:
    model = Hidden()
    made = hand_made(model, (), torch.randn(2, 3))
    plan: PruningPlan = build_plan(made.groups, {})
    report = apply_and_verify(made.model, plan, example_inputs=made.inputs)[1]
    assert report is not None
    assert report.max_relative_error == 0.0
