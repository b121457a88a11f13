"""Is the rewritten model right? Measured, not assumed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from taskprune.calling.forward import Forward
from taskprune.coupling.groups import CouplingGroups
from taskprune.errors import TraceError, VerificationError
from taskprune.plan.decisions import GroupDecision
from taskprune.plan.plan import PruningPlan, build_plan
from taskprune.replace import PLAIN, ModuleReplacement, dropping, reference_replacements
from taskprune.restore.caches import Caches
from taskprune.rewrite.comparison import Comparison, compare
from taskprune.rewrite.drawing import Draws
from taskprune.rewrite.loading import as_they_are
from taskprune.rewrite.masking import kept_statistics, reading_dims, silencing
from taskprune.rewrite.norms import HANDLED_OPERATORS
from taskprune.rewrite.permutation import permuting
from taskprune.rewrite.samples import first_samples
from taskprune.rewrite.surgery import UndoLog, cut, skeleton
from taskprune.rewrite.telling import by_modules
from taskprune.rewrite.verification_report import (
    ExcludedGroup,
    Oracle,
    Teller,
    VerificationReport,
)
from taskprune.rewrite.weight_norm import plain_gains


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
    which a batch size in the code may cause, all of them decide. Where outputs may be the same
    whatever is removed, further passes tell: with random weights, and by what modules return.

    Raises:
        TraceError: The original itself rejects the inputs.
        VerificationError: The rewritten model fails or differs.
    """
    draws, caches = _draws(original, plan), Caches(original, forward)
    case = _Case(original, smaller, plan, inputs, forward, draws, caches)
    part, samples = first_samples(original, inputs)
    if samples and samples[0] < samples[1]:
        with suppress(TraceError, VerificationError):
            report = _verified(replace(case, inputs=part), groups)
            if report.oracle == "masked" and not report.is_vacuous:
                return replace(report, samples=samples)
        samples = (samples[1], samples[1])
    return replace(_verified(case, groups), samples=samples)


@dataclass(frozen=True, eq=False, slots=True)
class _Case:
    """What is compared: the original, the rewritten model, and what they run on and hold."""

    original: nn.Module
    smaller: nn.Module
    plan: PruningPlan
    inputs: Any
    forward: Forward
    draws: Draws
    caches: Caches

    def against_masked(self, *, only: Collection[tuple[str, int]] | None = None) -> Comparison:
        """Compare the rewritten model with the masked original."""
        masked = silencing(self.original, self.plan, only=only)
        return compare(
            lambda: skeleton(self.original, reference_replacements(self.plan.replacements)),
            lambda: skeleton(self.smaller),
            self.inputs,
            self.forward,
            caches=self.caches,
            expected_values=self.draws.as_written(masked),
            found_values=plain_gains(
                self.original, self.plan.tensors, self.draws.pruned(self.plan)
            ),
            around_expected=lambda model: kept_statistics(model, self.plan),
        )

    def moved(self) -> frozenset[str]:
        """Return the outputs of the original that silencing channels moves."""
        masked = silencing(self.original, self.plan)
        measured = compare(
            lambda: skeleton(self.original, reference_replacements(self.plan.replacements)),
            lambda: skeleton(self.original, reference_replacements(self.plan.replacements)),
            self.inputs,
            self.forward,
            caches=self.caches,
            expected_values=self.draws.as_written(masked),
            found_values=self.draws.as_written(as_they_are),
            around_expected=lambda model: kept_statistics(model, self.plan),
        )
        return frozenset(error.path for error in measured.wrong)

    def by_modules(self) -> _Case:
        """Return the same with what modules return in place of outputs, of the kept channels."""
        replaced = tuple(record.path for record in self.plan.replacements)
        known = (
            dict(self.smaller.named_modules()).keys() & dict(self.original.named_modules()).keys()
        )
        whole = [
            name
            for name in known
            if name and not any(name == path or name.startswith(f"{path}.") for path in replaced)
        ]
        return replace(self, forward=by_modules(self.plan.activations, whole, self.forward))


def _verified(case: _Case, groups: CouplingGroups | None) -> VerificationReport:
    case, measured = _measured(case)
    if measured.only_expected_is_nan and groups is not None:
        # A zeroed channel that is divided by its own size, as in weight normalisation. It is
        # enough that nothing reads it, where parameters do the reading.
        unread = case.against_masked(only=reading_dims(groups))
        measured = measured if unread.wrong else unread
    plan = case.plan
    if not measured.wrong:
        report = replace(_report("masked", measured), drawn=case.draws.names)
        # Rounding that differs shows that what was cut reaches the output.
        rounded = {error.path for error in measured.errors if error.relative > 0}
        return _told(case, report, measured.may_be_silent - rounded) if plan.drop else report
    crossed = _crossed(plan, everything=measured.only_expected_is_nan)
    is_broken = any(error.problem for error in measured.wrong if not error.is_nan)
    if not crossed or is_broken or measured.only_found_is_nan:
        _check_replacements(case)
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
    return _verify_in_parts(case, groups, crossed)


def _measured(case: _Case) -> tuple[_Case, Comparison]:
    """Compare, with values as they are where the code does not run on drawn ones."""
    try:
        return case, case.against_masked()
    except (TraceError, VerificationError):
        case = replace(case, draws=Draws(case.original, nothing=True))
        return case, case.against_masked()


def _told(case: _Case, report: VerificationReport, suspects: frozenset[str]) -> VerificationReport:
    """Look further where outputs may be the same whatever is removed."""
    if not suspects:
        return report
    outputs = {error.path for error in report.outputs}
    silent = suspects - case.moved()
    if not silent:
        return report
    anew = replace(case, draws=_draws(case.original, case.plan, everything=True))
    if _compared_again(anew) is not None:
        silent -= anew.moved()
    told_by: Teller = "outputs" if outputs - suspects else "drawn weights"
    if silent == outputs:
        inside = [_compared_again(each.by_modules()) for each in (case, anew)]
        tells = any(len(found.errors) > len(found.may_be_silent) for found in inside if found)
        told_by = "modules" if tells else "nothing"
    named = tuple(error.path for error in report.outputs if error.path in silent)
    return replace(report, silent=named, told_by=told_by)


def _compared_again(case: _Case) -> Comparison | None:
    """Compare with other values, or in another place; ``None`` where that says nothing.

    Raises:
        VerificationError: The rewritten model differs.
    """
    try:
        measured = case.against_masked()
    except (TraceError, VerificationError):
        return None
    wrong = [error for error in measured.wrong if not error.is_nan]
    if measured.only_expected_is_nan:
        return None  # what is chosen by such values is another as well
    if wrong and not _crossed(case.plan, everything=False):
        raise _difference(measured)
    return None if measured.wrong else measured


def _draws(original: nn.Module, plan: PruningPlan, *, everything: bool = False) -> Draws:
    # A weight that is made plain is worked out from several tensors.
    plain = tuple(record.path for record in plan.replacements if record.kind == PLAIN)
    return Draws(original, everything=everything, apart=plain)


def _dropped(plan: PruningPlan) -> tuple[ModuleReplacement, ...]:
    """Return the parts of dropped tasks, without which the original is another function."""
    return tuple(record for record in plan.replacements if record.kind in dropping.KINDS)


def _check_replacements(case: _Case) -> None:
    """Say if it is the replaced modules that are at fault, with nothing pruned.

    What is compared with the rewritten model is the original as it is written, so this is only
    asked once the two differ.
    """
    original, plan = case.original, case.plan
    dropped = _dropped(plan)
    if len(dropped) == len(plan.replacements):
        return
    measured = compare(
        lambda: skeleton(original, dropped),
        lambda: skeleton(original, plan.replacements),
        case.inputs,
        case.forward,
        caches=case.caches,
    )
    if measured.wrong:
        raise VerificationError(
            f"Modules that cannot shrink as written ({plan.replacements[0].path}, "
            f"{len(plan.replacements)} in all) were replaced by equal ones, but {measured.wrong[0]}"
            f" ({measured.dtype}, tolerance {measured.tolerance:g}). Nothing was changed. Please "
            "report the model."
        )


def _verify_in_parts(
    case: _Case, groups: CouplingGroups, crossed: Mapping[str, str]
) -> VerificationReport:
    """Check the groups without a crossing by masking, the others by permutation."""
    original = case.original
    rest = {n: np.asarray(drop) for n, drop in case.plan.drop.items() if n not in crossed}
    part = build_plan(groups, rest)
    smaller = skeleton(original, part.replacements)
    cut(smaller, part, UndoLog())
    case = replace(case, smaller=smaller, plan=part)
    measured = case.against_masked()
    if measured.wrong:
        _check_replacements(case)
        raise _difference(measured)
    try:
        _permuted(case, groups, list(crossed))
    except VerificationError:
        for name in crossed:  # which of them it is
            _permuted(case, groups, [name])
        raise
    excluded = tuple(ExcludedGroup(name, reason, "permutation") for name, reason in crossed.items())
    return _report("permutation", measured, excluded)


def _permuted(case: _Case, groups: CouplingGroups, names: Sequence[str]) -> Comparison:
    return check_permutation(
        case.original,
        groups,
        names,
        inputs=case.inputs,
        forward=case.forward,
        draws=case.draws,
        caches=case.caches,
    )


def check_permutation(
    model: nn.Module,
    groups: CouplingGroups,
    names: Sequence[str],
    *,
    inputs: Any,
    forward: Forward,
    seed: int = 0,
    draws: Draws | None = None,
    caches: Caches | None = None,
) -> Comparison:
    """Permute the channels of groups, each in all of its members, and compare outputs.

    Both models hold what `draws` has for them; default: their values as they are. `caches` are
    those of the model's code, if known already.

    Raises:
        VerificationError: An output moved: an entry is missing from a group, or one too many.
    """
    chosen = [groups[name] for name in names]
    draws = draws or Draws(model, nothing=True)
    moved = compare(
        lambda: skeleton(model, groups.replacements),
        lambda: skeleton(model, groups.replacements),
        inputs,
        forward,
        caches=caches or Caches(model, forward),
        expected_values=draws.replaced(groups.replacements, as_they_are),
        found_values=draws.replaced(groups.replacements, permuting(chosen, seed)),
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
