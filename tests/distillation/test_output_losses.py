from __future__ import annotations

from functools import partial
from itertools import permutations

import pytest
import torch
from distill_toys import make_batches, make_net, make_tasks
from torch import Tensor
from torch.nn import functional as F

from taskprune.distillation import (
    DistillSettings,
    OnOutputs,
    distill,
    logit_kl,
    query_matching,
)
from taskprune.distillation.losses.query_matching import generalised_iou
from taskprune.errors import InputError


def test_logit_kl_equals_its_equation() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 5, 3).double(), torch.randn(2, 5, 3).double()
    p, q = (teacher / 3).softmax(1), (student / 3).softmax(1)
    expected = 9 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(logit_kl(student, teacher, temperature=3.0), expected)


def test_logit_kl_of_yes_or_no_answers_is_that_of_two_classes() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 6).double(), torch.randn(2, 6).double()
    found = logit_kl(student, teacher, temperature=2.0, dim=None)
    both = [torch.stack([x, torch.zeros_like(x)], dim=1) for x in (student, teacher)]
    torch.testing.assert_close(found, logit_kl(*both, temperature=2.0))


@pytest.mark.parametrize("dim", [1, None])
def test_logit_kl_of_sure_answers_stays_finite(dim: int | None) -> None:
    student = torch.tensor([[300.0, -300.0]], requires_grad=True)
    loss = logit_kl(student, -student.detach(), temperature=1.0, dim=dim)
    loss.backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    assert loss.isfinite()
    assert student.grad.isfinite().all()


def test_logit_kl_refuses_what_it_cannot_compare() -> None:
    logits = torch.zeros(2, 3)
    with pytest.raises(InputError, match="temperature"):
        logit_kl(logits, logits, temperature=0.0)
    with pytest.raises(InputError, match=r"\(2, 3\) \(student\) and \(2, 4\)"):
        logit_kl(logits, torch.zeros(2, 4))
    with pytest.raises(InputError, match="dim=2"):
        logit_kl(logits, logits, dim=2)


def queries(seed: int, n: int, n_classes: int = 3, batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(batch, n, n_classes, generator=generator).double()
    boxes = torch.rand(batch, n, 4, generator=generator).double()
    return logits, torch.cat([boxes[..., :2], 0.05 + 0.3 * boxes[..., 2:]], dim=-1)


def pair_cost(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
    """Return the cost of each query with the one at its place; ``[Q]`` for one image."""
    chance = teacher[0].sigmoid()
    classes = F.binary_cross_entropy_with_logits(student[0], chance, reduction="none").sum(-1)
    overlap = generalised_iou(student[1], teacher[1])
    return 2 * classes + 5 * (student[1] - teacher[1]).abs().sum(-1) + 2 * (1 - overlap)


def test_query_matching_equals_brute_force() -> None:
    student, teacher = queries(0, 5), queries(1, 4)
    total, weight = 0.0, 0.0
    for image in range(2):
        target = (teacher[0][image], teacher[1][image])
        costs = []
        for order in permutations(range(5), 4):
            index = torch.tensor(order)
            costs.append(pair_cost((student[0][image, index], student[1][image, index]), target))
        best = min(costs, key=lambda cost: cost.sum().item())
        p = target[0].sigmoid().amax(-1)
        total += (p * best).sum().item()
        weight += p.sum().item()
    assert query_matching(student, teacher).item() == pytest.approx(total / weight)


def test_the_order_of_queries_does_not_matter() -> None:
    student, teacher = queries(0, 6), queries(1, 6)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(2))
    shuffled = (student[0][:, order], student[1][:, order])
    torch.testing.assert_close(query_matching(shuffled, teacher), query_matching(student, teacher))


def test_equal_queries_are_where_the_gradient_ends() -> None:
    logits, boxes = queries(0, 4)
    logits.requires_grad_()
    query_matching((logits, boxes), (logits.detach(), boxes)).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits))


def test_boxes_without_area_stay_finite() -> None:
    logits = torch.zeros(1, 2, 3)
    boxes = torch.zeros(1, 2, 4).requires_grad_()
    loss = query_matching((logits, boxes), (logits, torch.zeros(1, 2, 4)))
    loss.backward()  # type: ignore[no-untyped-call]
    assert boxes.grad is not None
    assert loss.isfinite()
    assert boxes.grad.isfinite().all()


def test_query_matching_refuses_shapes_that_do_not_fit() -> None:
    with pytest.raises(InputError, match=r"at least as many queries. Found \(2, 3, 3\)"):
        query_matching(queries(0, 3), queries(1, 4))


def test_outputs_are_picked_and_weighed() -> None:
    pair = OnOutputs(lambda out: out["near"], partial(logit_kl, dim=None), weight=0.5)
    outputs, wanted = {"near": torch.tensor([1.0])}, {"near": torch.tensor([-1.0])}
    full = logit_kl(outputs["near"], wanted["near"], dim=None)
    torch.testing.assert_close(pair(outputs, wanted), 0.5 * full)
    result = distill(
        make_net(1),
        make_net(0),
        tasks=make_tasks(),
        data=make_batches(),
        taps=(),
        settings=DistillSettings(steps=2, cpu=True, output_losses={"near": pair}),
    )
    assert result.history[0].outputs["near"] > 0
