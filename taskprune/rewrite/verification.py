"""Is the rewritten model right? Measured, not assumed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from torch import nn

from taskprune.calling.forward import Forward
from taskprune.coupling.groups import CouplingGroups
from taskprune.errors import TraceError, VerificationError
from taskprune.plan.decisions import GroupDecision
from taskprune.plan.plan import PruningPlan, build_plan
from taskprune.replace import ModuleReplacement, dropping, reference_replacements
from taskprune.rewrite.comparison import Comparison, OutputError, compare
from taskprune.rewrite.loading import as_they_are
from taskprune.rewrite.masking import kept_statistics, reading_dims, silencing
from taskprune.rewrite.norms import HANDLED_OPERATORS
from taskprune.rewrite.permutation import permuting
from taskprune.rewrite.rescaling import RescaledWeights
from taskprune.rewrite.samples import first_samples
from taskprune.rewrite.surgery import UndoLog, cut, skeleton
from taskprune.rewrite.weight_norm import plain_gains

Oracle: TypeAlias = Literal["masked", "permutation", "shapes"]


@dataclass(frozen=True, slots=True)
class ExcludedGroup:
    """A group that the masked original says nothing about, and how it was checked."""

    name: str
    reason: str
    checked_by: Literal["permutation", "shapes"]


@dataclass(frozen=True, slots=True)
class VerificationReport:
    """What comparing the rewritten model with the original has shown.

    Attributes:
        oracle: ``masked``: outputs equal those of the original with the removed channels silenced.
            ``permutation``: part of the groups cannot be checked that way (see ``excluded``) and
            were permuted in the original, whose outputs did not move. ``shapes``: for those groups
            it is only known that the model runs and its outputs have the right shapes.
        dtype: What both models were run in.
        samples: On how many of the example inputs' samples, entries along dim 0 of the first
            tensor, and how many there are; ``None`` if there is no such tensor.
        tolerance: Largest relative error let through.
        outputs: The measured error of each output.
        excluded: Groups outside the masked comparison.
        repeated_choices: How many top-k, sort or arg-max calls met ties and were made to agree.
        rescaled: Weights that come out as others because a statistic of them loses entries, which
            the masked original does not show.
    """

    oracle: Oracle
    dtype: str
    tolerance: float
    outputs: tuple[OutputError, ...]
    excluded: tuple[ExcludedGroup, ...] = ()
    repeated_choices: int = 0
    samples: tuple[int, int] | None = None
    rescaled: RescaledWeights | None = None

    @property
    def max_relative_error(self) -> float:
        """The largest relative error among the outputs compared; 0 if none were."""
        return max((error.relative for error in self.outputs), default=0.0)

    def __str__(self) -> str:
        n_outputs = len(self.outputs)
        run, available = self.samples or (0, 0)
        part = f", {run} of {available} samples" if run < available else ""
        compared = (
            f"{n_outputs} output{'' if n_outputs == 1 else 's'} compared with the masked original, "
            f"largest relative error {self.max_relative_error:.1e} ({self.dtype}{part})"
        )
        if not self.excluded:
            return compared
        names = ", ".join(group.name for group in self.excluded[:3])
        more = f" and {len(self.excluded) - 3} more" if len(self.excluded) > 3 else ""
        return f"{compared}; by {self.excluded[0].checked_by} only: {names}{more}"


def verify_against_masked(
    original: nn.Module,
    smaller: nn.Module,
    plan: PruningPlan,
    *,
    inputs: Any,
    forward: Forward,
    groups: CouplingGroups | None = None,
) -> VerificationReport:
    """Compare a rewritten model with the masked original; neither is changed.

    Both run as copies that borrow their weights, one after the other, in eval mode and, wherever
    the model can, in float64. Of a large model two samples run; if it rejects them or they differ,
    which a batch size in the code may cause, all of them decide.

    Raises:
        TraceError: The original itself rejects the inputs.
        VerificationError: The rewritten model fails or differs.
    """
    part, samples = first_samples(original, inputs)
    if samples and samples[0] < samples[1]:
        with suppress(TraceError, VerificationError):
            report = _verified(original, smaller, plan, part, forward, groups)
            if report.oracle == "masked":
                return replace(report, samples=samples)
        samples = (samples[1], samples[1])
    return replace(_verified(original, smaller, plan, inputs, forward, groups), samples=samples)


def _verified(
    original: nn.Module,
    smaller: nn.Module,
    plan: PruningPlan,
    inputs: Any,
    forward: Forward,
    groups: CouplingGroups | None,
) -> VerificationReport:
    measured = _against_masked(original, smaller, plan, inputs, forward)
    if measured.only_expected_is_nan and groups is not None:
        # A zeroed channel that is divided by its own size, as in weight normalisation. It is
        # enough that nothing reads it, where parameters do the reading.
        readers = reading_dims(groups)
        unread = _against_masked(original, smaller, plan, inputs, forward, only=readers)
        measured = measured if unread.wrong else unread
    if not measured.wrong:
        return _report("masked", measured)
    crossed = _crossed(plan, everything=measured.only_expected_is_nan)
    if not crossed or any(error.problem for error in measured.wrong if not error.is_nan):
        _check_replacements(original, plan, inputs, forward)
        raise _difference(measured)
    regrouped = groups is not None and any(name not in groups for name in plan.drop)
    if groups is None or regrouped:
        hint = (
            "groups formed between plans cannot be permuted in the original"
            if regrouped
            else "pass `groups=` to check it by permutation"
        )
        excluded = tuple(
            ExcludedGroup(name, f"{reason}; {hint}", "shapes") for name, reason in crossed.items()
        )
        return _report("shapes", measured, excluded)
    return _verify_in_parts(original, plan, groups, crossed, inputs, forward)


def _dropped(plan: PruningPlan) -> tuple[ModuleReplacement, ...]:
    """Return the parts of dropped tasks, without which the original is another function."""
    return tuple(record for record in plan.replacements if record.kind in dropping.KINDS)


def _check_replacements(
    original: nn.Module, plan: PruningPlan, inputs: Any, forward: Forward
) -> None:
    """Say if it is the replaced modules that are at fault, with nothing pruned.

    What is compared with the rewritten model is the original as it is written, so this is only
    asked once the two differ.
    """
    dropped = _dropped(plan)
    if len(dropped) == len(plan.replacements):
        return
    measured = compare(
        lambda: skeleton(original, dropped),
        lambda: skeleton(original, plan.replacements),
        inputs,
        forward,
    )
    if measured.wrong:
        raise VerificationError(
            f"Modules that cannot shrink as written ({plan.replacements[0].path}, "
            f"{len(plan.replacements)} in all) were replaced by equal ones, but {measured.wrong[0]}"
            f" ({measured.dtype}, tolerance {measured.tolerance:g}). Nothing was changed. Please "
            "report the model."
        )


def _against_masked(
    original: nn.Module,
    smaller: nn.Module,
    plan: PruningPlan,
    inputs: Any,
    forward: Forward,
    *,
    only: Collection[tuple[str, int]] | None = None,
) -> Comparison:
    return compare(
        lambda: skeleton(original, reference_replacements(plan.replacements)),
        lambda: skeleton(smaller),
        inputs,
        forward,
        expected_values=silencing(original, plan, only=only),
        found_values=plain_gains(original, plan.tensors, as_they_are),
        around_expected=lambda masked: kept_statistics(masked, plan),
    )


def _verify_in_parts(
    original: nn.Module,
    plan: PruningPlan,
    groups: CouplingGroups,
    crossed: Mapping[str, str],
    inputs: Any,
    forward: Forward,
) -> VerificationReport:
    """Check the groups without a crossing by masking, the others by permutation."""
    rest = {n: np.asarray(drop) for n, drop in plan.drop.items() if n not in crossed}
    part = build_plan(groups, rest)
    smaller = skeleton(original, part.replacements)
    cut(smaller, part, UndoLog())
    measured = _against_masked(original, smaller, part, inputs, forward)
    if measured.wrong:
        _check_replacements(original, part, inputs, forward)
        raise _difference(measured)
    try:
        check_permutation(original, groups, list(crossed), inputs=inputs, forward=forward)
    except VerificationError:
        for name in crossed:  # which of them it is
            check_permutation(original, groups, [name], inputs=inputs, forward=forward)
        raise
    excluded = tuple(ExcludedGroup(name, reason, "permutation") for name, reason in crossed.items())
    return _report("permutation", measured, excluded)


def check_permutation(
    model: nn.Module,
    groups: CouplingGroups,
    names: Sequence[str],
    *,
    inputs: Any,
    forward: Forward,
    seed: int = 0,
) -> Comparison:
    """Permute the channels of groups, each in all of its members, and compare outputs.

    Raises:
        VerificationError: An output moved: an entry is missing from a group, or one too many.
    """
    chosen = [groups[name] for name in names]
    moved = compare(
        lambda: skeleton(model, groups.replacements),
        lambda: skeleton(model, groups.replacements),
        inputs,
        forward,
        found_values=permuting(chosen, seed),
    )
    if moved.wrong:
        which = f"group `{names[0]}`" if len(names) == 1 else f"{len(names)} groups"
        raise VerificationError(
            f"Permuting the channels of {which} in all of their tensors must leave the "
            f"outputs where they are, but {moved.wrong[0]} ({moved.dtype}, tolerance "
            f"{moved.tolerance:g}). Nothing was changed. Protect what moved (`protect=`) to go on, "
            "and please report the model."
        )
    return moved


def _crossed(plan: PruningPlan, *, everything: bool) -> dict[str, str]:
    """Map each pruned group that masking may be wrong for to the reason.

    Args:
        plan: The plan.
        everything: The masked original is not finite (a division by a zeroed norm, say), so it
            says nothing about any group.
    """
    pruned: list[GroupDecision] = [decision for decision in plan.groups if decision.drop]
    if everything:
        return {d.name: "zeroing channels makes the original's outputs NaN" for d in pruned}
    crossings = {
        d.name: [c for c in d.crossed_by if not any(known in c for known in HANDLED_OPERATORS)]
        for d in pruned
    }
    return {name: f"crossed by {found[0]}" for name, found in crossings.items() if found}


def _report(
    oracle: Oracle, measured: Comparison, excluded: tuple[ExcludedGroup, ...] = ()
) -> VerificationReport:
    return VerificationReport(
        oracle=oracle,
        dtype=measured.dtype,
        tolerance=measured.tolerance,
        outputs=() if oracle == "shapes" else measured.errors,
        excluded=excluded,
        repeated_choices=measured.repeated_choices,
    )


def _difference(measured: Comparison) -> VerificationError:
    worst = max(measured.wrong, key=lambda error: (bool(error.problem), error.relative))
    return VerificationError(
        f"The rewritten model must equal the original whose removed channels are zeroed, but "
        f"{worst} ({measured.dtype}, tolerance {measured.tolerance:g}; "
        f"{len(measured.wrong)} of {len(measured.errors)} outputs differ). Nothing was changed. "
        "Prune again with part of the model protected (`protect=`) to find the module, and please "
        "report it."
    )
