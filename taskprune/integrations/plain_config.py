"""Pruning to widths that a configuration of transformers says, so that no plan is needed."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from taskprune.calling.forward import call_batch
from taskprune.calling.outputs import flatten_outputs
from taskprune.calling.task import Task
from taskprune.coupling.groups import CouplingGroup, CouplingGroups
from taskprune.errors import InputError, VerificationError
from taskprune.front.job import chosen_importance
from taskprune.front.pruning import prune
from taskprune.front.result import PruneResult
from taskprune.importance import ChannelScores, Evidence, Importance
from taskprune.importance.criteria_by_name import checked_criterion
from taskprune.importance.scores import BLIND, GroupScores
from taskprune.importance.scoring import scores_from_mapping
from taskprune.report.making import unreadable_files
from taskprune.restore.modes import evaluating
from taskprune.restore.process import preserved_rng
from taskprune.rewrite.surgery import tensor_shapes
from taskprune.solver.budget import Budget
from taskprune.solver.safety import Safety

_NO_LIMITS = Safety(
    min_channels=1, max_removed=1.0, max_removed_private=1.0, protected_quantile=1.0
)


def prune_to_config(
    model: nn.Module,
    config: Any,
    tasks: Mapping[str, Task] | None = None,
    *,
    data: Iterable[Any],
    importance: str | Importance | None = None,
    compensate: bool = True,
) -> PruneResult:
    """Prune a model of transformers to the widths of another configuration of its class.

    All layers come out alike, so the result needs no plan: its own ``save_pretrained`` and
    ``from_pretrained`` do. Which channels go is chosen by their scores in each layer; how many, by
    the configuration, which costs quality where layers are worth unlike amounts.

    Args:
        model: The model; it is left as it was.
        config: A copy of ``model.config`` with smaller widths, such as ``intermediate_size``.
        tasks: As for :func:`taskprune.prune`.
        data: Calibration batches.
        importance: The criterion.
        compensate: Re-weight what stays.

    Raises:
        InputError: The configuration asks for something else than narrower layers, or for channels
            that cannot go alone; or see :func:`taskprune.prune`, which raises all else.
        VerificationError: The model made from the configuration with the pruned weights computes
            something else than the pruned model, as after another number of heads: the
            configuration means more than widths.
    """
    if type(config) is not type(getattr(model, "config", None)):
        raise InputError(
            "Expected a model of transformers and a changed copy of its `config`. Found "
            f"{type(model).__name__} and {type(config).__name__}."
        )
    batches = list(data)
    with preserved_rng(), torch.device("meta"):
        target = type(model)(copy.deepcopy(config))
    shapes, wanted = tensor_shapes(model), tensor_shapes(target)
    odd = sorted(
        name
        for name in shapes.keys() | wanted.keys()
        if len(shapes.get(name, ())) != len(wanted.get(name, ()))
        or any(a < b for a, b in zip(shapes.get(name, ()), wanted.get(name, ()), strict=False))
    )
    if odd or shapes == wanted:
        raise InputError(
            "Expected a configuration of the same layers, some narrower. "
            + (f"It changes `{odd[0]}` otherwise." if odd else "It changes no size.")
        )
    result = prune(
        model,
        tasks,
        data=batches,
        budget=Budget(params=sum(p.numel() for p in target.parameters())),
        importance=_ToShapes(checked_criterion(chosen_importance(importance, tasks)), wanted),
        safety=_NO_LIMITS,
        compensate=compensate,
    )
    found = tensor_shapes(result.model)
    for name, shape in wanted.items():
        if found.get(name) != shape:
            raise InputError(
                f"The configuration gives `{name}` the shape {shape}, which no choice of channels "
                f"makes: found {found.get(name)}. `result.groups` of a usual run says what can go."
            )
    plain = _with_weights(model, copy.deepcopy(config), result.model)
    _check_same(plain, result.model, batches[0])
    solved = unreadable_files(result.model, result.plan)
    notes = tuple(note for note in result.report.notes if note not in solved)
    return replace(result, model=plain, report=replace(result.report, notes=notes))


class _ToShapes:
    """Scores of a criterion, changed so that exactly those channels go that make given shapes."""

    def __init__(self, criterion: Importance, wanted: Mapping[str, tuple[int, ...]]) -> None:
        self._criterion = criterion
        self._wanted = wanted
        self.__name__ = getattr(criterion, "__name__", type(criterion).__name__)

    def __call__(
        self, model: nn.Module, groups: CouplingGroups, evidence: Evidence, /
    ) -> ChannelScores:
        found = self._criterion(model, groups, evidence)
        if not isinstance(found, ChannelScores):
            found = scores_from_mapping(found, groups, self.__name__, ())
        totals = {}
        for group in groups:
            rank = found[group.name].total.argsort().argsort().to(torch.float64)
            goes = rank < group.n_channels - self._kept(group, groups)
            # Far apart, and in their own order within.
            totals[group.name] = torch.where(goes, 0.0, 1e6) + rank / group.n_channels
        own = {name: GroupScores.blind(total) for name, total in totals.items()}
        return ChannelScores(found.criterion, BLIND, own, found.n_batches)

    def _kept(self, group: CouplingGroup, groups: CouplingGroups) -> int:
        """Return how many channels the shapes leave a group; all where they say nothing of it."""
        for member in group.members:
            size = groups.shapes[member.name][member.dim]
            shape = self._wanted.get(member.name)
            if shape is not None and member.index.size == size and shape[member.dim] < size:
                return group.n_channels * shape[member.dim] // size
        return group.n_channels


def _with_weights(model: nn.Module, config: Any, pruned: nn.Module) -> Any:
    """Return a model of a configuration with the pruned weights, on their devices."""
    with preserved_rng():
        plain: Any = type(model)(config)
    for name, parameter in plain.named_parameters():
        source = pruned.get_parameter(name)
        parameter.data = source.detach().clone()
        parameter.requires_grad_(source.requires_grad)
    for name, buffer in plain.named_buffers():
        buffer.data = pruned.get_buffer(name).detach().clone()
    return plain.train(model.training)


def _check_same(plain: nn.Module, pruned: nn.Module, batch: Any) -> None:
    with preserved_rng(), torch.no_grad(), evaluating(plain), evaluating(pruned):
        one, other = (flatten_outputs(call_batch(own, batch)) for own in (plain, pruned))
    for path, tensor in other.items():
        if not _alike(one[path], tensor):
            raise VerificationError(
                f"The configuration means more than widths: with it the pruned weights make other "
                f"outputs (`{path}`). Store the result of `taskprune.prune` with its plan instead."
            )


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(
        one.double(), other.double(), rtol=1e-4, atol=1e-5, equal_nan=True
    )
