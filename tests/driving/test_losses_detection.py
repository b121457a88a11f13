from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from nets_samples import scenes, tiny_net
from torch import Tensor

from taskprune.driving.batch import DrivingBatch
from taskprune.driving.losses import detection_loss
from taskprune.driving.losses.detection import varifocal_loss


def batch_of(*boxes: Tensor) -> DrivingBatch:
    labels = tuple(torch.zeros(len(b), dtype=torch.long) for b in boxes)
    return DrivingBatch(torch.zeros(len(boxes), 3, 32, 32), tuple(boxes), labels)


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_varifocal_loss_equals_hand_computed_values() -> None:
    p, q = 0.3, 0.6
    found = varifocal_loss(
        torch.full((2,), logit(p)), torch.tensor([q, 0.0]), is_object=torch.tensor([1.0, 0.0])
    )
    cross_entropy = -(q * math.log(p) + (1 - q) * math.log(1 - p))
    expected = torch.tensor([q * cross_entropy, 0.75 * p**2 * -math.log(1 - p)])
    torch.testing.assert_close(found, expected)


def test_loss_of_eval_outputs_equals_hand_computed_value() -> None:
    # Query 0 lies half on the box (IoU 1/2, hull = union), query 1 is background.
    outputs = {
        "detection": {
            "boxes": torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.1, 0.1, 0.1, 0.1]]]),
            "logits": torch.tensor([[[logit(0.8)], [logit(0.1)]]]),
        }
    }
    loss = detection_loss(outputs, batch_of(torch.tensor([[0.5, 0.5, 0.2, 0.4]])))
    assert loss is not None
    varifocal = 0.5 * -(0.5 * math.log(0.8) + 0.5 * math.log(0.2))
    varifocal += 0.75 * 0.1**2 * -math.log(0.9)
    assert loss.item() == pytest.approx(varifocal + 5 * 0.2 + 2 * (1 - 0.5), rel=1e-5)


def test_layers_add_up() -> None:
    torch.manual_seed(0)
    batch = batch_of(torch.rand(2, 4), torch.rand(1, 4))
    layers = [{"boxes": torch.rand(2, 5, 4), "logits": torch.randn(2, 5, 1)} for _ in range(3)]
    outputs = {"detection": {**layers[2], "auxiliary": layers[:1], "encoder": layers[1]}}
    together = detection_loss(outputs, batch)
    alone = [detection_loss({"detection": layer}, batch) for layer in layers]
    assert together is not None
    expected = torch.stack([loss for loss in alone if loss is not None]).sum()
    torch.testing.assert_close(together, expected)


def test_denoising_queries_answer_for_their_own_box() -> None:
    box = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.2, 0.2, 0.1, 0.1]])
    background = {"boxes": torch.rand(1, 3, 4), "logits": torch.full((1, 3, 1), -40.0)}

    def loss_with(noised_boxes: Tensor) -> Tensor:
        layer = {"boxes": noised_boxes[None], "logits": torch.full((1, 2, 1), 40.0)}
        index = torch.tensor([0, 1])
        outputs: dict[str, Any] = {
            "detection": {
                **background,
                "denoising": {
                    "layers": [layer, layer],
                    "batch_index": torch.zeros(2, dtype=torch.long),
                    "query_index": index,
                    "target_index": index,
                },
            }
        }
        loss = detection_loss(outputs, batch_of(box))
        assert loss is not None
        return loss

    ordinary = detection_loss({"detection": background}, batch_of(box))
    assert ordinary is not None
    torch.testing.assert_close(loss_with(box), ordinary, rtol=1e-5, atol=1e-4)
    # The other way round both are wrong, although a matching would pair them without loss.
    assert loss_with(box.flip(0)) > ordinary + 1


def test_loss_does_not_depend_on_the_order_of_boxes_and_queries() -> None:
    torch.manual_seed(0)
    box, found, logits = torch.rand(3, 4), torch.rand(1, 6, 4), torch.randn(1, 6, 1)
    order = torch.randperm(6)
    first = detection_loss({"detection": {"boxes": found, "logits": logits}}, batch_of(box))
    second = detection_loss(
        {"detection": {"boxes": found[:, order], "logits": logits[:, order]}},
        batch_of(box.flip(0)),
    )
    assert first is not None
    torch.testing.assert_close(first, second)


def test_images_without_boxes_have_a_finite_loss_and_gradient() -> None:
    net, batch = tiny_net(), scenes((0, 0))
    loss = detection_loss(net(batch.images, batch), batch)
    assert loss is not None
    loss.backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(loss)
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("field", ["boxes", "labels"])
def test_a_batch_without_labels_has_no_loss(field: str) -> None:
    full = batch_of(torch.rand(2, 4))
    batch = replace(full, boxes=None) if field == "boxes" else replace(full, labels=None)
    assert detection_loss({"detection": {}}, batch) is None


def test_half_precision_outputs_are_scored_in_float32() -> None:
    net, batch = tiny_net(), scenes()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = detection_loss(net(batch.images, batch), batch)
    assert loss is not None
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
