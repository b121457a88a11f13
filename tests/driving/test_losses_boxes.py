from __future__ import annotations

import pytest
import torch

from taskprune.driving.losses.boxes import corners, iou_and_giou


def test_corners_of_a_centred_box() -> None:
    found = corners(torch.tensor([0.5, 0.4, 0.2, 0.6]))
    torch.testing.assert_close(found, torch.tensor([0.4, 0.1, 0.6, 0.7]))


@pytest.mark.parametrize(
    ("first", "second", "iou", "giou"),
    [
        ((0.0, 0.0, 2.0, 2.0), (0.0, 0.0, 2.0, 2.0), 1.0, 1.0),
        ((0.0, 0.0, 2.0, 2.0), (1.0, 1.0, 3.0, 3.0), 1 / 7, 1 / 7 - 2 / 9),
        ((0.0, 0.0, 1.0, 1.0), (2.0, 0.0, 3.0, 1.0), 0.0, -1 / 3),
        ((0.0, 0.0, 4.0, 4.0), (1.0, 1.0, 3.0, 3.0), 0.25, 0.25),
        ((0.0, 0.0, 1.0, 1.0), (1.0, 0.0, 2.0, 1.0), 0.0, 0.0),
    ],
    ids=["same", "corner", "apart", "inside", "touching"],
)
def test_overlaps_equal_hand_computed_values(
    first: tuple[float, ...], second: tuple[float, ...], iou: float, giou: float
) -> None:
    found = iou_and_giou(torch.tensor(first), torch.tensor(second))
    torch.testing.assert_close(found, (torch.tensor(iou), torch.tensor(giou)))


def test_boxes_without_area_have_finite_overlaps_and_gradients() -> None:
    point = torch.tensor([0.5, 0.5, 0.5, 0.5], requires_grad=True)
    iou, giou = iou_and_giou(point, point.detach().clone())
    (gradient,) = torch.autograd.grad(iou + giou, point)
    assert torch.isfinite(torch.stack((iou, giou))).all()
    assert torch.isfinite(gradient).all()
