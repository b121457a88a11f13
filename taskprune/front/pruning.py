"""The front door: :func:`prune` runs the five stages, :func:`distill` trains what came out.

Both only compose public functions; everything they do can be done stage by stage.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn

from taskprune.calling.forward import Forward, call_batch
from taskprune.calling.inputs import ModelInputs, model_inputs
from taskprune.calling.meta import without_values
from taskprune.calling.modality import Modality
from taskprune.calling.task import Task, check_tasks
from taskprune.calling.tolerances import unwatched
from taskprune.calling.wrappers import bare, unwrap
from taskprune.cost import Cost
from taskprune.coupling import couple, labelled
from taskprune.deployment.latency import compare_latency, device_of, latency_cost, recalibrated
from taskprune.distillation import DistillSettings, TapSelector
from taskprune.distillation import distill as distill_features
from taskprune.errors import InputError
from taskprune.front.iterative import BetweenSteps, prune_in_steps
from taskprune.front.result import PruneResult
from taskprune.front.schedule import StepBudget, check_steps
from taskprune.graph import trace
from taskprune.importance import Importance, output_owners, score
from taskprune.importance.criteria_by_name import checked_criterion
from taskprune.importance.owners import owners_from_batches
from taskprune.importance.scoring import check_values
from taskprune.plan.plan import PruningPlan
from taskprune.report.making import make_report, unowned_outputs
from taskprune.restore.rng import preserved_rng
from taskprune.rewrite import apply_and_verify
from taskprune.rewrite.descriptions import describe
from taskprune.rewrite.surgery import duplicate
from taskprune.solver import solve
from taskprune.solver.budget import Budget
from taskprune.solver.safety import Safety
from taskprune.terminal.stages import stages


def prune(  # noqa: PLR0913 - the front door: what users set most often, by keyword
    model: nn.Module,
    tasks: Mapping[str, Task] | None,
    ratio: float | None = None,
    *,
    data: Iterable[Any] | Mapping[str, Iterable[Any]] | None = None,
    example_inputs: Any = None,
    forward: Forward | None = None,
    budget: Budget | None = None,
    importance: str | Importance = "task_taylor",
    safety: Safety | None = None,
    protect: str | type[nn.Module] | Sequence[str | type[nn.Module]] = (),
    n_batches: int | None = None,
    calibrate: Literal["all", "auto"] = "all",
    strict: bool = False,
    verify: bool = True,
    steps: int = 1,
    between_steps: BetweenSteps | None = None,
    validation: Iterable[Any] | None = None,
    modalities: Sequence[Modality] | Literal["inputs"] | None = None,
) -> PruneResult:
    """Make a model smaller without any of its tasks paying for it.

    Traces the model, finds which channels live or die together, scores them for every task,
    chooses which go, and rewrites a copy with smaller tensors. The rewritten model is compared
    with the original whose removed channels are zeroed before it is handed out.

    Args:
        model: Any module; it is left exactly as it was and can serve as the teacher. One inside
            ``torch.compile``, ``DataParallel`` or ``DistributedDataParallel`` is taken out, and
            comes back bare: wrap the result again. On the meta device it is planned for with
            ``importance="random"`` or any criterion that looks at no weights.
        tasks: The model's tasks by name, or ``None`` with a data-free criterion.
        ratio: Fraction of the parameters to remove. Never less goes, and more by at most 0.5 %, or
            by a part of one channel where the model has none so small. Give this or `budget`.
        data: Calibration batches, for example a ``DataLoader``; gone through once. A few hundred
            samples suffice. Tasks whose labels come from different data: a loader for each,
            ``{task: loader}``.
        example_inputs: A tensor, a tuple of arguments or a dict of keywords; in place of `data`
            with a criterion that needs none.
        forward: ``(model, batch) -> outputs``, where the batch is not ``(inputs, targets)``, a
            tensor or a dict of keyword arguments.
        budget: What the smaller model may cost: parameters, multiply-adds, latency, memory of
            activations. Latency is predicted from operators that are timed on the model's device
            with its first inputs; what was timed once is read from disk (``$TASKPRUNE_CACHE``).
        importance: Name of a criterion, or any callable that scores channels, such as one of
            Torch-Pruning's through ``TorchPruningImportance``.
        safety: Limits that hold whatever the scores say. Default: ``Safety()``.
        protect: Names, patterns or types of modules whose output channels must all stay.
        n_batches: How many batches to score on at most. Default: all of them.
        calibrate: ``"auto"`` stops scoring as soon as the ranking of the channels is stable; the
            report says how many batches it took. Where the data ends before, the log says so.
        strict: Raise on the first operator without a channel rule in place of freezing it.
        verify: Compare the rewritten model with the masked original, and raise on a difference.
            Models on the meta device have nothing to compare.
        steps: In how many steps to get there. After each the channels are scored anew, on what is
            left of the model; every step removes the same fraction of it. `data` is gone through
            in every step. Limits hold for all steps together, and there is one plan in the end.
        between_steps: Called as ``(step, model, plan)`` after every step, the last included, so
            that a tolerance judges all of them alike; `plan` leads from the original to `model`,
            which may be trained in place. Each step is then verified against its own input,
            as the original's weights are no longer those of the result.
        validation: Batches on which the metric of every task that has one is measured, before the
            first step and after each. If a task loses more than its ``tolerance``, that step is
            undone and the report says which task it was. Without it no tolerance is checked, and
            the report says so. Needs the ``distill`` extra.
        modalities: The sensors of a fusion network, for budgets and criteria that tell them apart
            and for the report: declared, or ``"inputs"`` for those found from the model's inputs.
            ``None``: none, unless the budget has bounds by modality, which then has the names of
            inputs.

    Raises:
        InputError: An argument does not fit, a loader is empty, a task's outputs do not exist.
        TraceError: The model rejects the inputs.
        LossError: A task's loss is not a finite scalar attached to the model.
        UnsupportedOperatorError: An operator has no channel rule and `strict` is set.
        InfeasibleBudgetError: The budget cannot be met; says what can.
        VerificationError: The rewritten model differs. Please report it; nothing was changed.
    """
    # All that needs no run of the model is checked before minutes of work.
    model, notes = unwrap(model)
    if not any(True for _ in model.parameters()):
        raise InputError(
            f"Expected a model with parameters to remove. {type(model).__name__} has none."
        )
    target = _checked_budget(ratio, budget)
    limits = _checked_safety(safety)
    protected = _checked_protect(protect)
    _check_modalities(modalities)
    named = check_tasks(tasks) if tasks is not None else {}
    if validation is None and not isinstance(target, StepBudget):  # steps are watched from outside
        notes += unwatched(named)
    if check_steps(steps) > 1 or between_steps is not None or validation is not None:
        return prune_in_steps(
            model,
            lambda current, part, within: prune(
                current,
                tasks,
                data=data,
                example_inputs=example_inputs,
                forward=forward,
                budget=part,
                importance=importance,
                safety=within,
                protect=protected,
                n_batches=n_batches,
                calibrate=calibrate,
                strict=strict,
                verify=verify and between_steps is not None,
                modalities=modalities,
            ),
            named,
            target,
            limits,
            steps=steps,
            data=data,
            example_inputs=example_inputs,
            forward=forward,
            between_steps=between_steps,
            validation=validation,
            verify=verify,
            notes=notes,
        )
    criterion = checked_criterion(importance)
    check_values(model, criterion)
    if target.latency_ms is not None:
        device_of(model, example_inputs)
    duplicate(model)
    # Tensors made in inference mode could neither be scored nor trained on.
    with stages("Pruning") as stage, preserved_rng(), torch.inference_mode(False):
        source = model_inputs(data, example_inputs, named, forward=forward, n_batches=n_batches)
        stage("tracing the model")
        owners, source = _owners(model, named, source, n_batches)
        graph = trace(model, source.example, forward=source.forward, tasks=owners, modes="all")
        stage("finding which channels belong together")
        groups = couple(graph, protect=protected, strict=strict)
        if modalities is not None or target.modalities:
            declared = None if modalities == "inputs" else modalities
            groups = labelled(groups, declared)
        stage("scoring every channel")
        scores = score(
            model,
            groups,
            named,
            source.batches,
            importance=criterion,
            forward=source.forward,
            n_batches=n_batches,
            calibrate=calibrate,
            progress=lambda done: stage(f"scoring every channel, {source.count(done)}"),
        )
        stage("choosing channels")
        costs: dict[str, Cost] = {}
        if target.latency_ms is not None:
            call = source.forward
            first = latency_cost(model, groups, source.example, forward=call, progress=stage)
            plan = solve(groups, scores, target, safety=limits, costs={"latency_ns": first})
            stage("timing a first choice of channels")
            again = recalibrated(first, model, plan, source.example, forward=call)
            costs["latency_ns"] = again
            stage("choosing channels")
        plan = solve(groups, scores, target, safety=limits, costs=costs)
        stage("rewriting and verifying")
        smaller, verification = apply_and_verify(
            model,
            plan,
            example_inputs=source.example,
            forward=source.forward,
            groups=groups,
            verify=verify,
        )
        latency = None
        if costs:
            stage("measuring the latency")
            latency = compare_latency(model, smaller, plan, source.example, forward=source.forward)
    notes += graph.notes
    notes += unowned_outputs(graph)
    notes += describe(model, plan).notes()
    if verify and (name := without_values(model)):
        notes += (f"Not verified: `{name}` is on the meta device and has no values to compare.",)
    report = make_report(
        groups,
        scores,
        plan,
        target,
        verification,
        notes=notes,
        latency=latency,
        round_to=limits.multiple,
    )
    return PruneResult(smaller, plan, report, groups, scores)


def distill(
    student: nn.Module,
    *,
    teacher: nn.Module,
    tasks: Mapping[str, Task],
    data: Iterable[Any],
    plan: PruningPlan | None = None,
    taps: TapSelector | Sequence[TapSelector] | None = None,
    forward: Forward = call_batch,
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
        forward: ``(model, batch) -> outputs``, for student and teacher alike.
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
        forward=forward,
    )
    return result.student


def _owners(
    model: nn.Module, tasks: Mapping[str, Task], source: ModelInputs, n_batches: int | None
) -> tuple[dict[str, tuple[str, ...]], ModelInputs]:
    if source.batches is None:
        return output_owners(model, tasks, source.example, forward=source.forward), source
    if not source.task_examples:
        owners, batches = owners_from_batches(
            model, tasks, source.batches, forward=source.forward, n_batches=n_batches
        )
        return owners, replace(source, batches=batches)
    owners = {}
    for name, batch in source.task_examples.items():
        owners |= output_owners(model, {name: tasks[name]}, batch, forward=source.forward)
    return {name: owners[name] for name in tasks}, source


def _check_values(model: nn.Module) -> None:
    if name := without_values(model):
        raise InputError(
            f"Expected a model with values to train. `{name}` is on the meta device, which has "
            "shapes only. Load its weights first: `model.to_empty(device=...)`, then "
            "`model.load_state_dict(...)`."
        )


def _checked_budget(ratio: float | None, budget: Budget | None) -> Budget:
    if (ratio is None) == (budget is None):
        raise InputError(
            "Say how much to remove: either `ratio=0.3` (fraction of the parameters removed) or "
            f"`budget=Budget(...)`. Found {'neither' if ratio is None else 'both'}."
        )
    if ratio is not None:
        return Budget.from_ratio(ratio)
    if not isinstance(budget, Budget):
        raise InputError(f"`budget` must be a `Budget(params=..., macs=...)`. Found {budget!r}.")
    return budget


def _checked_safety(safety: Safety | None) -> Safety:
    if safety is not None and not isinstance(safety, Safety):
        raise InputError(f"`safety` must be a `Safety(...)`. Found {safety!r}.")
    return safety or Safety()


def _check_modalities(modalities: Any) -> None:
    is_list = isinstance(modalities, Sequence) and not isinstance(modalities, str)
    if modalities in (None, "inputs") or (
        is_list and all(isinstance(modality, Modality) for modality in modalities)
    ):
        return
    raise InputError(
        "`modalities` must be a list such as [Modality('camera', inputs='images'), ...], or "
        f"'inputs' to find them. Found {modalities!r}."
    )


def _checked_protect(protect: Any) -> tuple[str | type[nn.Module], ...]:
    entries = (protect,) if isinstance(protect, str | type) else protect
    try:
        entries = tuple(entries)
    except TypeError:
        entries = (protect,)
    for entry in entries:
        is_module_type = isinstance(entry, type) and issubclass(entry, nn.Module)
        if not isinstance(entry, str) and not is_module_type:
            raise InputError(
                "`protect` takes names or patterns of modules, or types of them, such as "
                f"['decoder.*', nn.Linear]. Found {entry!r}."
            )
    return entries
