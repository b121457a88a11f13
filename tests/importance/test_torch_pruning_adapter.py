"""Criteria of Torch-Pruning rank our groups as they rank its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_pruning as tp
from hand_made import (
    FIRST,
    SECOND,
    TRUNK,
    TwoTaskNet,
    batches,
    two_task_groups,
    two_task_net,
    two_tasks,
)
from torch import Tensor, nn

from taskprune.errors import InputError
from taskprune.importance import TorchPruningImportance, score
from taskprune.restore.process import preserved_rng

CRITERIA: dict[str, Callable[[], Any]] = {
    "magnitude": tp.importance.GroupMagnitudeImportance,
    "magnitude L1, first layer": lambda: tp.importance.GroupMagnitudeImportance(
        p=1, group_reduction="first", normalizer=None
    ),
    "taylor": tp.importance.GroupTaylorImportance,
    "taylor, multivariable": lambda: tp.importance.GroupTaylorImportance(multivariable=True),
    "taylor with biases": lambda: tp.importance.GroupTaylorImportance(bias=True),
    "lamp": tp.importance.LAMPImportance,
    "fpgm": tp.importance.FPGMImportance,
    "bn scale": tp.importance.BNScaleImportance,
    "random": tp.importance.RandomImportance,
}


def set_gradients(net: nn.Module, n: int) -> None:
    """Mean over batches of the gradients of the summed loss, by ``backward``."""
    net.eval()
    for batch in batches(n):
        outputs = net(batch[0])
        losses = [task.loss(outputs, batch) for task in two_tasks().values()]
        total = losses[0] + losses[1]  # type: ignore[operator]
        torch.autograd.backward(total / n)


def own_scores(net: TwoTaskNet, criterion: Any) -> dict[str, Tensor | None]:
    graph = tp.DependencyGraph().build_dependency(net, example_inputs=batches(1)[0][0])
    roots = {
        TRUNK: (net.stem, tp.prune_conv_out_channels, 8),
        FIRST: (net.first[0], tp.prune_linear_out_channels, 6),
        SECOND: (net.second[0], tp.prune_conv_out_channels, 5),
    }
    return {
        name: criterion(graph.get_pruning_group(layer, prune, idxs=list(range(n))))
        for name, (layer, prune, n) in roots.items()
    }


@pytest.mark.parametrize("make", CRITERIA.values(), ids=CRITERIA)
def test_scores_equal_those_on_the_peers_own_groups(make: Callable[[], Any]) -> None:
    net, other = two_task_net(), two_task_net()
    set_gradients(other, 3)
    with preserved_rng():
        found = score(
            net,
            two_task_groups(net),
            two_tasks(),
            batches(3),
            importance=TorchPruningImportance(make()),
        )
    with preserved_rng():
        expected = own_scores(other, make())
    for name, scores in expected.items():
        if scores is None:
            assert found[name].total.min() > max(float(found[n].total.max()) for n in [TRUNK])
        else:
            torch.testing.assert_close(found[name].total, scores.double(), rtol=1e-5, atol=1e-7)
    assert all(p.grad is None for p in net.parameters())


def test_weight_criteria_need_neither_tasks_nor_data() -> None:
    net = two_task_net()
    criterion = TorchPruningImportance(tp.importance.GroupMagnitudeImportance())
    found = score(net, two_task_groups(net), importance=criterion)
    assert found.n_batches == 0
    assert found.criterion == "torch_pruning.GroupMagnitudeImportance"


def test_gradient_criteria_ask_for_tasks() -> None:
    net = two_task_net()
    criterion = TorchPruningImportance(tp.importance.GroupTaylorImportance())
    with pytest.raises(InputError, match="needs the tasks' losses"):
        score(net, two_task_groups(net), importance=criterion)


def test_second_order_criteria_are_shown_every_batch() -> None:
    net, shown = two_task_net(), []

    class Watched(tp.importance.GroupHessianImportance):  # type: ignore[misc]
        def accumulate_grad(self, model: nn.Module) -> None:
            shown.append(float(model.stem.weight.grad.abs().sum()))  # type: ignore[union-attr, operator]
            super().accumulate_grad(model)

    found = score(
        net,
        two_task_groups(net),
        two_tasks(),
        batches(3),
        importance=TorchPruningImportance(Watched()),
    )
    assert len(shown) == len(set(shown)) == 3
    assert float(found[TRUNK].total.min()) > 0


def test_a_criterion_without_any_layer_of_its_kind_is_refused() -> None:
    net = two_task_net()
    criterion = tp.importance.GroupMagnitudeImportance(target_types=[nn.LayerNorm])
    with pytest.raises(InputError, match="no layer to score"):
        score(net, two_task_groups(net), importance=TorchPruningImportance(criterion))


def test_activations_are_averaged_over_batches() -> None:
    net, data = two_task_net(), batches(2)
    criterion = TorchPruningImportance(tp.importance.ActivationImportance())
    both, *single = (
        score(net, two_task_groups(net), two_tasks(), chosen, importance=criterion)
        for chosen in (data, data[:1], data[1:])
    )
    assert both.n_batches == 2
    assert not hasattr(net.stem, "_importance")
    assert not net.stem._forward_hooks
    # The readers of this group are one layer, so the average passes through up to a factor.
    mean = (single[0][SECOND].total + single[1][SECOND].total) / 2
    torch.testing.assert_close(both[SECOND].total.argsort(), mean.argsort(), rtol=0, atol=0)


def test_activation_criteria_ask_for_data() -> None:
    net = two_task_net()
    criterion = TorchPruningImportance(tp.importance.ActivationImportance())
    with pytest.raises(InputError, match="pass `data=`"):
        score(net, two_task_groups(net), importance=criterion)


def test_a_criterion_that_needs_a_pruner_is_refused() -> None:
    net = two_task_net()
    criterion = TorchPruningImportance(tp.importance.OBDCImportance())
    with pytest.raises(InputError, match="OBDCImportance"):
        score(net, two_task_groups(net), two_tasks(), batches(1), importance=criterion)
