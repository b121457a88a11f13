"""What ``couple`` returns beyond the partition itself."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from zoo import ZOO, NetCase
from zoo.case import image, tokens
from zoo.forwards import AuxiliaryHead, UnknownOperator
from zoo.maps import Depthwise, FlattenedMap, Residual, ThreeHeads
from zoo.sizes import ShiftedWithRemainder
from zoo.tokens import FusedAttention, TokenMixer

from taskprune.coupling import (
    CouplingGroups,
    channel_rule,
    couple,
    known_operators,
    prefer_inner,
)
from taskprune.coupling.context import RuleContext
from taskprune.errors import InputError, UnsupportedOperatorError
from taskprune.graph import trace
from taskprune.plan.plan import build_plan
from taskprune.testing import assert_masked_equals_pruned, random_drop, randomise_


def groups_of(model: nn.Module, inputs: Tensor | None = None, **options: object) -> CouplingGroups:
    graph = trace(model.double(), image()() if inputs is None else inputs)
    return couple(graph, **options)  # type: ignore[arg-type]


def entries(groups: CouplingGroups) -> Iterator[tuple[str, int, int]]:
    for group in groups:
        for member in group.members:
            for position in member.index.ravel().tolist():
                yield member.name, member.dim, position


@pytest.mark.parametrize("case", ZOO, ids=str)
def test_every_entry_belongs_to_one_channel_and_no_channel_is_empty(case: NetCase) -> None:
    groups = couple(trace(case.make().double(), case.inputs()))
    found = list(entries(groups))
    assert len(found) == len(set(found))
    assert len({group.name for group in groups}) == len(groups)
    for group in groups:
        assert group.n_channels > 1
        for member in (*group.members, *group.activations):
            assert member.index.shape[0] == group.n_channels
            assert member.index.dtype == np.int64
            assert (np.diff(member.index, axis=1) > 0).all()


@pytest.mark.parametrize("case", ZOO, ids=str)
def test_single_precision_is_coupled_like_double(case: NetCase) -> None:
    """Kernels differ by dtype: some write one opaque operator for a whole recurrent layer."""
    inputs = pytree.tree_map_only(
        torch.Tensor, lambda t: t.float() if t.is_floating_point() else t, case.inputs()
    )
    groups = couple(trace(case.make().float(), inputs))
    assert sum(group.n_channels for group in groups) == case.channels


def test_coupling_twice_gives_the_same_records() -> None:
    def text(groups: CouplingGroups) -> str:
        return str(
            [(g, [(m.name, m.dim, m.index.tolist()) for m in g.members]) for g in groups]
            + [(f.name, f.reasons) for f in groups.frozen]
        ) + str((groups.attributes, groups.macs))

    assert text(groups_of(Depthwise())) == text(groups_of(Depthwise()))


def test_groups_are_named_after_their_first_producer_in_order_of_the_forward() -> None:
    assert [group.name for group in groups_of(Residual())] == ["stem", "inner"]


def test_producers_and_readers_are_told_apart() -> None:
    members = {(m.name, m.dim): m.produces for m in groups_of(Residual())["stem"].members}
    assert members == {
        ("stem.weight", 0): True,
        ("stem.bias", 0): True,
        ("inner.weight", 1): False,
        ("outer.weight", 0): True,
        ("outer.bias", 0): True,
        ("norm.weight", 0): True,
        ("norm.bias", 0): True,
        ("norm.running_mean", 0): True,
        ("norm.running_var", 0): True,
        ("head.weight", 1): False,
    }


def test_flattened_channels_own_their_columns() -> None:
    (group,) = groups_of(FlattenedMap())
    columns = next(m for m in group.members if m.name == "head.weight")
    assert columns.index.tolist() == np.arange(80).reshape(5, 16).tolist()


def test_activations_say_where_channels_show_in_module_outputs() -> None:
    groups = groups_of(TokenMixer(), tokens()())
    places = {(a.name, a.dim) for group in groups for a in group.activations}
    assert places == {("embed", 2), ("norm", 2), ("up", 2), ("down", 2)}
    assert groups.activation_sizes["up", 2] == 12


def test_tasks_are_shared_in_the_trunk_and_private_in_the_heads() -> None:
    names = ("box", "lane", "area")
    graph = trace(ThreeHeads().double(), image()(), tasks={name: name for name in names})
    groups = couple(graph)
    assert groups.tasks == names
    assert groups["trunk"].tasks == set(names)
    assert [groups[f"{name}.0"].tasks for name in names] == [{name} for name in names]


def test_stored_sizes_follow_the_channels() -> None:
    groups = groups_of(FusedAttention(), tokens(width=12)())
    forms = {(a.module, a.path): a.value for a in groups.attributes}
    heads = forms["", ("heads",)]
    assert (heads.constant, dict(heads.coefficients)) == (0, {"qkv": 1})
    assert dict(forms["norm", ("normalized_shape", 0)].coefficients) == {"embed": 1}
    assert ("", ("width",)) not in forms


def test_the_policy_chooses_head_width() -> None:
    model = randomise_(FusedAttention().double().eval(), seed=0)
    inputs = tokens(width=12)()
    groups = couple(trace(model, inputs), factor_policy=prefer_inner)
    forms = {a.path: a.value for a in groups.attributes if a.module == ""}
    assert list(forms) == [("width",)]
    assert groups["qkv"].n_channels == 3
    plan = build_plan(groups, random_drop(groups, 0.4, seed=0))
    assert assert_masked_equals_pruned(model, plan, inputs, groups=groups).max_relative_error < 1e-9


def test_norms_across_channels_are_named() -> None:
    groups = groups_of(TokenMixer(), tokens()())
    assert groups["embed"].crossed_by == ("aten.native_layer_norm at norm",)
    assert groups["up"].crossed_by == ()


def test_both_passes_are_coupled_and_one_is_counted() -> None:
    once = couple(trace(AuxiliaryHead().double(), image()(), modes="eval"))
    both = couple(trace(AuxiliaryHead().double(), image()()))
    assert "auxiliary.0" not in once
    assert ("auxiliary.0.weight", 1) in {(m.name, m.dim) for m in both["a"].members}
    assert len(once.macs) == len(both.macs) == 3


@pytest.mark.parametrize(
    ("protect", "left"),
    [
        ((), {"stem", "inner"}),
        (("inner",), {"stem"}),
        (("in*",), {"stem"}),
        ((nn.BatchNorm2d,), {"inner"}),
        ((nn.Conv2d,), set()),
        (("",), set()),
        (("head",), {"stem", "inner"}),
    ],
)
def test_protected_modules_keep_their_output_channels(
    protect: tuple[str | type[nn.Module], ...], left: set[str]
) -> None:
    groups = groups_of(Residual(), protect=protect)
    assert {group.name for group in groups} == left
    if len(left) < 2:
        assert any(r.kind == "user" for f in groups.frozen for r in f.reasons)


@pytest.mark.parametrize(
    ("pattern", "left"),
    [
        ("*.0", {"trunk"}),
        ("l*.[01]", {"trunk", "box.0", "area.0"}),
        ("?ox.*", {"trunk", "lane.0", "area.0"}),
        ("lane.0.weight", {"trunk", "box.0", "area.0"}),
    ],
    ids=["last", "class of characters", "any character", "tensor"],
)
def test_a_pattern_reaches_nested_names_and_is_named(pattern: str, left: set[str]) -> None:
    groups = groups_of(ThreeHeads(), protect=pattern)
    assert {group.name for group in groups} == left
    reasons = [r for group in groups.frozen for r in group.reasons if r.kind == "user"]
    assert {reason.detail for reason in reasons} == {f"protected by '{pattern}'"}


def test_protecting_what_does_not_exist_is_refused() -> None:
    with pytest.raises(InputError, match="'neck'"):
        groups_of(Residual(), protect=("neck",))
    with pytest.raises(InputError, match="LSTM"):
        groups_of(Residual(), protect=(nn.LSTM,))


def test_strict_mode_names_the_operator_and_where_it_was_called() -> None:
    with pytest.raises(UnsupportedOperatorError, match=r"bessel_j1.*forwards\.py"):
        groups_of(UnknownOperator(), strict=True)


@torch.library.custom_op("taskprune_test::double", mutates_args=())
def double(x: Tensor) -> Tensor:
    return x * 2


@double.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class CallsCustomOperator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(double(self.a(x)))  # type: ignore[no-any-return]


def test_a_rule_of_ones_own_frees_the_channels_and_can_be_given_once() -> None:
    before = groups_of(CallsCustomOperator())
    assert len(before) == 0
    assert before.frozen[0].reasons[0].kind == "unknown"
    operator = torch.ops.taskprune_test.double.default

    @channel_rule(operator)
    def rule(ctx: RuleContext) -> None:
        ctx.produce(ctx.axes("x"), zero=True)

    assert groups_of(CallsCustomOperator(), strict=True)["a"].n_channels == 6
    assert str(operator) in known_operators()
    with pytest.raises(InputError, match="already has a channel rule"):
        channel_rule(operator)(rule)
    with pytest.raises(InputError, match="overloads"):
        channel_rule(double)(rule)  # type: ignore[arg-type]


def test_a_division_with_a_remainder_says_how_it_would_follow() -> None:
    groups = groups_of(ShiftedWithRemainder(), image(batch=4)())
    (reason,) = {r for f in groups.frozen for r in f.reasons if r.kind == "attribute"}
    assert "(shape[2] // 4), which does not follow" in reason.detail
    assert "stored by a module as one number" in reason.detail
