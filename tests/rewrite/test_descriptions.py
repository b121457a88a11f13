"""Integers that only describe follow where that is certain, and nothing else is touched."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskprune import apply_plan, couple, prune, trace
from taskprune.errors import VerificationError
from taskprune.plan.plan import PruningPlan, build_plan
from taskprune.rewrite.checkpoint import load_checkpoint, save_checkpoint
from taskprune.rewrite.descriptions import Descriptions, describe
from taskprune.rewrite.reading import read_names
from taskprune.testing import random_drop, randomise_


class Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.embed_dim, self.num_heads, self.head_dim = dim, num_heads, dim // num_heads
        self.scale = self.head_dim**-0.5
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Any:
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.proj(y.transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.embed_dim = self.num_features = dim
        self.patches = nn.Conv2d(3, dim, 2, 2)
        self.position = nn.Parameter(torch.randn(1, 4, dim))
        self.attention = Attention(dim, 4)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position
        x = x + self.attention(x)
        return self.head(self.norm(x).mean(1))


class Block(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.hidden_channels = 9
        self.one = nn.Conv2d(in_channels, 9, 1)
        self.two = nn.Conv2d(9, out_channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Any:
        return self.norm(self.two(self.one(x).relu()))


class Widths(nn.Module):
    """Says its widths in a list, a tuple, a number that may be several things, and a wrong one."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_dims, self.channels = [6, 8], (6, 8)
        self.dim = 7
        self.width = 999
        self.block, self.head = Block(6, 8), nn.Conv2d(8, 2, 1)
        self.stem = nn.Conv2d(3, 6, 1)
        self.left, self.right = nn.Conv2d(8, 7, 1), nn.Conv2d(7, 7, 1)
        self.end = nn.Conv2d(7, 2, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.block(self.stem(x))
        return self.head(x), self.end(self.right(self.left(x)).relu())


@dataclass
class Config:
    hidden_size: int = 6
    intermediate_size: int = 10
    num_layers: int = 2


class Layer(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Any:
        return x + self.down(self.up(x).relu())


class Configured(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = Config()
        self.inner = nn.Linear(3, self.config.hidden_size)
        self.layers = nn.ModuleList([Layer(self.config) for _ in range(self.config.num_layers)])
        self.out = nn.Linear(self.config.hidden_size, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.inner(x)
        for layer in self.layers:
            x = layer(x)
        return self.out(x)


def planned(model: nn.Module, x: Tensor, ratio: float = 0.4) -> PruningPlan:
    randomise_(model.double().eval(), seed=0)
    groups = couple(trace(model, x))
    return build_plan(groups, random_drop(groups, ratio, seed=1))


def pixels() -> Tensor:
    return torch.randn(2, 3, 4, 4, dtype=torch.float64)


def test_a_vision_transformer_says_its_widths() -> None:
    model, x = Transformer(), pixels()
    plan = planned(model, x)
    after: Any = apply_plan(model, plan, example_inputs=x)
    width = len(after.norm.weight)
    assert width < 16
    assert after.embed_dim == after.num_features == after.attention.embed_dim == width
    attention = after.attention
    assert attention.num_heads * attention.head_dim == attention.proj.in_features
    assert attention.scale == model.attention.scale
    assert describe(model, plan).kept == ()


def test_a_block_says_its_channels() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 6, 1), Block(6, 8), nn.Conv2d(8, 2, 1)), pixels()
    after = apply_plan(model, planned(model, x), example_inputs=x)
    block: Any = after.get_submodule("1")
    assert block.in_channels == block.one.in_channels < 6
    assert block.hidden_channels == block.one.out_channels < 9
    assert block.out_channels == len(block.norm.weight) < 8


def test_lists_and_tuples_follow_and_what_is_ambiguous_is_listed() -> None:
    model, x = Widths(), pixels()
    plan = planned(model, x)
    # The two convolutions of 7 channels lose different numbers of them.
    groups = couple(trace(model, x))
    drop = random_drop(groups, 0.4, seed=1)
    name = next(g.name for g in groups if g.n_channels == 7)
    plan = build_plan(groups, {**drop, name: drop[name][:1]})
    after: Any = apply_plan(model, plan, example_inputs=x)
    stem, made = after.stem.out_channels, after.head.in_channels
    assert after.embed_dims == [stem, made]
    assert after.channels == (stem, made)
    assert model.embed_dims == [6, 8]
    assert (after.dim, after.width) == (7, 999)
    (kept,) = describe(model, plan).kept
    assert (kept.module, kept.path, kept.value) == ("", ("dim",), 7)
    assert "`model.dim` still says 7: sizes of that value nearby become" in str(kept)


def test_a_shared_configuration_follows_where_all_agree() -> None:
    model, x = Configured(), torch.randn(4, 3, dtype=torch.float64)
    original = model.config
    plan = planned(model, x)
    after: Any = apply_plan(model, plan, example_inputs=x)
    assert after.config.hidden_size == after.out.in_features < 6
    assert after.config.intermediate_size == after.layers[0].up.out_features < 10
    assert all(layer.config is after.config for layer in after.layers)
    assert model.config is original
    assert original == Config()


def test_a_shared_configuration_stays_where_layers_differ() -> None:
    model, x = Configured(), torch.randn(4, 3, dtype=torch.float64)
    planned(model, x)
    groups = couple(trace(model, x))
    drop = random_drop(groups, 0.4, seed=1)
    name = next(g.name for g in groups if g.n_channels == 10)
    plan = build_plan(groups, {name: drop[name]})
    after: Any = apply_plan(model, plan, example_inputs=x)
    assert after.config == Config()
    assert [kept.path for kept in describe(model, plan).kept] == [("config", "intermediate_size")]


class Reading(nn.Module):
    """Its forward reads the width in a way that no trace hears of."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.embed_dim, self.how, self.steps = 8, how, [1.0] * 9
        self.one, self.two = nn.Linear(3, 8), nn.Linear(8, 2)

    def _root(self) -> float:
        return math.sqrt(self.embed_dim)

    def forward(self, x: Tensor) -> Any:
        y = self.one(x).relu()
        if self.how == "list":
            y = y * self.steps[self.embed_dim]
        elif self.how == "method":
            y = y / self._root()
        elif self.how == "helper":
            y = y * _factor(self)
        elif self.how == "branch" and len(x) > 100:
            y = y * float(f"{self.embed_dim}")
        elif self.how == "getattr":
            y = y * len(range(getattr(self, "embed_dim")))  # noqa: B009
        return self.two(y)


class Scaler:
    """No configuration, though it looks like one."""

    def __init__(self) -> None:
        self.dim = 8

    def apply(self, x: Tensor) -> Tensor:
        return x * len(range(self.dim))


class Helped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scaler = Scaler()
        self.one, self.two = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Any:
        return self.two(self.scaler.apply(self.one(x)))


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_dim = 8
        self.one, self.two = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Any:
        return self.two(self.one(x).relu().sum(dim=-1, keepdim=True) * self.one(x))


def _factor(module: Any) -> float:
    return 1.0 / len(range(module.embed_dim))


@pytest.mark.parametrize("how", ["list", "method", "helper", "branch", "getattr"])
def test_what_the_forward_may_read_stays_and_outputs_with_it(how: str) -> None:
    model, x = Reading(how), torch.randn(4, 3, dtype=torch.float64)
    plan = planned(model, x)
    after: Any = apply_plan(model, plan, example_inputs=x)
    assert after.one.out_features < 8
    assert after.embed_dim == 8
    assert [kept.path for kept in describe(model, plan).kept] == [("embed_dim",)]


def test_what_a_held_object_reads_in_its_methods_stays() -> None:
    model, x = Helped(), torch.randn(4, 3, dtype=torch.float64)
    after: Any = apply_plan(model, planned(model, x), example_inputs=x)
    assert after.one.out_features < 8
    assert after.scaler.dim == 8


def test_hooks_and_whole_states_count_as_readers() -> None:
    names = read_names(Plain())
    assert names is not None
    assert "embed_dim" not in names
    hooked = Plain()
    hooked.one.register_forward_hook(lambda *args: args[2] * hooked.embed_dim)
    assert "embed_dim" in (read_names(hooked) or ())
    dumping = Plain()
    dumping.two.register_forward_hook(lambda *_: vars(hooked) and None)
    assert read_names(dumping) is None


class OwnAttention(nn.MultiheadAttention):
    """Inherits a forward that reads its sizes."""


def test_inherited_and_decorated_code_is_searched() -> None:
    assert "embed_dim" in (read_names(OwnAttention(8, 2)) or ())

    class Decorated(Plain):
        @torch.no_grad()
        def forward(self, x: Tensor) -> Any:
            return self.one(x) * self.embed_dim

    assert "embed_dim" in (read_names(Decorated()) or ())


@pytest.mark.parametrize("make", [Transformer, Widths, Configured], ids=lambda m: m.__name__)
def test_outputs_are_those_without_the_step_and_a_checkpoint_tells_the_same(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make()
    x = torch.randn(4, 3, dtype=torch.float64) if make is Configured else pixels()
    plan = planned(model, x)
    after = apply_plan(model, plan, example_inputs=x)
    save_checkpoint(tmp_path / "small.safetensors", after, plan)
    loaded = load_checkpoint(tmp_path / "small.safetensors", make().double().eval())
    for (path, a), b in zip(after.named_modules(), loaded.modules(), strict=True):
        told = [{k: v for k, v in vars(m).items() if not k.startswith("_")} for m in (a, b)]
        assert told[0].keys() == told[1].keys()
        for name, value in told[0].items():
            assert value == told[1][name], (path, name)
    nothing = Descriptions((), ())
    monkeypatch.setattr("taskprune.rewrite.surgery.describe", lambda *_: nothing)
    silent = apply_plan(model, plan, example_inputs=x)
    torch.testing.assert_close(after(x), silent(x), rtol=0, atol=0)


def test_a_failure_gives_everything_back() -> None:
    model: Any = Configured()
    x = torch.randn(4, 3, dtype=torch.float64)
    plan = planned(model, x)
    config, before = model.config, copy.deepcopy(model.config)

    def failing(net: Any, inputs: Tensor) -> Tensor:
        if net.out.in_features < 6:
            assert net.config.hidden_size < 6
            raise RuntimeError("no")
        made: Tensor = net(inputs)
        return made

    with pytest.raises(VerificationError):
        apply_plan(model, plan, example_inputs=x, forward=failing, inplace=True)
    assert model.config is config == before
    assert all(layer.config is config for layer in model.layers)


def test_the_report_lists_what_was_not_updated() -> None:
    model, x = Reading("method"), torch.randn(4, 3)
    model.eval()
    result = prune(model, None, 0.3, example_inputs=x, importance="magnitude")
    assert any("`model.embed_dim` still says 8" in note for note in result.report.notes)
