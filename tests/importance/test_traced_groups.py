"""Scores on traced groups: the same as on hand-made ones, and as the peer's on its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_pruning as tp
from hand_made import batches, two_task_groups, two_task_net, two_tasks
from torch import Tensor, nn

from taskprune.coupling import couple
from taskprune.graph import trace
from taskprune.importance import TorchPruningImportance, output_owners, score
from taskprune.restore.process import preserved_rng


def test_traced_groups_score_as_hand_made_ones() -> None:
    net, tasks, data = two_task_net(), two_tasks(), batches()
    owners = output_owners(net, tasks, data[0])
    traced = couple(trace(net, (data[0][0],), tasks=owners))
    made = two_task_groups(net)
    assert {g.name: g.tasks for g in traced} == {g.name: g.tasks for g in made}
    found, expected = (score(net, groups, tasks, data) for groups in (traced, made))
    for group in made:
        torch.testing.assert_close(
            found[group.name].total.sort()[0], expected[group.name].total.sort()[0]
        )


class ConcatFlatten(nn.Module):
    """Two branches side by side, a depthwise layer, and a flatten into a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 4, 3, padding=1)
        self.right = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(10)
        self.depthwise = nn.Conv2d(10, 10, 3, padding=1, groups=10)
        self.mix = nn.Conv2d(10, 5, 1)
        self.head = nn.Linear(5 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.left(x), self.right(x)], dim=1)
        x = self.mix(self.depthwise(torch.relu(self.norm(x))))
        head: Tensor = self.head(torch.relu(x).flatten(1))
        return head


@pytest.mark.parametrize(
    "make",
    [
        tp.importance.GroupMagnitudeImportance,
        lambda: tp.importance.GroupMagnitudeImportance(p=1, normalizer=None),
        tp.importance.LAMPImportance,
        tp.importance.FPGMImportance,
        tp.importance.BNScaleImportance,
    ],
    ids=["L2", "L1 unnormalised", "lamp", "fpgm", "bn scale"],
)
def test_the_peer_ranks_concatenated_and_flattened_groups_the_same(
    make: Callable[[], Any],
) -> None:
    torch.manual_seed(0)
    net = ConcatFlatten().eval()
    nn.init.uniform_(net.norm.weight, 0.5, 1.5)
    x = torch.randn(2, 3, 4, 4)
    groups = couple(trace(net, (x,)))
    found = score(net, groups, importance=TorchPruningImportance(make()))
    with preserved_rng():
        peer = tp.DependencyGraph().build_dependency(net, example_inputs=x)
    for name in ("left", "right", "mix"):
        layer = net.get_submodule(name)
        assert isinstance(layer, nn.Conv2d)
        own = make()(
            peer.get_pruning_group(
                layer, tp.prune_conv_out_channels, idxs=list(range(layer.out_channels))
            )
        )
        if own is None:
            continue
        ours = found[name].total
        assert torch.equal(ours.argsort(), own.double()[: len(ours)].argsort())
