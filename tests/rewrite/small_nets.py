"""Small nets with their coupling groups written by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskprune.coupling.groups import (
    AttributeForm,
    CouplingGroup,
    CouplingGroups,
    LinearForm,
    MacsTerm,
    TensorSlice,
)
from taskprune.rewrite.surgery import named_tensors, tensor_shapes
from taskprune.testing import randomise_


def rows(n_channels: int, per_channel: int = 1, offset: int = 0) -> np.ndarray[Any, Any]:
    """Positions of channels that lie one after the other."""
    return offset + np.arange(n_channels * per_channel).reshape(n_channels, per_channel)


def member(name: str, dim: int, index: np.ndarray[Any, Any], produces: bool = True) -> TensorSlice:
    return TensorSlice(name, dim, index.astype(np.int64), produces)


def norm_members(path: str, index: np.ndarray[Any, Any]) -> tuple[TensorSlice, ...]:
    names = ("weight", "bias", "running_mean", "running_var")
    return tuple(member(f"{path}.{name}", 0, index) for name in names)


@dataclass(frozen=True, eq=False)
class HandMade:
    """A net, its groups and inputs it takes."""

    model: nn.Module
    groups: CouplingGroups
    inputs: Any


def hand_made(
    model: nn.Module,
    groups: tuple[CouplingGroup, ...],
    inputs: Any,
    *,
    attributes: tuple[AttributeForm, ...] = (),
) -> HandMade:
    tensors = named_tensors(model)
    record = CouplingGroups(
        groups=groups,
        frozen=(),
        shapes=tensor_shapes(model),
        parameter_names=frozenset(n for n in tensors if isinstance(tensors[n], nn.Parameter)),
        attributes=attributes,
    )
    return HandMade(randomise_(model, seed=7), record, inputs)


class ConvNet(nn.Module):
    """Two convolutions with norms, a sigmoid between (f(0) is not 0), a flatten, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 4, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.norm1(self.conv1(x)))
        x = F.max_pool2d(torch.relu(self.norm2(self.conv2(x))), 2)
        out: Tensor = self.head(x.flatten(1))
        return out


def conv_net() -> HandMade:
    inputs = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return HandMade(randomise_(ConvNet(), seed=7), conv_groups(6, 4), inputs)


def conv_groups(n_first: int, n_second: int) -> CouplingGroups:
    """The groups of a :class:`ConvNet` of these widths."""
    first = CouplingGroup(
        "conv1",
        n_first,
        (
            member("conv1.weight", 0, rows(n_first)),
            member("conv1.bias", 0, rows(n_first)),
            *norm_members("norm1", rows(n_first)),
            member("conv2.weight", 1, rows(n_first), False),
        ),
        activations=(member("norm1", 1, rows(n_first)),),
        tasks=frozenset({"a", "b"}),
    )
    second = CouplingGroup(
        "conv2",
        n_second,
        (
            member("conv2.weight", 0, rows(n_second)),
            *norm_members("norm2", rows(n_second)),
            member("head.weight", 1, rows(n_second, 4), False),
        ),
        activations=(member("norm2", 1, rows(n_second)),),
    )
    one, two = LinearForm(0, {"conv1": 1}), LinearForm(0, {"conv2": 1})
    shapes: dict[str, tuple[int, ...]] = {
        "conv1.weight": (n_first, 3, 3, 3),
        "conv1.bias": (n_first,),
        "norm1.weight": (n_first,),
        "norm1.bias": (n_first,),
        "conv2.weight": (n_second, n_first, 3, 3),
        "norm2.weight": (n_second,),
        "norm2.bias": (n_second,),
        "head.weight": (5, n_second * 4),
        "head.bias": (5,),
    }
    parameters = frozenset(shapes)
    for norm, n in (("norm1", n_first), ("norm2", n_second)):
        shapes[f"{norm}.running_mean"] = shapes[f"{norm}.running_var"] = (n,)
        shapes[f"{norm}.num_batches_tracked"] = ()
    return CouplingGroups(
        groups=(first, second),
        frozen=(),
        shapes=shapes,
        parameter_names=parameters,
        macs=(
            MacsTerm("aten.convolution.default", "conv1", 2 * 16 * 27, (one,)),
            MacsTerm("aten.convolution.default", "conv2", 2 * 16 * 9, (one, two)),
            MacsTerm("aten.addmm.default", "head", 2 * 5 * 4, (two,)),
        ),
        activation_sizes={("norm1", 1): n_first, ("norm2", 1): n_second},
        batch_size=2,
    )


class Block(nn.Module):
    """Norms across channels of every kind, with a residual and a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(2, 8, 1)
        self.group_norm = nn.GroupNorm(2, 8)
        self.depthwise = nn.Conv1d(8, 8, 3, padding=1, groups=8)
        self.layer_norm = nn.LayerNorm(8)
        self.rms_norm = nn.RMSNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Mapping[str, Tensor]:
        x = self.group_norm(self.stem(x))
        x = x + torch.sigmoid(self.depthwise(x))
        tokens = self.layer_norm(x.transpose(1, 2))
        out = self.head(self.rms_norm(torch.cos(tokens)))
        return {"logits": out, "best": out.argmax(dim=-1)}


def block() -> HandMade:
    # Position k of both norm groups goes together: four channels of two entries.
    pairs = np.stack([np.arange(4), np.arange(4) + 4], axis=1)
    names = ("stem", "group_norm", "depthwise", "layer_norm")
    group = CouplingGroup(
        "stem",
        4,
        (
            *(member(f"{name}.{part}", 0, pairs) for name in names for part in ("weight", "bias")),
            member("rms_norm.weight", 0, pairs),
            member("head.weight", 1, pairs, False),
        ),
        crossed_by=(
            "aten.native_group_norm.default at group_norm",
            "aten.native_layer_norm.default at layer_norm",
            "aten._fused_rms_norm.default at rms_norm",
        ),
    )
    width = LinearForm(0, {"stem": 2})
    attributes = (
        AttributeForm("depthwise", ("groups",), width),
        AttributeForm("layer_norm", ("normalized_shape", 0), width),
        AttributeForm("rms_norm", ("normalized_shape", 0), width),
    )
    inputs = torch.randn(2, 2, 5, generator=torch.Generator().manual_seed(1))
    return hand_made(Block(), (group,), inputs, attributes=attributes)


class CrossingNet(nn.Module):
    """A statistic across channels written by hand, beside a layer without one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 6)
        self.second = nn.Linear(6, 5)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        x = self.second(x - x.mean(dim=-1, keepdim=True))
        out: Tensor = self.head(torch.relu(x))
        return out


def crossing_net() -> HandMade:
    def linear(name: str, n: int, reader: str, crossed_by: tuple[str, ...] = ()) -> CouplingGroup:
        members = (
            member(f"{name}.weight", 0, rows(n)),
            member(f"{name}.bias", 0, rows(n)),
            member(f"{reader}.weight", 1, rows(n), False),
        )
        return CouplingGroup(name, n, members, crossed_by=crossed_by)

    groups = (linear("first", 6, "second", ("aten.mean.dim at ",)), linear("second", 5, "head"))
    inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(2))
    return hand_made(CrossingNet(), groups, inputs)


class TiedNet(nn.Module):
    """An embedding that is also the output projection, and a list of sizes the forward reads."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 6)
        self.widths = [4, 2]
        self.sizes = {"parts": (4, 2)}
        self.mix = nn.Linear(6, 6)
        self.output = nn.Linear(6, 7, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        left, right = self.embedding(tokens).split(self.widths, dim=-1)
        joined = torch.cat([left * 2, right], dim=-1)
        left, right = self.mix(joined).split(list(self.sizes["parts"]), dim=-1)
        out: Tensor = self.output(torch.cat([left, right], dim=-1))
        return out


def tied_net() -> HandMade:
    def part(name: str, n: int, offset: int) -> CouplingGroup:
        index = rows(n, offset=offset)
        members = (
            member("embedding.weight", 1, index),
            member("mix.weight", 0, index),
            member("mix.weight", 1, index, False),
            member("mix.bias", 0, index),
        )
        return CouplingGroup(name, n, members)

    left, right = LinearForm(0, {"left": 1}), LinearForm(0, {"right": 1})
    attributes = (
        AttributeForm("", ("widths", 0), left),
        AttributeForm("", ("widths", 1), right),
        AttributeForm("", ("sizes", "parts", 0), left),
        AttributeForm("", ("sizes", "parts", 1), right),
    )
    return hand_made(
        TiedNet(),
        (part("left", 4, 0), part("right", 2, 4)),
        torch.tensor([[0, 3, 6], [1, 2, 5]]),
        attributes=attributes,
    )


class ChoosingNet(nn.Module):
    """Picks tokens by scores full of ties, as a detector does among its padded anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(4, 16)
        self.score = nn.Linear(16, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Mapping[str, Tensor]:
        scores = self.score(torch.relu(self.hidden(x.abs()))).squeeze(-1)
        chosen = scores.topk(3, dim=1).indices
        picked = x.gather(1, chosen.unsqueeze(-1).expand(-1, -1, 4))
        return {"scores": scores, "picked": self.head(picked)}


def choosing_net() -> HandMade:
    members = (
        member("hidden.weight", 0, rows(16)),
        member("hidden.bias", 0, rows(16)),
        member("score.weight", 1, rows(16), False),
    )
    x = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(3))
    # The scores see absolute values: each token and its negative tie.
    inputs = torch.cat([x, -x], dim=1)
    return hand_made(ChoosingNet(), (CouplingGroup("hidden", 16, members),), inputs)


ZOO = {
    "conv": conv_net,
    "block": block,
    "crossing": crossing_net,
    "tied": tied_net,
    "choosing": choosing_net,
}
