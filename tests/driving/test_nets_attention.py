from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskprune.driving.nets.attention import MultiHeadAttention, SinePosition
from taskprune.driving.nets.deformable import DeformableAttention


def textbook_position(height: int, width: int, channels: int) -> Tensor:
    """[sin x w, cos x w, sin y w, cos y w], w_i = 10000^(-i / (C/4)), cell by cell."""
    quarter = channels // 4
    omega = [10_000 ** (-i / quarter) for i in range(quarter)]
    rows = []
    for y in range(height):
        for x in range(width):
            code = [math.sin(x * w) for w in omega] + [math.cos(x * w) for w in omega]
            code += [math.sin(y * w) for w in omega] + [math.cos(y * w) for w in omega]
            rows.append(code)
    return torch.tensor(rows)


@pytest.mark.parametrize(("height", "width"), [(3, 5), (5, 3), (1, 7), (20, 20)])
def test_positions_equal_the_textbook_code(height: int, width: int) -> None:
    found = SinePosition(16)(height, width)
    torch.testing.assert_close(found, textbook_position(height, width, 16), rtol=0, atol=1e-5)


def test_removed_channels_leave_the_other_positions_as_they_were() -> None:
    position, keep = SinePosition(16), torch.tensor([0, 3, 4, 9, 15])
    before = position(4, 6)
    for name in ("frequency_x", "frequency_y", "phase"):
        setattr(position, name, getattr(position, name)[keep])
    assert torch.equal(position(4, 6), before[:, keep])


@pytest.mark.parametrize("masked", [False, True])
def test_attention_equals_the_packed_module(masked: bool) -> None:
    packed = nn.MultiheadAttention(12, 3, batch_first=True)
    ours = MultiHeadAttention(12, 3)
    with torch.no_grad():
        nn.init.normal_(packed.in_proj_bias)
        nn.init.normal_(packed.out_proj.bias)
        roles = (ours.query, ours.key, ours.value)
        for layer, weight, bias in zip(
            roles, packed.in_proj_weight.chunk(3), packed.in_proj_bias.chunk(3), strict=True
        ):
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
        ours.out.load_state_dict(packed.out_proj.state_dict())
    query, key, value = torch.randn(2, 5, 12), torch.randn(2, 7, 12), torch.randn(2, 7, 12)
    may_look = (torch.arange(5)[:, None] + torch.arange(7)) % 3 > 0 if masked else None
    forbidden = None if may_look is None else ~may_look
    expected, _ = packed(query, key, value, attn_mask=forbidden)
    torch.testing.assert_close(ours(query, key, value, mask=may_look), expected)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in packed.parameters())


def bilinear(image: Tensor, x: float, y: float) -> Tensor:
    """Sample ``[C, H, W]`` at (x, y) in 0..1, zero outside, cell centres at half cells."""
    height, width = image.shape[1:]
    column, row = x * width - 0.5, y * height - 0.5
    value = torch.zeros(image.shape[0])
    for r in (math.floor(row), math.floor(row) + 1):
        for c in (math.floor(column), math.floor(column) + 1):
            if 0 <= r < height and 0 <= c < width:
                value += (1 - abs(row - r)) * (1 - abs(column - c)) * image[:, r, c]
    return value


def test_deformable_attention_equals_its_definition() -> None:
    torch.manual_seed(0)
    heads, points, sizes, channels = 2, 3, [(4, 6), (2, 3)], 8
    module = DeformableAttention(channels, num_heads=heads, num_levels=2, num_points=points)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    query, memory = torch.randn(2, 5, channels), torch.randn(2, 30, channels)
    boxes = torch.rand(2, 5, 4)
    found = module(query, boxes, memory, sizes)

    offsets = module.offsets(query).view(2, 5, heads, 2, points, 2)
    weights = module.weights(query).view(2, 5, heads, 2 * points).softmax(-1)
    value = module.value(memory).view(2, 30, heads, channels // heads)
    read = torch.zeros(2, 5, heads, channels // heads)
    for b in range(2):
        for q in range(5):
            for h in range(heads):
                for number, (start, (rows, columns)) in enumerate(zip((0, 24), sizes, strict=True)):
                    image = value[b, start : start + rows * columns, h].T.view(-1, rows, columns)
                    for p in range(points):
                        place = boxes[b, q, :2] + (
                            offsets[b, q, h, number, p] * boxes[b, q, 2:] / (2 * points)
                        )
                        weight = weights[b, q, h, number * points + p]
                        read[b, q, h] += weight * bilinear(image, *place.tolist())
    torch.testing.assert_close(found, module.out(read.flatten(2)), rtol=1e-4, atol=1e-5)


def test_sampling_starts_as_a_star_around_the_box() -> None:
    module = DeformableAttention(16, num_heads=4, num_levels=3, num_points=2)
    star = module.offsets.bias.view(4, 3, 2, 2)
    expected = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    torch.testing.assert_close(star[:, 0, 0], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(star[:, 2, 1], 2 * expected, rtol=0, atol=1e-6)
    assert F.softmax(module.weights(torch.randn(1, 1, 16)), dim=-1).std() == 0
