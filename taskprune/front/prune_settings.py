"""How pruning goes about its work, apart from what it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from torch import nn

from taskprune.calling.modality import Modality
from taskprune.deployment.runtimes import Runtime, checked_runtime
from taskprune.errors import InputError, short
from taskprune.plan.plan import PruningPlan

BetweenSteps: TypeAlias = Callable[[int, nn.Module, PruningPlan], Any]
"""``(step, model, plan)``: may train the model in place; what it returns is ignored."""


@dataclass(frozen=True)
class PruneSettings:
    """How :func:`taskprune.prune` goes about its work.

    Attributes:
        steps: In how many steps to get there. After each the channels are scored anew, on what is
            left of the model; every step removes the same fraction of it. The data is gone through
            in every step. Limits hold for all steps together, and there is one plan in the end.
            ``"auto"``: as many as leave 88 % of the multiply-adds each, which keeps more of every
            task where much goes, and takes as many times as long.
        between_steps: Called as ``(step, model, plan)`` after every step, the last included, so
            that a tolerance judges all of them alike; `plan` leads from the original to `model`,
            which may be trained in place. Each step is then verified against its own input,
            as the original's weights are no longer those of the result.
        balance: How many more times at most to choose what goes in a step, with more weight on the
            task that lost most, where every task has a metric and there is `validation` data: see
            :mod:`taskprune.front.balancing`. Scores are taken once; each try takes as long as
            compensating and measuring do. 0: tasks count as they are weighed, as they do where
            models are trained between steps.
        protect: Names, patterns or types of modules whose output channels must all stay.
        n_batches: How many batches to score on at most. Default: all of them.
        calibrate: ``"auto"`` stops scoring as soon as the ranking of the channels is stable; the
            report says how many batches it took. Where the data ends before, the log says so.
        modalities: The sensors of a fusion network, for budgets and criteria that tell them apart
            and for the report: declared, or ``"inputs"`` for those found from the model's inputs.
            ``None``: none, unless the budget has bounds by modality, which then has the names of
            inputs.
        runtime: What will run the model where it is deployed, and so what latencies are of:
            ``"eager"``, ``"compiled"`` (``torch.compile``, which takes minutes a measurement) or
            ``"onnx"`` (ONNX Runtime on the CPU, the extra ``onnx``).
        strict: Raise on the first operator without a channel rule in place of freezing it, on
            parameters that no traced forward reads, and where the verification tells nothing.
        verify: Compare the rewritten model with the masked original, and raise on a difference.
            Models on the meta device have nothing to compare.
    """

    steps: int | Literal["auto"] = 1
    between_steps: BetweenSteps | None = None
    balance: int = 4
    protect: str | type[nn.Module] | Sequence[str | type[nn.Module]] = ()
    n_batches: int | None = None
    calibrate: Literal["all", "auto"] = "all"
    modalities: Sequence[Modality] | Literal["inputs"] | None = None
    runtime: Runtime = "eager"
    strict: bool = False
    verify: bool = True

    def __post_init__(self) -> None:
        if self.steps != "auto":
            check_steps(self.steps)
        if isinstance(self.balance, bool) or not isinstance(self.balance, int) or self.balance < 0:
            raise InputError(
                f"`balance` must be a whole number of at least 0. Found {short(self.balance)}."
            )
        if self.between_steps is not None and not callable(self.between_steps):
            raise InputError(
                "`between_steps` must be a function (step, model, plan) that may train the model "
                f"in place. Found {type(self.between_steps).__name__}."
            )
        _check_modalities(self.modalities)
        checked_runtime(self.runtime)
        object.__setattr__(self, "protect", _checked_protect(self.protect))


def check_steps(steps: object) -> None:
    """Check a number of steps.

    Raises:
        InputError: It is not a whole number from 1 on.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InputError(f"`steps` must be a whole number of at least 1. Found {short(steps)}.")


def _check_modalities(modalities: Any) -> None:
    is_list = isinstance(modalities, Sequence) and not isinstance(modalities, str)
    if modalities in (None, "inputs") or (
        is_list and all(isinstance(modality, Modality) for modality in modalities)
    ):
        return
    raise InputError(
        "`modalities` must be a list such as [Modality('camera', inputs='images'), ...], or "
        f"'inputs' to find them. Found {short(modalities)}."
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
                f"['decoder.*', nn.Linear]. Found {short(entry)}."
            )
    return entries
