"""Contrastive denoising: noised ground-truth boxes as additional queries in training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

BOX_NOISE = 1.0
LABEL_NOISE = 0.25
"""Chance that a noised query carries a label drawn at random."""


@dataclass(frozen=True, eq=False)
class DenoisingQueries:
    """Noised boxes and which of them the loss wants back.

    ``R = 2 * copies * n_max`` queries an image: per copy, first a positive query for every box
    (noise below half the box), then a negative one (noise above that), padded to ``n_max`` boxes.

    Attributes:
        labels: Class numbers after label noise. Shape ``[B, R]``, int64.
        real: False at padding. Shape ``[B, R]``, bool.
        boxes: Noised boxes. Shape ``[B, R, 4]``, cx, cy, w, h in 0..1.
        copy_number: Which copy a query belongs to. Shape ``[R]``, int64.
        batch_index: Image of each positive query. Shape ``[P]``, int64.
        query_index: Place of each positive query in ``R``. Shape ``[P]``, int64.
        target_index: The box it should return, counted through the batch. Shape ``[P]``, int64.
    """

    labels: Tensor
    real: Tensor
    boxes: Tensor
    copy_number: Tensor
    batch_index: Tensor
    query_index: Tensor
    target_index: Tensor


def denoising_queries(
    boxes: tuple[Tensor, ...], labels: tuple[Tensor, ...], *, n_queries: int, num_classes: int
) -> DenoisingQueries | None:
    """Noise the boxes of a batch; ``None`` if no image has a box.

    Args:
        boxes: Per image ``[n_i, 4]``, cx, cy, w, h in 0..1.
        labels: Per image ``[n_i]``.
        n_queries: About how many positive queries; as many whole copies as fit, at least one.
        num_classes: Labels run from 0 to ``num_classes - 1``.

    References:
        Zhang et al., *DINO*, ICLR 2023, section 3.3.
    """
    counts = [len(b) for b in boxes]
    n_max = max(counts, default=0)
    if n_max == 0:
        return None
    copies = max(1, n_queries // n_max)
    device = boxes[0].device

    box = pad_sequence(list(boxes), batch_first=True).float()  # [B, n_max, 4]
    label = pad_sequence(list(labels), batch_first=True)  # [B, n_max]
    count = torch.tensor(counts, device=device)
    real = torch.arange(n_max, device=device) < count[:, None]  # [B, n_max]
    # Sizes are known beforehand: no search for non-zero entries, which would wait for a GPU.
    target = torch.arange(sum(counts), device=device)
    image = torch.repeat_interleave(count, output_size=len(target))
    place = target - (count.cumsum(0) - count)[image]
    first_of_copy = torch.arange(copies, device=device) * (2 * n_max)

    shape = (len(boxes), copies, 2, n_max)
    noised_label = _noised_labels(label[:, None, None].expand(shape), num_classes=num_classes)
    negative = torch.tensor([0.0, 1.0], device=device).view(1, 1, 2, 1, 1)
    noised = _noised_boxes(box[:, None, None].expand(*shape, 4), offset=negative)

    return DenoisingQueries(
        labels=noised_label.flatten(1),
        real=real[:, None, None].expand(shape).flatten(1),
        boxes=noised.flatten(1, 3),
        copy_number=torch.arange(copies, device=device).repeat_interleave(2 * n_max),
        batch_index=image.repeat(copies),
        query_index=(first_of_copy[:, None] + place).flatten(),
        target_index=target.repeat(copies),
    )


def denoising_mask(copy_number: Tensor, n_queries: int) -> Tensor:
    """Return who may look at whom, ``[R + Q, R + Q]`` bool.

    A noised query sees its own copy and the ordinary queries; ordinary queries see only each
    other, since noised boxes tell the answer.
    """
    group = torch.cat((copy_number, copy_number.new_full((n_queries,), -1)))
    return (group[:, None] == group[None, :]) | (group[None, :] == -1)


def _noised_labels(labels: Tensor, *, num_classes: int) -> Tensor:
    random = torch.randint_like(labels, num_classes)
    return torch.where(torch.rand(labels.shape, device=labels.device) < LABEL_NOISE, random, labels)


def _noised_boxes(boxes: Tensor, *, offset: Tensor) -> Tensor:
    """Move both corners by ``(u + offset) / 2`` of the box size, u uniform in 0..1, either way.

    With the offset 1 of negative boxes, two corners moving inwards would pass each other and may
    end as the true box again; there the second corner moves outwards instead.
    """
    centre, size = boxes[..., :2], boxes[..., 2:]
    reach = (torch.rand((2, *size.shape), device=boxes.device) + offset) * size * (BOX_NOISE / 2)
    outwards = torch.rand((2, *size.shape), device=boxes.device) < 0.5
    outwards[1] |= ~outwards[0] & (offset > 0)
    shift = torch.where(outwards, reach, -reach)
    low = (centre - size / 2 - shift[0]).clamp(0.0, 1.0)
    high = (centre + size / 2 + shift[1]).clamp(0.0, 1.0)
    return torch.cat(((low + high) / 2, high - low), dim=-1)
