from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from nets_samples import randomise_norms
from torch import nn

from taskprune.driving.nets.gate import (
    GATE_RANGE,
    GatedAdapter,
    GateMixing,
    PooledBatchNorm2d,
)


def test_mixing_equals_a_grouped_conv_over_interleaved_channels() -> None:
    mixing = GateMixing(6).eval()
    shared, task = torch.randn(2, 6, 5, 7), torch.randn(2, 6, 5, 7)
    kernel = torch.cat((mixing.read_shared.weight, mixing.read_task.weight), dim=1)
    pairs = torch.stack((shared, task), dim=2).flatten(1, 2)
    grouped = F.conv2d(pairs, kernel, mixing.read_shared.bias, padding=1, groups=6)
    torch.testing.assert_close(mixing.read_shared(shared) + mixing.read_task(task), grouped)


@pytest.mark.parametrize("channel", [0, 3])
def test_a_hidden_channel_of_the_gate_is_cut_alone(channel: int) -> None:
    """Without channel i of both maps, and of every layer in between, the others are unmoved."""
    gate = GatedAdapter(8).eval()
    randomise_norms(gate)
    keep = torch.tensor([i for i in range(8) if i != channel])
    shared = torch.randn(2, 8, 6, 4)
    shared[:, channel] = 0.0
    with torch.no_grad():
        adapter = gate.adapter
        for unit in (adapter.reduce, adapter.expand):
            unit.conv.weight[channel] = 0.0
            assert isinstance(unit.norm, nn.BatchNorm2d)
            unit.norm.weight[channel] = unit.norm.bias[channel] = 0.0
            assert unit.norm.running_mean is not None
            unit.norm.running_mean[channel] = 0.0
    before = gate(shared)
    assert before[:, channel].abs().max() == 0
    with torch.no_grad():  # whatever the gates compute for that channel meets a zero
        gate.mixing.read_task.weight[channel] += 1.0
        gate.spatial_gate.reduce.bias[channel] += 1.0  # type: ignore[index]
    assert torch.equal(gate(shared)[:, keep], before[:, keep])


def test_gates_keep_part_of_both_features() -> None:
    gate = GatedAdapter(8).eval()
    randomise_norms(gate)
    shared = 10 * torch.randn(2, 8, 6, 4)
    task = gate.adapter(shared)
    part = (gate(shared) - shared) / (task - shared)
    low, high = GATE_RANGE
    assert part.min() >= low - 1e-3
    assert part.max() <= high + 1e-3


def test_pooled_norm_is_batch_norm_for_two_images() -> None:
    ours, plain = PooledBatchNorm2d(5), nn.BatchNorm2d(5)
    x = torch.randn(2, 5, 1, 1)
    assert torch.equal(ours(x), plain(x))
    assert torch.equal(ours.running_var, plain.running_var)  # type: ignore[arg-type]


def test_pooled_norm_uses_running_statistics_for_one_image() -> None:
    norm = PooledBatchNorm2d(5)
    randomise_norms(norm)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    x = torch.randn(1, 5, 1, 1)
    in_training = norm(x)
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
    assert torch.equal(in_training, norm.eval()(x))
