from __future__ import annotations

import pytest
import torch

from taskprune.driving.nets.denoising import (
    DenoisingQueries,
    denoising_mask,
    denoising_queries,
)

BOXES = (
    torch.tensor([[0.5, 0.5, 0.2, 0.1], [0.3, 0.6, 0.1, 0.2]]),
    torch.zeros(0, 4),
    torch.tensor([[0.4, 0.4, 0.2, 0.2]]),
)
LABELS = (torch.tensor([1, 2]), torch.zeros(0, dtype=torch.long), torch.tensor([0]))


def noised(n_queries: int = 50, *, num_classes: int = 3) -> DenoisingQueries:
    torch.manual_seed(0)
    queries = denoising_queries(BOXES, LABELS, n_queries=n_queries, num_classes=num_classes)
    assert queries is not None
    return queries


def corner_shift(queries: DenoisingQueries, image: int, query: int, target: int) -> torch.Tensor:
    """Distance of each corner coordinate from the true one, in box sizes."""
    true, found = torch.cat(BOXES)[target], queries.boxes[image, query]
    low = (found[:2] - found[2:] / 2 - (true[:2] - true[2:] / 2)).abs() / true[2:]
    high = (found[:2] + found[2:] / 2 - (true[:2] + true[2:] / 2)).abs() / true[2:]
    return torch.cat((low, high))


def test_every_box_has_a_positive_query_in_every_copy() -> None:
    queries = noised(50)
    assert queries.boxes.shape == (3, 2 * 25 * 2, 4)
    assert queries.target_index.bincount().tolist() == [25, 25, 25]
    assert set(queries.batch_index.tolist()) == {0, 2}
    assert queries.real[queries.batch_index, queries.query_index].all()


def test_positive_queries_move_each_corner_by_less_than_half_a_box() -> None:
    queries = noised()
    pairs = zip(queries.batch_index, queries.query_index, queries.target_index, strict=True)
    shifts = torch.stack([corner_shift(queries, int(b), int(q), int(t)) for b, q, t in pairs])
    assert shifts.max() <= 0.5 + 1e-5
    assert shifts.max() > 0.4


def test_negative_queries_move_each_corner_by_more_than_half_a_box() -> None:
    queries = noised()
    negative = queries.query_index + 2  # per copy: two positives, then their negatives
    pairs = zip(queries.batch_index, negative, queries.target_index, strict=True)
    shifts = torch.stack([corner_shift(queries, int(b), int(q), int(t)) for b, q, t in pairs])
    assert shifts.min() >= 0.5 - 1e-5
    assert shifts.max() <= 1.0 + 1e-5


def test_labels_are_mostly_right() -> None:
    queries = noised(400)
    right = (
        queries.labels[queries.batch_index, queries.query_index]
        == torch.cat(LABELS)[queries.target_index]
    )
    assert 0.75 < right.float().mean() < 0.95


def test_noised_boxes_stay_boxes_in_the_image() -> None:
    boxes = noised(500).boxes
    assert (boxes[..., 2:] >= 0).all()
    assert (boxes[..., :2] - boxes[..., 2:] / 2 >= -1e-6).all()
    assert (boxes[..., :2] + boxes[..., 2:] / 2 <= 1 + 1e-6).all()


def test_more_boxes_than_queries_still_give_one_copy() -> None:
    assert noised(1).boxes.shape == (3, 4, 4)


@pytest.mark.parametrize("images", [0, 2])
def test_no_boxes_give_no_queries(images: int) -> None:
    boxes = tuple(torch.zeros(0, 4) for _ in range(images))
    labels = tuple(torch.zeros(0, dtype=torch.long) for _ in range(images))
    assert denoising_queries(boxes, labels, n_queries=10, num_classes=1) is None


def test_mask_separates_copies_and_hides_them_from_ordinary_queries() -> None:
    mask = denoising_mask(torch.tensor([0, 0, 1]), 2)
    expected = [
        [1, 1, 0, 1, 1],
        [1, 1, 0, 1, 1],
        [0, 0, 1, 1, 1],
        [0, 0, 0, 1, 1],
        [0, 0, 0, 1, 1],
    ]
    assert mask.int().tolist() == expected
