"""Behind a choice by value, readers see the rows that the teacher took."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from nets_of_readers import Chosen, made, sequences, third
from torch import Tensor, nn
from torch.nn import functional as F

from taskprune.compensation import CompensationResult, CompensationSettings, compensate
from taskprune.compensation.choice_following import Choices, Following
from taskprune.testing import unchanged


class Picking(nn.Module):
    """Tokens are picked by a score in one of many ways, and read behind."""

    def __init__(self, pick: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.embed, self.score = nn.Linear(5, 12), nn.Linear(12, 1)
        self.inner, self.out = nn.Linear(12, 15), nn.Linear(15, 3)
        self.pick = pick

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.embed(x))
        x = self.pick(x, self.score(x))
        made: Tensor = self.out(F.relu(self.inner(x)))
        return made


def _rows(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, index.expand(-1, -1, x.shape[2]))


FIXED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "topk": lambda x, s: _rows(x, s.topk(3, 1)[1]),
    "topk, as a function, named": lambda x, s: _rows(x, torch.topk(input=s, k=3, dim=1).indices),
    "topk, smallest": lambda x, s: _rows(x, s.topk(3, dim=1, largest=False).indices),
    "sort": lambda x, s: _rows(x, s.sort(dim=1, descending=True).indices[:, :3]),
    "sort, with its values": lambda x, s: (
        _rows(x, s.squeeze(2).sort().indices[:, -3:, None])
        * s.squeeze(2).sort().values[:, -3:, None].sigmoid()
    ),
    "argsort": lambda x, s: _rows(x, s.argsort(1)[:, :3]),
    "argmax": lambda x, s: _rows(x, s.argmax(1, keepdim=True)),
    "argmax of a flat one": lambda x, s: x[:, s[0].argmax()][:, None],
    "twice": lambda x, s: _rows(_rows(x, s.topk(6, 1)[1]), s[:, :6].argsort(1)[:, :3]),
}

FREE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mask": lambda x, s: x[s[..., 0] > s[..., 0].median()],
    "nonzero": lambda x, s: x[0, (s[0, :, 0] > s[0, :, 0].median()).nonzero()[:, 0]],
    "mask behind topk": lambda x, s: _rows(x, s.topk(5, 1)[1])[s.topk(5, 1)[0][..., 0] > 0],
}


def compensated(model: nn.Module, **settings: Any) -> CompensationResult:
    batches = sequences()
    return compensate(
        model, third(model, batches[0]), batches, settings=CompensationSettings(**settings)
    )


def aware(result: CompensationResult) -> dict[str, bool]:
    return {report.name: report.aware for report in result.readers}


@pytest.mark.parametrize("pick", FIXED.values(), ids=FIXED.keys())
def test_readers_behind_a_choice_of_fixed_size_are_fitted_to_what_they_will_read(pick: Any) -> None:
    model = made(lambda: Picking(pick))
    with unchanged(model):
        found = aware(compensated(model))
    assert found == {"score.weight": True, "inner.weight": True, "out.weight": True}


@pytest.mark.parametrize("pick", FREE.values(), ids=FREE.keys())
def test_rows_behind_a_choice_of_any_size_are_not_taken_for_the_same(pick: Any) -> None:
    found = aware(compensated(made(lambda: Picking(pick))))
    assert found == {"score.weight": True, "inner.weight": False, "out.weight": False}


def test_losses_are_those_of_a_student_that_chooses_by_itself() -> None:
    result, batches = compensated(made(Chosen)), sequences()
    again = compensate(made(Chosen), third(made(Chosen), batches[0]), batches)
    assert result.losses == again.losses
    (found,) = result.losses.values()
    teacher = made(Chosen)
    with torch.no_grad():
        pairs = [(teacher(x), result.model(x)) for x in batches]
    distances = [(y - z).square().mean() / y.var() for y, z in pairs]
    assert found.compensated == pytest.approx(float(torch.stack(distances).mean()))


class PerChannel(nn.Module):
    """Each channel picks its own tokens, and channels go."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.inner, self.out = nn.Linear(5, 12), nn.Linear(12, 9), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        best = self.embed(x).topk(3, dim=1).values
        made: Tensor = self.out(F.relu(self.inner(best)))
        return made


def test_who_cannot_follow_has_rows_of_its_own() -> None:
    found = aware(compensated(made(PerChannel)))
    assert found == {"inner.weight": False, "out.weight": False}


class Mixture(nn.Module):
    """Each token goes through the two experts that a router gives the most to."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.router = nn.Linear(5, 12), nn.Linear(12, 3)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 12)) for _ in range(3)
        )
        self.out = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.embed(x)).flatten(0, 1)
        shares, chosen = self.router(x).softmax(-1).topk(2, dim=-1)
        mixed = x
        for number, expert in enumerate(self.experts):
            token, place = torch.where(chosen == number)
            said = shares[token, place][:, None] * expert(x[token])
            mixed = mixed.index_add(0, token, said)
        made: Tensor = self.out(mixed)
        return made


def test_experts_are_fitted_to_the_tokens_that_the_teacher_gave_them() -> None:
    model = made(Mixture)
    result = compensated(model)
    assert all(aware(result).values())
    assert {"experts.0.0.weight", "experts.2.2.weight", "router.weight"} <= aware(result).keys()


def test_a_follower_takes_the_leaders_choice_with_its_own_values() -> None:
    leader, x, y = Choices(), torch.tensor([3.0, 1.0, 2.0]), torch.tensor([0.0, 5.0, 4.0])
    with leader:
        theirs = x.topk(2)
        x.sort()
    waited: list[int] = []
    follower = Following(leader, waited.append)
    with follower:
        ours = y.topk(2)
        ours.indices.zero_()
        torch.sort(y, descending=True)
        assert not follower.is_lost
        assert torch.equal(y.topk(2).values, torch.tensor([5.0, 4.0]))  # nobody leads here
    assert theirs.indices.tolist() == [0, 2]
    assert ours.values.tolist() == [0.0, 4.0]
    assert waited == [1, 2, 3]
    assert follower.is_lost
