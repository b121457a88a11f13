r"""How much the tasks' losses may rise, by first-order prediction. Ours.

Removing channel :math:`c` changes the loss of task :math:`t` on batch :math:`b` by
:math:`-s_{b,t,c}` to first order (:mod:`taskprune.importance.effects`). For a set of channels,

.. math:: \sqrt{E_b\Big[\big(\sum_c s_{b,t,c}\big)^2\Big]} \le \sum_c \sqrt{E_b[s_{b,t,c}^2]}

by the triangle inequality. The right side, over the mean loss, is what is held against the limit:
it bounds the first-order change, and it adds up over channels, so a limit on it can be kept.

Why not something tighter: in a trained model the signed effects of many channels cancel, and what
first order leaves out then rules. On the bundled `n` network (64 scenes, scores taken once) the
relative change of the losses of detection, drivable area and lane was

=================  ========================  ========================  ========================
parameters left    measured                  minus the sum of means    this bound
=================  ========================  ========================  ========================
95 %               0.019, -0.003, 0.000      0.006, 0.001, 0.000       0.114, 0.044, 0.007
90 %               0.153, 0.026, 0.001       0.017, 0.015, -0.004      0.699, 0.271, 0.051
80 %               0.396, 1.139, 0.451       -0.014, 0.111, -0.002     1.912, 1.363, 0.344
=================  ========================  ========================  ========================

The square root of the summed squares, which holds for effects that are independent, was too low as
well: 0.031, 0.019, 0.004 at 90 %. Where a fifth goes at once, no first-order figure is a promise:
prune in steps, so that the scores are taken anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from taskprune.errors import InputError
from taskprune.importance.scores import ChannelScores
from taskprune.solver.removable import Removable
from taskprune.solver.safety import Safety
from taskprune.solver.step_context import ALONE, StepContext


def predicted_loss(scores: ChannelScores, drop: Mapping[str, Iterable[int]]) -> dict[str, float]:
    """Return a bound on each task's relative loss change, to first order; 0.05 is 5 %.

    Args:
        scores: Of a criterion that knows ``loss_increase``; without it nothing is returned.
        drop: ``{group name: channels that go}``.
    """
    if not scores.knows_losses:
        return {}
    total = np.zeros(len(scores.tasks))
    for name, channels in drop.items():
        total += _increase(scores, name)[:, list(channels)].sum(1)
    return dict(zip(scores.tasks, total.tolist(), strict=True))


def allowed_loss(
    safety: Safety, scores: ChannelScores, context: StepContext = ALONE
) -> dict[str, float]:
    """Return what the loss of each limited task may rise by in this step, as a fraction.

    Raises:
        InputError: A limit is for a task that the scores do not know, or they say nothing of the
            losses.
    """
    limits = context.loss_limits(safety, scores.tasks)
    if not limits:
        return {}
    if not scores.knows_losses:
        raise InputError(
            "`max_loss_increase` needs a criterion that says what each channel means to each "
            f"task's loss, such as 'task_change', and losses above 0. Found `{scores.criterion}`."
        )
    unknown = sorted(set(limits) - set(scores.tasks))
    if unknown:
        raise InputError(
            f"`max_loss_increase` limits task `{unknown[0]}`. The tasks are "
            f"{', '.join(f'`{task}`' for task in scores.tasks)}."
        )
    return limits


def affordable(
    parts: Sequence[Removable],
    scores: ChannelScores,
    allowed: Mapping[str, float],
    keys: Sequence[NDArray[np.float64]],
) -> tuple[Removable, ...]:
    """Leave of what may go what all tasks can afford together.

    Channels are taken in order until the first of them would exceed what a task may lose. From
    there on only channels that cost that task nothing are taken.

    Args:
        parts: What may go, by group.
        scores: What each channel costs each task.
        allowed: See :func:`allowed_loss`.
        keys: For each group the order of its removable channels among all, ascending. Shape
            ``[n_removable]`` each.
    """
    limits = np.array([allowed.get(task, np.inf) for task in scores.tasks])
    sizes = [len(part.order) for part in parts]
    costs = np.concatenate(
        [
            np.zeros((len(scores.tasks), 0)),
            *(_increase(scores, p.group.name)[:, p.order] for p in parts),
        ],
        axis=1,
    )
    order = np.argsort(np.concatenate([np.empty(0), *keys]), kind="stable")
    held = np.full(costs.shape[1], -1, dtype=np.int64)  # the task that keeps a channel
    for _ in scores.tasks:  # each round one of them has used up what it may lose
        left = order[held[order] < 0]
        over = np.cumsum(costs[:, left], axis=1) > limits[:, None]
        if not over.any():
            break
        first = int(over.any(axis=0).argmax())
        task = int(over[:, first].argmax())
        after = left[first:]
        held[after[costs[task, after] > 0]] = task
    ends = np.cumsum(sizes)
    return tuple(
        _without(part, held[end - size : end], scores.tasks)
        for part, size, end in zip(parts, sizes, ends.tolist(), strict=True)
    )


def _increase(scores: ChannelScores, group: str) -> NDArray[np.float64]:
    increase = scores[group].loss_increase
    assert increase is not None, "knows_losses"
    return increase.numpy()


def _without(part: Removable, held: NDArray[np.int64], tasks: Sequence[str]) -> Removable:
    kept = held >= 0
    if not kept.any():
        return part
    task = tasks[int(held[kept.argmax()])]
    return replace(
        part,
        order=part.order[~kept],
        scores=part.scores[~kept],
        held_by=f"max_loss_increase of {task}",
    )
