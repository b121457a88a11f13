"""RT-DETR decoder: the best cells of the encoder become queries and are refined to boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskprune.driving.batch import DrivingBatch
from taskprune.driving.nets.attention import MultiHeadAttention
from taskprune.driving.nets.config import STRIDES, NetConfig
from taskprune.driving.nets.deformable import DeformableAttention
from taskprune.driving.nets.denoising import DenoisingQueries, denoising_mask, denoising_queries

ANCHOR_SIZE = 0.05
"""Side of an anchor on the finest level as a part of the image; doubles level by level."""

LOGIT_EPS = 1e-3
SCORE_PRIOR = 0.01


class MLP(nn.Module):
    """Linear layers with ReLU between; the last one starts at zero if asked to."""

    def __init__(self, widths: Sequence[int], *, zero_last: bool = False) -> None:
        super().__init__()
        layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
        for layer in layers:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        if zero_last:
            nn.init.zeros_(layers[-1].weight)
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        y: Tensor = self.layers[-1](x)
        return y


class DecoderLayer(nn.Module):
    """Self-attention, deformable cross-attention and feed-forward part, each post-norm."""

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        hidden = config.hidden
        self.attention = MultiHeadAttention(hidden, config.attention_heads)
        self.norm1 = nn.LayerNorm(hidden)
        self.cross = DeformableAttention(
            hidden,
            num_heads=config.attention_heads,
            num_levels=len(STRIDES),
            num_points=config.points,
        )
        self.norm2 = nn.LayerNorm(hidden)
        self.expand = nn.Linear(hidden, config.decoder_ffn)
        self.contract = nn.Linear(config.decoder_ffn, hidden)
        self.norm3 = nn.LayerNorm(hidden)
        for layer in (self.expand, self.contract):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        reference: Tensor,
        memory: Tensor,
        sizes: Sequence[tuple[int, int]],
        mask: Tensor | None,
    ) -> Tensor:
        placed = x + position
        x = self.norm1(x + self.attention(placed, placed, x, mask=mask))
        x = self.norm2(x + self.cross(x + position, reference, memory, sizes))
        y: Tensor = self.norm3(x + self.contract(F.relu(self.expand(x))))
        return y


class DetectionDecoder(nn.Module):
    """Boxes and class scores from three maps; no anchors to tune and no suppression afterwards.

    Shape: maps ``[B, C, H_i, W_i]`` in; boxes ``[B, Q, 4]`` (cx, cy, w, h in 0..1) and logits
    ``[B, Q, num_classes]`` out. Images with fewer cells than queries give fewer queries.

    References:
        Zhao et al., *DETRs Beat YOLOs on Real-time Object Detection*, CVPR 2024.
    """

    def __init__(self, config: NetConfig, *, num_classes: int) -> None:
        super().__init__()
        hidden = config.hidden
        self.num_queries = config.queries
        self.num_denoising = config.denoising
        self.num_classes = num_classes
        self.enc_output = nn.Linear(hidden, hidden)
        self.enc_norm = nn.LayerNorm(hidden)
        self.enc_score = _score_head(hidden, num_classes)
        self.enc_box = MLP((hidden, hidden, hidden, 4), zero_last=True)
        self.class_embedding = nn.Embedding(num_classes, hidden)
        self.query_position = MLP((4, 2 * hidden, hidden))
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.score_heads = nn.ModuleList(_score_head(hidden, num_classes) for _ in self.layers)
        self.box_heads = nn.ModuleList(
            MLP((hidden, hidden, hidden, 4), zero_last=True) for _ in self.layers
        )
        nn.init.xavier_uniform_(self.enc_output.weight)
        nn.init.zeros_(self.enc_output.bias)

    def forward(self, maps: Sequence[Tensor], targets: DrivingBatch | None) -> dict[str, Any]:
        sizes = [(x.shape[2], x.shape[3]) for x in maps]
        memory = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)  # [B, L, C]
        content, reference, proposed = self._select(memory, sizes)
        if not self.training:
            return self._refine(content, reference, memory, sizes, mask=None)[-1]

        # The queries' start is trained by the encoder loss alone, not through the decoder.
        content, reference, mask = content.detach(), reference.detach(), None
        noised = self._noised(targets)
        n_noised = 0
        if noised is not None:
            n_noised = noised.boxes.shape[1]
            mask = denoising_mask(noised.copy_number, content.shape[1])
            embedded = self.class_embedding(noised.labels) * noised.real.unsqueeze(-1)
            content = torch.cat((embedded.to(content.dtype), content), dim=1)
            start = noised.boxes.to(reference.dtype).logit(LOGIT_EPS)
            reference = torch.cat((start, reference), dim=1)
        layers = self._refine(content, reference, memory, sizes, mask=mask)
        ordinary = [{k: v[:, n_noised:] for k, v in layer.items()} for layer in layers]
        detection: dict[str, Any] = {
            **ordinary[-1],
            "auxiliary": ordinary[:-1],
            "encoder": proposed,
        }
        if noised is not None:
            detection["denoising"] = {
                "layers": [{k: v[:, :n_noised] for k, v in layer.items()} for layer in layers],
                "batch_index": noised.batch_index,
                "query_index": noised.query_index,
                "target_index": noised.target_index,
            }
        return detection

    def _select(
        self, memory: Tensor, sizes: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Take the cells with the best scores: content, box logits, and both heads' outputs."""
        memory = self.enc_norm(self.enc_output(memory))
        scores = self.enc_score(memory)
        n_queries = min(self.num_queries, memory.shape[1])
        best = scores.amax(dim=2).topk(n_queries, dim=1).indices.unsqueeze(-1)  # [B, Q, 1]
        content = memory.gather(1, best.expand(-1, -1, memory.shape[2]))
        anchors = _anchors(sizes, like=memory).expand(memory.shape[0], -1, -1)
        reference = self.enc_box(content) + anchors.gather(1, best.expand(-1, -1, 4))
        logits = scores.gather(1, best.expand(-1, -1, scores.shape[2]))
        return content, reference, {"boxes": reference.sigmoid(), "logits": logits}

    def _noised(self, targets: DrivingBatch | None) -> DenoisingQueries | None:
        if targets is None or targets.boxes is None or targets.labels is None:
            return None
        return denoising_queries(
            targets.boxes,
            targets.labels,
            n_queries=self.num_denoising,
            num_classes=self.num_classes,
        )

    def _refine(
        self,
        content: Tensor,
        reference: Tensor,
        memory: Tensor,
        sizes: Sequence[tuple[int, int]],
        *,
        mask: Tensor | None,
    ) -> list[dict[str, Tensor]]:
        """Run the layers; ``reference`` holds box logits. In eval mode only the last is scored.

        In training each layer starts from a detached reference while its box is also trained
        through the next layer's (look forward twice, Zhang et al., DINO, section 3.5).
        """
        outputs = []
        carried = reference
        last = len(self.layers) - 1
        for number, layer in enumerate(self.layers):
            box = reference.sigmoid()
            position = self.query_position(box.to(content.dtype))
            content = layer(content, position, box, memory, sizes, mask)
            change = self.box_heads[number](content)
            if self.training or number == last:
                logits = self.score_heads[number](content)
                outputs.append({"boxes": (carried + change).sigmoid(), "logits": logits})
            carried = reference + change
            reference = carried.detach() if self.training else carried
        return outputs


def _score_head(hidden: int, num_classes: int) -> nn.Linear:
    """A linear layer whose first answer is ``SCORE_PRIOR``: nearly all queries are background."""
    head = nn.Linear(hidden, num_classes)
    nn.init.constant_(head.bias, -math.log((1 - SCORE_PRIOR) / SCORE_PRIOR))
    return head


def _anchors(sizes: Sequence[tuple[int, int]], *, like: Tensor) -> Tensor:
    """Return logits of one box a cell, centred in it. Shape ``[1, L, 4]``, at least float32."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    levels = []
    for number, (height, width) in enumerate(sizes):
        y = (torch.arange(height, dtype=dtype, device=like.device) + 0.5) / height
        x = (torch.arange(width, dtype=dtype, device=like.device) + 0.5) / width
        centre_y, centre_x = torch.meshgrid(y, x, indexing="ij")
        side = torch.full_like(centre_x, ANCHOR_SIZE * 2.0**number)
        levels.append(torch.stack((centre_x, centre_y, side, side), dim=-1).flatten(0, 1))
    return torch.cat(levels).unsqueeze(0).logit(LOGIT_EPS)
