from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch

from taskprune.driving.losses.matching import match, matching_cost
from taskprune.errors import LossError


def test_cost_equals_hand_computed_value() -> None:
    p = 0.8
    logit = math.log(p / (1 - p))
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.2]]).view(1, 1, 1, 4)
    targets = torch.tensor([[0.5, 0.5, 0.2, 0.4]]).view(1, 1, 4)
    cost = matching_cost(
        torch.tensor([[[[logit]]]]), boxes, torch.zeros(1, 1, dtype=torch.long), targets
    )
    as_object = 0.25 * (1 - p) ** 2 * -math.log(p)
    as_other = 0.75 * p**2 * -math.log(1 - p)
    expected = 2 * (as_object - as_other) + 5 * 0.2 - 2 * 0.5
    assert cost.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_matching_is_as_cheap_as_the_best_of_all_assignments(seed: int) -> None:
    torch.manual_seed(seed)
    counts, n_queries = (3, 0, 2, 5), 4
    logits, boxes = torch.randn(2, 4, n_queries, 3), torch.rand(2, 4, n_queries, 4)
    labels = tuple(torch.randint(3, (n,)) for n in counts)
    targets = tuple(torch.rand(n, 4) for n in counts)
    pairs = match(logits, boxes, labels, targets)
    start = 0
    for image, count in enumerate(counts):
        if count == 0:
            assert not (pairs.image == image).any()
            continue
        one = slice(image, image + 1)
        cost = matching_cost(
            logits[:, one], boxes[:, one], labels[image][None], targets[image][None]
        )[:, 0]
        for layer in range(2):
            here = (pairs.image == image) & (pairs.layer == layer)
            query, target = pairs.query[here], pairs.target[here] - start
            assert len(query) == min(count, n_queries)
            assert len(set(query.tolist())) == len(set(target.tolist())) == len(query)
            table = cost[layer] if count <= n_queries else cost[layer].T
            columns = range(table.shape[1])
            best = min(
                sum(float(table[row, column]) for column, row in zip(columns, rows, strict=True))
                for rows in permutations(range(table.shape[0]), table.shape[1])
            )
            assert cost[layer][query, target].sum().item() == pytest.approx(best, abs=1e-4)
        start += count


def test_no_boxes_match_nothing() -> None:
    none = torch.zeros(0, dtype=torch.long)
    pairs = match(
        torch.randn(1, 2, 3, 1), torch.rand(1, 2, 3, 4), (none, none), (torch.zeros(0, 4),) * 2
    )
    assert pairs.layer.numel() == pairs.target.numel() == 0


def test_predictions_that_are_not_finite_are_refused() -> None:
    boxes = torch.rand(1, 1, 3, 4)
    boxes[0, 0, 1] = math.nan
    with pytest.raises(LossError, match="NaN"):
        match(
            torch.randn(1, 1, 3, 1), boxes, (torch.zeros(1, dtype=torch.long),), (torch.rand(1, 4),)
        )
