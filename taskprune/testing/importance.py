"""What every importance criterion has to hold to, checked on nets that come with the check."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from taskprune.calling.forward import Forward, call_batch
from taskprune.calling.task import Task
from taskprune.coupling import couple
from taskprune.coupling.groups import CouplingGroups
from taskprune.graph import trace
from taskprune.importance import ChannelScores, Evidence, Importance, output_owners, score
from taskprune.rewrite.permutation import channel_order, permuted_copy
from taskprune.testing.leaving_alone import unchanged

_SEED = 0

INSIDE = ("identities", "writes")
"""What a criterion may touch as long as it gives it back: tensors and their memory."""


@dataclass(frozen=True, eq=False)
class ImportanceCase:
    """A model to score.

    Attributes:
        model: With random parameters and norm statistics, in float64 for exact comparisons.
        tasks: Its tasks; their losses are means over the batch.
        batches: Calibration batches, a list.
        forward: ``(model, batch) -> outputs``.
    """

    model: nn.Module
    tasks: Mapping[str, Task]
    batches: list[Any]
    forward: Forward = call_batch


class _Maps(nn.Module):
    """A residual trunk with batch norms, a depthwise layer, and a head for each task."""

    def __init__(self, n_tasks: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.block = nn.Sequential(
            nn.Conv2d(6, 8, 1),
            nn.BatchNorm2d(8),
            nn.SiLU(),
            nn.Conv2d(8, 8, 3, padding=1, groups=8),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 6, 1),
        )
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Conv2d(6, 4 + i, 1), nn.ReLU(), nn.Conv2d(4 + i, 2, 1))
            for i in range(n_tasks)
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x)
        x = x + self.block(x)
        return {f"task{i}": head(x) for i, head in enumerate(self.heads)}


class _Tokens(nn.Module):
    """Attention between layer norms, one batch norm, and a head for each task."""

    def __init__(self, n_tasks: int) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.norm = nn.LayerNorm(8)
        self.q, self.k, self.v = nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(8, 6)
        self.out = nn.Linear(6, 8)
        self.pool = nn.BatchNorm1d(8)
        self.heads = nn.ModuleList(nn.Linear(8, 2 + i) for i in range(n_tasks))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.embed(x)
        y = self.norm(x)
        weights = torch.softmax(self.q(y) @ self.k(y).transpose(1, 2), dim=-1)
        x = self.pool((x + self.out(weights @ self.v(y))).mean(1))
        return {f"task{i}": head(x) for i, head in enumerate(self.heads)}


class _Sensors(nn.Module):
    """A branch for each of two sensors, what both give laid side by side, a head for each task."""

    def __init__(self, n_tasks: int) -> None:
        super().__init__()
        self.camera = nn.Sequential(
            nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 1)
        )
        self.lidar = nn.Sequential(nn.Conv2d(2, 6, 1), nn.BatchNorm2d(6), nn.SiLU())
        self.fusion = nn.Sequential(nn.Conv2d(10, 6, 1), nn.BatchNorm2d(6), nn.ReLU())
        self.heads = nn.ModuleList(nn.Conv2d(6, 2 + i, 1) for i in range(n_tasks))

    def forward(self, images: Tensor, points: Tensor) -> dict[str, Tensor]:
        x = self.fusion(torch.cat((self.camera(images), self.lidar(points)), dim=1))
        return {f"task{i}": head(x) for i, head in enumerate(self.heads)}


def importance_cases(n_tasks: int) -> tuple[ImportanceCase, ...]:
    """Return small nets with ``n_tasks`` tasks: convolutions and tokens.

    Losses of tasks differ in kind and scale.
    """
    tasks = {f"task{i}": Task(_loss(i)) for i in range(n_tasks)}
    return tuple(
        ImportanceCase(_randomised(net.double()), tasks, _inputs(shape))
        for net, shape in ((_Maps(n_tasks), (3, 3, 6, 6)), (_Tokens(n_tasks), (3, 5, 3)))
    )


def sensor_cases(n_tasks: int) -> tuple[ImportanceCase, ...]:
    """Return a small net with two sensors, ``images`` and ``points``, and ``n_tasks`` tasks.

    For criteria that look across modalities, which refuse nets with a single input.
    """
    tasks = {f"task{i}": Task(_loss(i)) for i in range(n_tasks)}
    images, points = _inputs((3, 3, 6, 6)), _inputs((3, 2, 6, 6))
    batches = [(pair,) for pair in zip(images, points, strict=True)]
    return (ImportanceCase(_randomised(_Sensors(n_tasks).double()), tasks, batches),)


def _inputs(shape: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu") for _ in range(3)
    ]


def _randomised(net: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if tensor.is_floating_point():
                low = 0.5 if name.endswith("running_var") else -1.0
                tensor.uniform_(low, 1.5, generator=generator)
    # Flags and gradients of all kinds, to see whether they are given back.
    net.train()
    first, second, *_ = net.parameters()
    first.requires_grad_(False)
    second.grad = torch.ones_like(second)
    return net


def _loss(number: int) -> Callable[[Any, Any], Tensor]:
    def loss(outputs: Any, _batch: Any) -> Tensor:
        own: Tensor = outputs[f"task{number}"]
        target = torch.linspace(-1, 1, own[0].numel(), dtype=own.dtype, device=own.device).reshape(
            own[0].shape
        )
        error = (
            F.mse_loss(own, target.expand_as(own))
            if number % 2
            else F.smooth_l1_loss(own, target.expand_as(own))
        )
        return error * 10.0**number

    return loss


def assert_importance_conforms(
    criterion: Importance,
    *,
    cases: Iterable[ImportanceCase] | None = None,
    follows_channels: bool = True,
) -> None:
    """Assert what holds for every criterion.

    It returns finite scores of the right shape for all groups; two calls agree to the bit; the
    scores move with the channels when these are permuted in the model; and the model, its
    gradients, flags, hooks and buffers are left as they were, and the random generators too.

    Args:
        criterion: Any callable ``(model, groups, evidence) -> scores``.
        cases: Models to score. Default: two small nets with one task, and two with three.
        follows_channels: Set it to false for criteria that go by the place of a channel, such as a
            random order.

    Raises:
        AssertionError: It does not conform; says how and on which group.
    """
    if cases is None:
        cases = (*importance_cases(1), *importance_cases(3))
    for case in cases:
        groups = case_groups(case)
        assert len(groups), f"{type(case.model).__name__} has no group to score."
        with unchanged(case.model, but=INSIDE):
            first = _scored(criterion, case, groups)
        _assert_complete(first, groups)
        # Only the seeds of the criterion may matter, not the state of anybody's generator.
        torch.rand(1, device="cpu")
        _assert_equal(first, _scored(criterion, case, groups), "A second call", rtol=0.0)
        if follows_channels:
            _assert_follows(criterion, case, groups, first)


def case_groups(case: ImportanceCase) -> CouplingGroups:
    """Trace and couple the model of a case."""
    batch = case.batches[0]
    owners = output_owners(case.model, case.tasks, batch, forward=case.forward)
    return couple(trace(case.model, batch, forward=case.forward, tasks=owners))


def _scored(criterion: Importance, case: ImportanceCase, groups: CouplingGroups) -> ChannelScores:
    return score(
        case.model,
        groups,
        case.tasks,
        case.batches,
        importance=_watched(criterion),
        forward=case.forward,
    )


def _watched(criterion: Importance) -> Importance:
    """Look at the model around the call alone: `score` undoes most of what a criterion does."""

    def watched(model: nn.Module, groups: CouplingGroups, evidence: Evidence) -> Any:
        with unchanged(model, but=INSIDE):
            return criterion(model, groups, evidence)

    return watched


def _assert_complete(scores: ChannelScores, groups: CouplingGroups) -> None:
    # `score` refuses wrong shapes and values that are not finite; left are names and rows.
    assert scores.criterion, "The criterion has no name."
    names = [group.name for group in groups]
    found = list(scores.groups)
    assert found == names, f"The scores must hold every group. Found {found}."
    rows = {len(own.per_task) for own in scores.groups.values()}
    assert rows == {len(scores.tasks)}, f"Expected a row for each of {scores.tasks}. Found {rows}."


def _assert_follows(
    criterion: Importance, case: ImportanceCase, groups: CouplingGroups, before: ChannelScores
) -> None:
    model = permuted_copy(case.model, groups.replacements, groups.groups, _SEED)
    orders = {
        group.name: torch.from_numpy(channel_order(group, _SEED + n))
        for n, group in enumerate(groups)
    }
    after = score(
        model, groups, case.tasks, case.batches, importance=criterion, forward=case.forward
    )
    moved = {name: own.of(orders[name]) for name, own in before.groups.items()}
    expected = replace(before, groups=moved)
    _assert_equal(expected, after, "Permuting the channels", rtol=1e-6)


def _assert_equal(one: ChannelScores, other: ChannelScores, what: str, *, rtol: float) -> None:
    for key in ("total", "per_task"):
        mine: dict[str, Tensor] = {name: getattr(own, key) for name, own in one.groups.items()}
        largest = max((float(own.abs().max()) for own in mine.values()), default=0.0)
        for name, own in mine.items():
            error = float((own - getattr(other[name], key)).abs().max())
            limit = rtol * max(float(own.abs().max()), 1e-6 * largest)
            assert error <= limit, (
                f"{what} changed `{key}` of group `{name}` by {error:.3g}; its scores go up to "
                f"{float(own.abs().max()):.3g}."
            )
