"""Training what came out of pruning, from the front door."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from taskprune.calling.forward import Forwards, call_batch, one_forward
from taskprune.calling.meta import without_values
from taskprune.calling.task import Task, check_tasks
from taskprune.calling.wrappers import bare
from taskprune.distillation import DistillSettings, TapSelector
from taskprune.distillation import distill as distill_features
from taskprune.errors import InputError
from taskprune.front.result import PruneResult
from taskprune.plan.plan import PruningPlan


def distill(
    student: nn.Module,
    *,
    teacher: nn.Module,
    tasks: Mapping[str, Task],
    data: Iterable[Any],
    plan: PruningPlan | None = None,
    taps: TapSelector | Sequence[TapSelector] | None = None,
    forward: Forwards = call_batch,
    settings: DistillSettings | None = None,
) -> nn.Module:
    """Train a pruned student on its tasks and on its frozen teacher's features.

    The features of a pruned student are compared with the teacher's *kept* channels, known from
    the plan, so no adapter stands between them. Task heads are not touched by the feature loss.
    :func:`taskprune.distillation.distill` has more to set and returns the history as well.

    Args:
        student: The model to train, in place. Student and teacher are taken out of
            ``torch.compile`` and data-parallel wrappers; Accelerate distributes the training.
        teacher: The original; it is left as it was.
        tasks: The tasks whose losses are trained beside the features.
        data: Training batches, gone through as often as `settings` asks for.
        plan: The plan the student was made with; ``None`` for any other pair of models.
        taps: The modules whose outputs are compared: paths, patterns, types, or a
            ``taskprune.distillation.Role`` that the model declares; a
            ``taskprune.distillation.Tap`` also pairs modules of different architectures. Default:
            all roles that the teacher declares; without any, the last shared output of every
            resolution.
        forward: ``(model, batch) -> outputs``, for student and teacher alike; or several, as in
            :func:`taskprune.prune`.
        settings: Length, learning rate, weights and the like.

    Returns:
        The student, bare.
    """
    student, teacher = bare(student), bare(teacher)
    _check_values(student)
    _check_values(teacher)
    if plan is not None and not isinstance(plan, PruningPlan):
        found = type(plan).__name__
        way_out = " Hand in `result.plan`." if isinstance(plan, PruneResult) else ""
        raise InputError(f"`plan` must be a `PruningPlan`. Found {found}.{way_out}")
    channel_map = {kept.name: kept.keep for kept in plan.activations} if plan else None
    result = distill_features(
        student,
        teacher,
        tasks=check_tasks(tasks),
        data=data,
        settings=settings,
        channel_map=channel_map,
        taps=taps,
        forward=one_forward(forward) or call_batch,
    )
    return result.student


def _check_values(model: nn.Module) -> None:
    if name := without_values(model):
        raise InputError(
            f"Expected a model with values to train. `{name}` is on the meta device, which has "
            "shapes only. Load its weights first: `model.to_empty(device=...)`, then "
            "`model.load_state_dict(...)`."
        )
