from __future__ import annotations

import torch
from nets_samples import randomise_norms, tiny_net
from torch import nn

from taskprune.driving.nets import merge_branches
from taskprune.driving.nets.conv import RepConv


def test_merging_keeps_the_outputs() -> None:
    net = tiny_net().double().eval()
    randomise_norms(net)
    images = torch.rand(2, 3, 64, 96, dtype=torch.float64)
    before, after = net(images), merge_branches(net)(images)
    for path in ("drivable", "lane"):
        torch.testing.assert_close(after[path], before[path], rtol=0, atol=1e-9)
    for path in ("boxes", "logits"):
        torch.testing.assert_close(
            after["detection"][path], before["detection"][path], rtol=0, atol=1e-9
        )


def test_merging_leaves_the_net_alone() -> None:
    net = tiny_net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    merge_branches(net)
    after = net.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert net.training


def test_merged_nets_have_no_branches_and_no_norms_after_convs() -> None:
    merged = merge_branches(tiny_net())
    assert not any(isinstance(module, RepConv) for module in merged.modules())
    left = [name for name, m in merged.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert all("_gates." in name or name.startswith("segmentation") for name in left)


def test_merging_twice_is_merging_once() -> None:
    once = merge_branches(tiny_net())
    twice = merge_branches(once)
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(once(images)["lane"], twice(images)["lane"])
