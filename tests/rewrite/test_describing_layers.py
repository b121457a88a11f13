"""Every layer of ``torch.nn`` prints the sizes it has after pruning."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from taskprune import apply_plan, couple, trace
from taskprune.plan.plan import PruningPlan, build_plan
from taskprune.replace.unequal_groups import UnequalGroupsConv
from taskprune.testing import random_drop, randomise_

N = 8
SPACE: dict[int, tuple[int, ...]] = {0: (), 1: (6,), 2: (5, 6), 3: (3, 4, 5)}
LEFT = 5
"""How many of `N` channels stay; 4 in two groups of a norm."""
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Between(nn.Module):
    """The layer under test, with a layer on both sides that lets its channels go."""

    def __init__(self, layer: nn.Module, rank: int, n_made: int) -> None:
        super().__init__()
        conv: Any = CONVS[rank - 1] if rank else nn.Linear
        kernel = (1,) if rank else ()
        self.before, self.layer = conv(3, N, *kernel), layer
        self.after = conv(n_made, 2, *kernel)

    def forward(self, x: Tensor) -> Any:
        y = self.layer(self.before(x))
        return self.after(y[0] if isinstance(y, tuple) else y)


class Looking(nn.Module):
    """Embeddings and a bilinear layer, which read no single activation."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.after = layer, nn.Linear(N, 2)
        self.left, self.right = nn.Linear(3, N), nn.Linear(3, N)

    def forward(self, x: Tensor) -> Any:
        if isinstance(self.layer, nn.Bilinear):
            return self.after(self.layer(self.left(x), self.right(x)))
        return self.after(self.layer(x))


@dataclass(frozen=True)
class Case:
    """How to make a layer, and an equally configured one by the sizes of the pruned tensors."""

    layer: Callable[[], nn.Module]
    fresh: Callable[[Any], nn.Module]
    rank: int = 0
    net: Callable[[nn.Module], nn.Module] | None = None
    inputs: Callable[[], Tensor] | None = None
    n_made: int = N


def convolution(kind: Any, rank: int, groups: int) -> Case:
    transposed = issubclass(kind, nn.modules.conv._ConvTransposeNd)

    def fresh(old: Any) -> Any:
        first, second = old.weight.shape[:2]
        n_groups = groups if groups < N else max(first, second)
        n_in, n_out = (first, second * n_groups) if transposed else (second * n_groups, first)
        return kind(n_in, n_out, 3, padding=1, groups=n_groups)

    return Case(lambda: kind(N, N, 3, padding=1, groups=groups), fresh, rank)


def norm(kind: Any, rank: int) -> Case:
    more = {} if "Batch" in kind.__name__ else {"affine": True, "track_running_stats": True}
    return Case(lambda: kind(N, **more), lambda old: kind(len(old.weight), **more), rank)


def tokens() -> Tensor:
    return torch.arange(8).view(2, 4)


CASES: dict[str, Case] = {
    "Linear": Case(lambda: nn.Linear(N, N), lambda old: nn.Linear(*old.weight.shape[::-1])),
    "Bilinear": Case(
        lambda: nn.Bilinear(N, N, N),
        lambda old: nn.Bilinear(old.weight.shape[1], old.weight.shape[2], old.weight.shape[0]),
        net=Looking,
    ),
    "Embedding": Case(
        lambda: nn.Embedding(9, N), lambda old: nn.Embedding(*old.weight.shape), 0, Looking, tokens
    ),
    "EmbeddingBag": Case(
        lambda: nn.EmbeddingBag(9, N),
        lambda old: nn.EmbeddingBag(*old.weight.shape),
        0,
        Looking,
        tokens,
    ),
    "GroupNorm": Case(lambda: nn.GroupNorm(2, N), lambda old: nn.GroupNorm(2, len(old.weight)), 1),
    "LayerNorm": Case(lambda: nn.LayerNorm(N), lambda old: nn.LayerNorm(old.weight.shape)),
    "RMSNorm": Case(lambda: nn.RMSNorm(N), lambda old: nn.RMSNorm(tuple(old.weight.shape))),
    "PReLU": Case(lambda: nn.PReLU(N), lambda old: nn.PReLU(len(old.weight)), 1),
    "LSTM": Case(
        lambda: nn.LSTM(N, N, batch_first=True),
        lambda old: nn.LSTM(*(w.shape[1] for w in old.all_weights[0][:2]), batch_first=True),
    ),
    "GroupNorm-plain": Case(
        lambda: nn.GroupNorm(2, N, affine=False), lambda _: nn.GroupNorm(2, 4, affine=False), 1
    ),
    "InstanceNorm2d-plain": Case(
        lambda: nn.InstanceNorm2d(N), lambda _: nn.InstanceNorm2d(LEFT), 2
    ),
    "GRU": Case(
        lambda: nn.GRU(N, N, batch_first=True),
        lambda old: nn.GRU(*(w.shape[1] for w in old.all_weights[0][:2]), batch_first=True),
    ),
    "RNN": Case(
        lambda: nn.RNN(N, N, batch_first=True),
        lambda old: nn.RNN(*(w.shape[1] for w in old.all_weights[0][:2]), batch_first=True),
    ),
    "LSTM-projected": Case(
        lambda: nn.LSTM(N, 2 * N, proj_size=N, batch_first=True),
        lambda old: nn.LSTM(
            old.weight_ih_l0.shape[1],
            old.weight_ih_l0.shape[0] // 4,
            proj_size=old.weight_hh_l0.shape[1],
            batch_first=True,
        ),
    ),
    "GRU-stacked": Case(
        lambda: nn.GRU(N, N, num_layers=2, bidirectional=True, batch_first=True),
        lambda old: nn.GRU(
            *(w.shape[1] for w in old.all_weights[0][:2]),
            num_layers=2,
            bidirectional=True,
            batch_first=True,
        ),
        n_made=2 * N,
    ),
    "LSTMCell": Case(
        lambda: nn.LSTMCell(N, N),
        lambda old: nn.LSTMCell(old.weight_ih.shape[1], old.weight_hh.shape[1]),
        inputs=lambda: torch.randn(4, 3),
    ),
    "GRUCell": Case(
        lambda: nn.GRUCell(N, N),
        lambda old: nn.GRUCell(old.weight_ih.shape[1], old.weight_hh.shape[1]),
        inputs=lambda: torch.randn(4, 3),
    ),
    "RNNCell": Case(
        lambda: nn.RNNCell(N, N),
        lambda old: nn.RNNCell(old.weight_ih.shape[1], old.weight_hh.shape[1]),
        inputs=lambda: torch.randn(4, 3),
    ),
}
for rank in (1, 2, 3):
    for stem in ("Conv", "ConvTranspose"):
        for suffix, groups in (("", 1), ("-grouped", 2), ("-depthwise", N)):
            kind = getattr(nn, f"{stem}{rank}d")
            CASES[f"{stem}{rank}d{suffix}"] = convolution(kind, rank, groups)
    for stem in ("BatchNorm", "InstanceNorm"):
        CASES[f"{stem}{rank}d"] = norm(getattr(nn, f"{stem}{rank}d"), rank)
CASES["SyncBatchNorm"] = norm(nn.SyncBatchNorm, 2)

WHOLE = {"EmbeddingBag"}
"""No rule lets the channels of such a layer go; it must not say otherwise."""

ELSEWHERE = {
    "MultiheadAttention": "is replaced, see below",
    "AdaptiveLogSoftmaxWithLoss": "holds Linear layers; a loss",
    "RNNBase": "is none itself",
    "RNNCellBase": "is none itself",
    "Transformer": "holds the layers above",
}
"""What has parameters and no sizes of its own that could shrink."""


def pruned(case: Case) -> tuple[nn.Module, nn.Module, PruningPlan]:
    torch.manual_seed(0)
    layer = case.layer()
    model = case.net(layer) if case.net else Between(layer, case.rank, case.n_made)
    model = randomise_(model.eval(), seed=0)
    default = torch.randn(2, 3, *SPACE[case.rank]) if case.rank else torch.randn(2, 4, 3)
    inputs = case.inputs() if case.inputs else default
    groups = couple(trace(model, inputs))
    plan = build_plan(groups, random_drop(groups, 0.4, seed=1))
    return model, apply_plan(model, plan, example_inputs=inputs, groups=groups), plan


@pytest.mark.parametrize("name", CASES)
def test_a_layer_prints_what_a_fresh_one_of_its_sizes_prints(name: str) -> None:
    case = CASES[name]
    before, after, _ = pruned(case)
    layer = after.get_submodule("layer")
    fresh = case.fresh(layer)
    assert repr(layer) == repr(fresh)
    changed = repr(layer) != repr(before.get_submodule("layer"))
    assert changed == (name not in WHOLE)
    integers = {n: v for n, v in vars(fresh).items() if type(v) is int and n[0] != "_"}
    assert {n: getattr(layer, n) for n in integers} == integers


def test_every_layer_with_parameters_is_among_the_cases() -> None:
    tested = {name.partition("-")[0] for name in CASES}
    for name, kind in vars(nn).items():
        if not inspect.isclass(kind) or not issubclass(kind, nn.Module) or name in ELSEWHERE:
            continue
        source = inspect.getsource(kind.__init__)
        if "Parameter(" in source and "Lazy" not in name and kind is not nn.Module:
            assert name in tested, name


def test_replaced_modules_print_their_new_sizes() -> None:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(N, 2, batch_first=True)

    class Attending(Between):
        def forward(self, x: Tensor) -> Any:
            y = self.before(x)
            return self.after(self.layer(y, y, y)[0])

    _, after, _ = pruned(Case(lambda: layer, lambda old: old, net=lambda m: Attending(m, 0, N)))
    attention: Any = after.get_submodule("layer")
    assert attention.embed_dim == attention.q_proj.weight.shape[1] == attention.q_proj.in_features
    assert attention.head_dim * attention.num_heads == len(attention.q_proj.weight)
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj):
        shape = projection.weight.shape
        assert (projection.out_features, projection.in_features) == tuple(shape)
    assert attention.embed_dim < N

    convolution = UnequalGroupsConv.from_torch(nn.Conv1d(N, 6, 3, groups=2))
    convolution.weights[1].data = convolution.weights[1].data[:2, :1]
    assert str(convolution).startswith("UnequalGroupsConv(\n  5, 5, groups=2")
