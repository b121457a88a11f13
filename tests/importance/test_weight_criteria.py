"""Criteria that look at weights alone, each against its formula channel by channel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hand_made import FIRST, SECOND, TRUNK, two_task_groups, two_task_net
from torch import Tensor, nn

from taskprune.coupling import couple
from taskprune.errors import InputError
from taskprune.graph import trace
from taskprune.importance import (
    BatchNormScaleImportance,
    FpgmImportance,
    IsomorphicImportance,
    LampImportance,
    MagnitudeImportance,
    importance_by_name,
    score,
)
from taskprune.importance.criteria.isomorphic import isomorphic_classes

NET = two_task_net()
GROUPS = two_task_groups(NET)


def vectors(group: str) -> Tensor:
    """All parameter entries of each channel, one by one."""
    parameters = dict(NET.named_parameters())
    rows = [
        torch.cat(
            [
                parameters[member.name].detach().select(member.dim, position).reshape(-1)
                for member in GROUPS[group].members
                if member.name in parameters
                for position in member.index[channel].tolist()
            ]
        )
        for channel in range(GROUPS[group].n_channels)
    ]
    return torch.stack(rows).double()


@pytest.mark.parametrize("p", [1, 2])
def test_magnitude_of_a_private_group_is_the_norm_of_its_entries(p: Any) -> None:
    found = score(NET, GROUPS, importance=MagnitudeImportance(p))
    torch.testing.assert_close(
        found.total[FIRST], vectors(FIRST).norm(p=p, dim=1), rtol=1e-6, atol=0
    )
    assert found.criterion == {1: "magnitude_l1", 2: "magnitude"}[p]


def test_another_norm_is_refused() -> None:
    with pytest.raises(InputError, match="1 or 2"):
        MagnitudeImportance(3)  # type: ignore[arg-type]


def test_lamp_is_the_share_of_what_is_left() -> None:
    found = score(NET, GROUPS, importance=LampImportance())
    energy = vectors(FIRST).square().sum(1)
    expected = torch.stack([e / energy[energy >= e].sum() for e in energy])
    torch.testing.assert_close(found.total[FIRST], expected, rtol=1e-6, atol=0)
    assert float(found.total[TRUNK].max()) == 1.0


def test_equal_channels_have_equal_lamp_scores() -> None:
    net = two_task_net()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(0.5)
    found = score(net, GROUPS, importance=LampImportance())
    torch.testing.assert_close(found.total[FIRST], torch.full((6,), 1 / 6, dtype=torch.float64))


def test_lamp_of_nothing_but_zeros_is_zero() -> None:
    net = two_task_net()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    found = score(net, GROUPS, importance=LampImportance())
    assert found.total[FIRST].tolist() == [0.0] * 6


@pytest.mark.parametrize("group", [TRUNK, FIRST, SECOND])
def test_fpgm_is_the_sum_of_distances(group: str) -> None:
    found = score(NET, GROUPS, importance=FpgmImportance())
    own = vectors(group)
    expected = torch.stack([(own - row).norm(dim=1).sum() for row in own])
    torch.testing.assert_close(found.total[group], expected, rtol=1e-6, atol=0)


def test_fpgm_takes_many_channels_piece_by_piece() -> None:
    net = nn.Sequential(nn.Linear(3, 600), nn.ReLU(), nn.Linear(600, 2))
    groups = couple(trace(net, torch.rand(2, 3)))
    found = score(net, groups, importance="fpgm").total["0"]
    first, last = net[0], net[2]
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    own = torch.cat([first.weight, first.bias[:, None], last.weight.T], dim=1).detach().double()
    expected = torch.cdist(own, own, compute_mode="donot_use_mm_for_euclid_dist").sum(1)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_bn_scale_is_the_absolute_scale_and_others_go_last() -> None:
    found = score(NET, GROUPS, importance=BatchNormScaleImportance())
    torch.testing.assert_close(found.total[TRUNK], NET.norm.weight.detach().double().abs())
    assert float(found.total[FIRST].min()) > float(found.total[TRUNK].max())


def test_bn_scale_without_batch_norms_is_refused() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    groups = couple(trace(net, torch.rand(2, 3)))
    with pytest.raises(InputError, match=r"`bn_scale`.*Found none.*magnitude"):
        score(net, groups, importance="bn_scale")


class Twins(nn.Module):
    """Two blocks built alike but for their widths, and one built otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4))
        self.two = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 4))
        self.other = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.one(x) + self.two(x) + self.other(x)
        return y


def test_isomorphic_ranking_is_blind_to_the_scale_of_a_class() -> None:
    net = Twins().eval()
    groups = couple(trace(net, torch.rand(2, 4)))
    classes = [set(names) for names in isomorphic_classes(net, groups)]
    assert classes == [{"one.0", "two.0"}, {"other.0"}]
    criterion = IsomorphicImportance(MagnitudeImportance())
    found = score(net, groups, importance=criterion)
    assert found.criterion == "isomorphic(magnitude)"
    with torch.no_grad():
        for parameter in net.other.parameters():
            parameter.mul_(100)
    scaled = score(net, groups, importance=criterion)
    plain = score(net, groups, importance=MagnitudeImportance())
    for group in groups:
        assert torch.equal(found.total[group.name], scaled.total[group.name])
    both = torch.cat([found.total["one.0"], found.total["two.0"]])
    inner = torch.cat([plain.total["one.0"], plain.total["two.0"]])
    assert torch.equal(both.argsort(), inner.argsort())
    assert found.total["other.0"].sort()[0].tolist() == [c / 8 for c in range(8)]


def test_isomorphic_ranking_asks_for_a_whole_record() -> None:
    criterion = IsomorphicImportance(lambda _m, groups, _e: {g.name: torch.ones(1) for g in groups})
    with pytest.raises(InputError, match="returns `ChannelScores`"):
        score(NET, GROUPS, importance=criterion)


def test_the_l1_norm_has_a_name_of_its_own() -> None:
    assert importance_by_name("magnitude_l1") == MagnitudeImportance(1)
