"""The stage ``score``: run a criterion and make sure of what it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import islice
from math import comb
from typing import Any, Literal

import torch
from torch import Tensor, nn

from taskprune.calling.forward import Forwards, call_batch, one_forward
from taskprune.calling.inputs import check_loaders, task_batches
from taskprune.calling.meta import without_values
from taskprune.calling.task import Task, check_tasks
from taskprune.calling.wrappers import bare, uncompiled
from taskprune.coupling.groups import CouplingGroups
from taskprune.errors import InputError, short
from taskprune.importance.criteria_by_name import DEFAULT_CRITERION, checked_criterion
from taskprune.importance.distributed import several_processes
from taskprune.importance.scores import (
    BLIND,
    ChannelScores,
    Evidence,
    GroupScores,
    Importance,
    Watch,
)
from taskprune.importance.stability import RankingStability
from taskprune.replace import replaced_modules
from taskprune.restore.borrow import entrusted
from taskprune.restore.process import without_reentrance


def score(  # noqa: PLR0913 - a public stage: its arguments are set by keyword
    model: nn.Module,
    groups: CouplingGroups,
    tasks: Mapping[str, Task] | None = None,
    data: Iterable[Any] | Mapping[str, Iterable[Any]] | None = None,
    *,
    importance: str | Importance = DEFAULT_CRITERION,
    forward: Forwards = call_batch,
    n_batches: int | None = None,
    calibrate: Literal["all", "auto"] = "all",
    progress: Callable[[int], None] | None = None,
    watch: Watch | None = None,
) -> ChannelScores:
    """Score every channel of every group; a lower score goes first.

    Args:
        model: The traced model; it is left exactly as it was. Taken out of ``torch.compile`` and
            data-parallel wrappers. On the meta device only criteria that look at no weights work.
        groups: Its coupling groups.
        tasks: The tasks by name; not needed by criteria that look at weights alone.
        data: Calibration batches with labels, under the same condition; or a loader for each task,
            ``{task: batches}``, gone through in turn. Tasks with loaders of their own have no batch
            in common, so effect conflict between them is 0.
        importance: Name of a criterion, or any callable that scores channels. All it does to the
            model but to its weights is undone afterwards, also where it fails.
        forward: ``(model, batch) -> outputs``, or several as in :func:`taskprune.trace`.
        n_batches: How many batches to use at most, of each loader. Default: all of them.
        calibrate: ``"auto"`` stops when the ranking is stable, see
            :class:`~taskprune.importance.stability.RankingStability`; ``ChannelScores.n_batches``
            says how many batches it took.
        progress: Called with the number of batches done.
        watch: Looks on at the forwards and backwards, for whoever needs the same.

    Returns:
        Scores on the CPU, checked: every group, its number of channels, float64, finite.

    Raises:
        InputError: The criterion does not exist or returned something else than scores, or it
            needs tasks, data or values of weights that are not there, or cannot tell when it is
            stable; or a weight is not finite.
        TraceError: The model rejects a batch.
        LossError: A task's loss is not a finite scalar attached to the model.
        PlanMismatchError: The groups were made for another model.
    """
    if n_batches is not None and n_batches < 1:
        raise InputError(
            f"`n_batches` must be at least 1, or None for all. Found {short(n_batches)}."
        )
    criterion = checked_criterion(importance)
    model = bare(model)
    check_values(model, criterion)
    named = check_tasks(tasks) if tasks else {}
    stability = _stability(calibrate)
    evidence = Evidence(
        tasks=named,
        batches=_batches(data, named, n_batches),
        forward=one_forward(forward) or call_batch,
        progress=progress or (lambda _: None),
        settled=stability,
        watch=watch,
    )
    # Sums made under a surrounding inference mode could not be added to outside of it.
    with (
        torch.inference_mode(False),
        uncompiled(model),
        replaced_modules(model, groups.replacements),
        entrusted(model),
        without_reentrance(),
    ):
        try:
            found = criterion(model, groups, evidence)
        except NotImplementedError as error:
            if not (name := without_values(model)):
                raise
            raise _valueless(name, criterion) from error
    try:
        return _read(found, groups, criterion, tuple(evidence.tasks), stability)
    except _NotFiniteError as error:
        _check_finite(model, error)
        raise


class _NotFiniteError(InputError):
    """A criterion returned NaN or infinities."""


def check_values(model: nn.Module, criterion: object) -> None:
    """Check that a criterion that looks at weights finds some.

    Those of the package do unless ``needs_values`` says otherwise; of others it is not known.

    Raises:
        InputError: The model is on the meta device and the criterion needs values.
    """
    ours = type(criterion).__module__.startswith("taskprune.")
    if getattr(criterion, "needs_values", ours) and (name := without_values(model)):
        raise _valueless(name, criterion)


def _valueless(tensor: str, criterion: object) -> InputError:
    return InputError(
        f"Expected a model with values for criterion {_name(criterion)}. `{tensor}` is on the "
        "meta device, which has shapes only. Choose importance='random' or a criterion that looks "
        "at no weights, or load them: `model.to_empty(device=...)`, then "
        "`model.load_state_dict(...)`."
    )


def _name(criterion: object) -> str:
    return str(getattr(criterion, "__name__", type(criterion).__name__))


def _check_finite(model: nn.Module, error: Exception) -> None:
    floats = ((name, p) for name, p in model.named_parameters() if p.is_floating_point())
    broken = next((n for n, p in floats if not p.is_meta and not p.isfinite().all()), "")
    if broken:
        raise InputError(
            f"Expected a model whose weights are finite. `{broken}` holds NaN or infinities, so "
            "its channels cannot be scored. Load sound weights, or find out where training "
            "overflowed."
        ) from error


def _read(
    found: object,
    groups: CouplingGroups,
    criterion: object,
    tasks: tuple[str, ...],
    stability: RankingStability | None,
) -> ChannelScores:
    if isinstance(found, ChannelScores):
        if stability is not None and found.n_batches and not stability.n_looks:
            raise InputError(
                f"calibrate='auto' needs a criterion that knows its scores so far. "
                f"`{found.criterion}` only knows them at the end: pass `n_batches=` instead."
            )
        return _checked(found, groups)
    if isinstance(found, Mapping):
        return scores_from_mapping(found, groups, _name(criterion), tasks)
    raise InputError(
        "A criterion must return `ChannelScores` or a mapping {group name: scores}. Found "
        f"{type(found).__name__} from {short(criterion)}."
    )


def _stability(calibrate: str) -> RankingStability | None:
    if calibrate not in ("all", "auto"):
        raise InputError(f"`calibrate` must be 'all' or 'auto'. Found {short(calibrate)}.")
    if calibrate == "auto" and several_processes():
        raise InputError(
            "calibrate='auto' looks at the batches of one process. Found several: pass "
            "`n_batches=` instead."
        )
    return RankingStability() if calibrate == "auto" else None


def _batches(
    data: Iterable[Any] | Mapping[str, Iterable[Any]] | None,
    tasks: Mapping[str, Task],
    n_batches: int | None,
) -> Iterable[Any]:
    if isinstance(data, Mapping):
        return task_batches(check_loaders(data, tasks), n_batches)
    return () if data is None else islice(data, n_batches)


def scores_from_mapping(
    found: Mapping[str, Tensor], groups: CouplingGroups, criterion: str, tasks: tuple[str, ...]
) -> ChannelScores:
    """Return the full record of what a criterion returned in short form.

    Raises:
        InputError: A group is missing, or scores are of another shape or not finite.
    """
    own: dict[str, GroupScores] = {}
    rows: int | None = None
    for group in groups:
        scores = _scores_of(found, group.name, criterion)
        scores = scores[None] if scores.ndim == 1 else scores
        rows = len(scores) if rows is None and scores.ndim == 2 else rows
        scores = _fitting(scores, (rows or 1, group.n_channels), group.name, criterion)
        own[group.name] = GroupScores(scores.mean(dim=0), scores)
    n_rows = rows or 1
    names: tuple[str, ...]
    if n_rows == 1:
        names = BLIND
    elif tasks and n_rows != len(tasks):
        raise InputError(
            f"Criterion `{criterion}` returned {n_rows} rows of scores per group. Expected one, or "
            f"one for each of the {len(tasks)} tasks."
        )
    else:
        names = tasks or tuple(f"row {row}" for row in range(n_rows))
    return ChannelScores(criterion, names, own)


def _checked(found: ChannelScores, groups: CouplingGroups) -> ChannelScores:
    n_tasks = len(found.tasks)
    checked: dict[str, GroupScores] = {}
    for group in groups:
        if group.name not in found.groups:
            raise _missing(group.name, found.criterion)
        own, n = found.groups[group.name], group.n_channels

        def fitting(scores: Tensor, *shape: int, name: str = group.name) -> Tensor:
            return _fitting(scores, shape, name, found.criterion)

        pairs, rises = own.pair_conflict, own.loss_increase
        checked[group.name] = GroupScores(
            total=fitting(own.total, n),
            per_task=fitting(own.per_task, n_tasks, n),
            pair_conflict=None if pairs is None else fitting(pairs, comb(n_tasks, 2), n),
            loss_increase=None if rises is None else fitting(rises, n_tasks, n),
        )
    if not 0 <= found.correlation <= 1:
        raise InputError(
            f"Criterion `{found.criterion}` returned a correlation of {short(found.correlation)}. "
            "Expected a number from 0 to 1."
        )
    return replace(found, tasks=tuple(found.tasks), groups=checked)


def _scores_of(found: Mapping[str, Tensor], group: str, criterion: str) -> Tensor:
    if group not in found:
        raise _missing(group, criterion)
    scores = found[group]
    if not isinstance(scores, Tensor):
        raise InputError(
            f"Criterion `{criterion}` must return tensors. Found a {type(scores).__name__} for "
            f"group `{group}`."
        )
    return scores


def _missing(group: str, criterion: str) -> InputError:
    return InputError(
        f"Criterion `{criterion}` returned no scores for group `{group}`; every prunable group "
        "needs some."
    )


def _fitting(scores: Tensor, shape: tuple[int, ...], group: str, criterion: str) -> Tensor:
    if tuple(scores.shape) != shape:
        raise InputError(
            f"Criterion `{criterion}` returned scores of shape {tuple(scores.shape)} for group "
            f"`{group}`. Expected {shape}: (channels) or (tasks, channels)."
        )
    result = scores.detach().to(device="cpu", dtype=torch.float64)
    if not bool(torch.isfinite(result).all()):
        raise _NotFiniteError(
            f"Criterion `{criterion}` returned scores that are not finite for group `{group}`. "
            "Channels that must stay are protected with `couple(..., protect=...)`."
        )
    return result
