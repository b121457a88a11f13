"""Integers in modules: what the trace knows follows, the rest stays; the plan says both."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from taskprune import PruneSettings, apply_plan, couple, prune, trace
from taskprune.errors import VerificationError
from taskprune.plan import PruningPlan, build_plan, compose
from taskprune.rewrite.checkpoint import load_checkpoint, save_checkpoint
from taskprune.testing import random_drop, randomise_


class C2f(nn.Module):
    """Halves in its forward; another forward, which nothing traces, splits by a stored width."""

    def __init__(self) -> None:
        super().__init__()
        self.c = 6
        self.cv1, self.m = nn.Conv2d(3, 12, 1), nn.Conv2d(6, 6, 3, padding=1)
        self.cv2 = nn.Conv2d(18, 5, 1)

    def forward(self, x: Tensor) -> Any:
        left, right = self.cv1(x).chunk(2, 1)
        return self.cv2(torch.cat([left, right, self.m(right)], 1))

    def forward_split(self, x: Tensor) -> Any:
        left, right = self.cv1(x).split((self.c, self.c), 1)
        return self.cv2(torch.cat([left, right, self.m(right)], 1))


class Widths(nn.Module):
    """Says its widths in a list, a tuple and numbers, and computes with one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_dims, self.channels = [6, 8], (6, 8)
        self.dim, self.width, self.read = 7, 999, 9
        self.stem, self.block = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 8, 1)
        self.left, self.right = nn.Conv2d(8, 7, 1), nn.Conv2d(7, 7, 1)
        self.wide, self.end = nn.Conv2d(7, 9, 1), nn.Conv2d(9, 2, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.right(self.left(self.block(self.stem(x))).relu())
        x = self.wide(x)
        return self.end(x.reshape(len(x), self.read, *x.shape[2:]))


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
    """Several layers share a configuration, of which the forward reads the width."""

    def __init__(self) -> None:
        super().__init__()
        config = Config()
        self.inner = nn.Linear(3, config.hidden_size)
        self.layers = nn.ModuleList([Layer(config) for _ in range(config.num_layers)])
        self.out = nn.Linear(config.hidden_size, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.inner(x)
        for layer in self.layers:
            assert isinstance(layer, Layer)
            x = layer(x.reshape(-1, layer.config.hidden_size))
        return self.out(x)


class Reading(nn.Module):
    """Its forward reads the width in ways that a trace hears of, or not."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.embed_dim, self.how, self.steps = 8, how, [1.0] * 9
        self.one, self.two = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Any:
        y = self.one(x).relu()
        if self.how == "list":
            y = y * self.steps[self.embed_dim]
        elif self.how == "root":
            y = y / math.sqrt(self.embed_dim)
        elif self.how == "range":
            y = y / len(range(self.embed_dim))
        elif self.how == "branch" and len(x) > 100:
            y = y * float(f"{self.embed_dim}")
        return self.two(y)


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


class Layers(nn.Module):
    """Layers of torch that tell sizes of tensors which are not their plain parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.normed = parametrizations.weight_norm(nn.Linear(3, 9))
        self.halved = nn.Linear(9, 7)
        parametrize.register_parametrization(self.halved, "weight", Halved())
        self.own = nn.Linear(7, 7)
        self.tied = nn.Linear(7, 7)
        self.tied.weight = self.own.weight
        self.plain = nn.InstanceNorm1d(7)
        self.end = nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.halved(self.normed(x).relu())
        x = self.tied(self.own(x).relu())
        return self.end(self.plain(x.transpose(1, 2)).transpose(1, 2))


def planned(model: nn.Module, x: Tensor, ratio: float = 0.4, seed: int = 1) -> PruningPlan:
    randomise_(model.double().eval(), seed=0)
    groups = couple(trace(model, x))
    return build_plan(groups, random_drop(groups, ratio, seed=seed))


def pixels() -> Tensor:
    return torch.randn(2, 3, 4, 4, dtype=torch.float64)


def tokens() -> Tensor:
    return torch.randn(4, 3, dtype=torch.float64)


NETS: dict[str, tuple[Any, Any]] = {
    "c2f": (C2f, pixels),
    "widths": (Widths, pixels),
    "configured": (Configured, tokens),
    "layers": (Layers, lambda: torch.randn(2, 5, 3, dtype=torch.float64)),
    **{how: (lambda how=how: Reading(how), tokens) for how in ("list", "root", "range", "branch")},
}
EVERY_NET = pytest.mark.parametrize("name", NETS)


def integers(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[Any, int]]:
    """All integers in a module's own attributes, containers and configurations included."""
    if type(value) is int:
        yield path, value
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from integers(inner, (*path, i))
    elif isinstance(value, Config):
        for name, inner in vars(value).items():
            yield from integers(inner, (*path, name))
    elif isinstance(value, nn.Module):
        for name, inner in vars(value).items():
            if not name.startswith("_"):
                yield from integers(inner, (*path, name))


def changed_sizes(before: nn.Module, after: nn.Module) -> set[int]:
    pairs = zip(before.parameters(), after.parameters(), strict=True)
    return {m for a, b in pairs for m, n in zip(a.shape, b.shape, strict=True) if m != n}


@EVERY_NET
def test_what_equals_a_changed_size_follows_or_is_listed(name: str) -> None:
    make, inputs = NETS[name]
    model, x = make(), inputs()
    plan = planned(model, x)
    after = apply_plan(model, plan, example_inputs=x)
    listed = {(kept.path, kept.value) for kept in plan.kept_attributes}
    changes = {(c.module, c.path): (c.before, c.value) for c in plan.attributes}
    n_told = 0
    for (path, old), new in zip(model.named_modules(), after.modules(), strict=True):
        sizes, now = changed_sizes(old, new), dict(integers(new))
        for place, value in integers(old):
            if now[place] != value:
                n_told += 1
                own = changes.get((path, place), (value, now[place]))
                assert own == (value, now[place])
            elif value in sizes and not isinstance(old, nn.Linear | nn.Conv2d):
                assert (place, value) in listed, (path, place)
    assert n_told >= len(changes) > 0
    assert len(plan.notes()) <= len(plan.kept_attributes)


def test_what_only_another_forward_reads_stays_and_is_listed() -> None:
    model, x = C2f(), pixels()
    plan = planned(model, x)
    after: Any = apply_plan(model, plan, example_inputs=x)
    assert after.m.in_channels < after.c == 6
    (note,) = plan.notes()
    assert note.startswith("No recorded forward was seen to read these")
    assert note.endswith(": `model.c` still says 6.")


def test_what_the_forward_computes_with_follows() -> None:
    model, x = Widths(), pixels()
    plan = planned(model, x)
    after: Any = apply_plan(model, plan, example_inputs=x)
    assert after.read == after.wide.out_channels < 9
    assert (after.embed_dims, after.channels, after.dim, after.width) == ([6, 8], (6, 8), 7, 999)
    kept = [attribute.path for attribute in plan.kept_attributes]
    assert kept == [
        ("embed_dims", 0),
        ("embed_dims", 1),
        ("channels", 0),
        ("channels", 1),
        ("dim",),
    ]


def test_a_configuration_that_the_forward_reads_follows_and_stays_shared() -> None:
    model, x = Configured(), tokens()
    original = model.layers[0].config
    plan = planned(model, x)
    after: Any = apply_plan(model, plan, example_inputs=x)
    config = after.layers[0].config
    assert config.hidden_size == after.out.in_features < 6
    assert all(layer.config is config for layer in after.layers)
    assert model.layers[0].config is original
    assert original == Config()


def test_all_layers_that_share_a_configuration_count() -> None:
    """The first layer holds it; only the second one changes."""
    model, x = Configured(), tokens()
    randomise_(model.double().eval(), seed=0)
    groups = couple(trace(model, x), protect="layers.0.up")
    plan = build_plan(groups, random_drop(groups, 0.4, seed=1))
    (kept,) = plan.kept_attributes
    assert (kept.module, kept.path) == ("layers.0", ("config", "intermediate_size"))
    assert not kept.is_read


@pytest.mark.parametrize("how", ["list", "root", "range", "branch"])
def test_what_the_forward_needs_as_it_is_stays(how: str) -> None:
    model, x = Reading(how), tokens()
    plan = planned(model, x)
    after: Any = apply_plan(model, plan, example_inputs=x)
    assert after.one.out_features < 8 == after.embed_dim
    (kept,) = plan.kept_attributes
    assert (kept.path, kept.value, kept.is_read) == (("embed_dim",), 8, how == "root")


def test_layers_tell_what_a_parametrisation_made_and_what_they_share() -> None:
    model, x = Layers(), torch.randn(2, 5, 3, dtype=torch.float64)
    after: Any = apply_plan(model, planned(model, x), example_inputs=x)
    assert after.normed.out_features == after.halved.in_features == len(after.normed.weight) < 9
    assert after.halved.out_features == len(after.halved.weight) < 7
    assert after.tied.weight is after.own.weight
    assert (after.tied.out_features, after.tied.in_features) == after.own.weight.shape
    assert after.plain.num_features == after.end.in_features < 7


@EVERY_NET
def test_a_fresh_model_gets_the_same_attributes(name: str, tmp_path: Path) -> None:
    make, inputs = NETS[name]
    model, x = make(), inputs()
    plan = planned(model, x)
    after = apply_plan(model, plan, example_inputs=x)
    save_checkpoint(tmp_path / "small.safetensors", after, plan)
    stored = PruningPlan.from_json(plan.to_json())
    assert stored == plan
    for other in (
        apply_plan(make().double().eval(), stored),
        load_checkpoint(tmp_path / "small.safetensors", make().double().eval()),
    ):
        for a, b in zip(after.modules(), other.modules(), strict=True):
            assert dict(integers(a)) == dict(integers(b))


@EVERY_NET
def test_two_plans_change_what_they_change_in_turn(name: str) -> None:
    make, inputs = NETS[name]
    model, x = make(), inputs()
    first = planned(model, x, ratio=0.2)
    middle = apply_plan(model, first)
    groups = couple(trace(middle, x))
    second = build_plan(groups, random_drop(groups, 0.3, seed=2))
    both, after = compose(first, second), apply_plan(middle, second)
    at_once = apply_plan(model, both, example_inputs=x)
    for old, a, b in zip(model.modules(), after.modules(), at_once.modules(), strict=True):
        assert dict(integers(a)) == dict(integers(b))
        assert changed_sizes(old, a) == changed_sizes(old, b)
    said = {(p, place): n for p, m in model.named_modules() for place, n in integers(m)}
    assert all(said[c.module, c.path] == c.before for c in both.attributes)
    kept = {(k.module, k.path) for k in both.kept_attributes}
    assert kept >= {(k.module, k.path) for k in first.kept_attributes}


def test_explain_shows_attributes() -> None:
    model, x = Widths(), pixels()
    plan = planned(model, x)
    told = plan.explain("wide")
    names = {change.path for change in told.attributes}
    assert names == {("in_channels",), ("out_channels",)}
    assert not told.kept_attributes
    after = plan.pruned_shapes["wide.weight"][0]
    assert f"`wide.out_channels` says {after} in place of 9" in str(told)
    whole = plan.explain("")
    assert whole.attributes == plan.attributes
    assert "`model.read` says" in str(whole)
    assert "`model.dim` still says 7" in str(whole)


def test_a_failure_gives_everything_back() -> None:
    model: Any = Configured()
    x = tokens()
    plan = planned(model, x)
    config, before = model.layers[0].config, copy.deepcopy(model.layers[0].config)

    def failing(net: Any, inputs: Tensor) -> Tensor:
        if net.out.in_features < 6:
            assert net.layers[0].config.hidden_size < 6
            raise RuntimeError("no")
        made: Tensor = net(inputs)
        return made

    with pytest.raises(VerificationError):
        apply_plan(model, plan, example_inputs=x, forward=failing, inplace=True)
    assert model.layers[0].config is config == before
    assert all(layer.config is config for layer in model.layers)


@pytest.mark.parametrize("steps", [1, 2])
def test_the_report_lists_what_was_not_updated(steps: int) -> None:
    model, x = Reading("root").eval(), torch.randn(4, 3)
    result = prune(
        model,
        None,
        0.3,
        example_inputs=x,
        importance="magnitude",
        settings=PruneSettings(steps=steps),
    )
    found = [note for note in result.report.notes if "still says" in note]
    assert found == list(result.plan.notes())
    assert found[0].startswith("The forward computes with these")
    assert "`model.embed_dim` still says 8" in found[0]
