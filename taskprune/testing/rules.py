"""Is a channel rule right? Small nets around the operator, run through the oracles.

A rule is a claim about every net in which its operator appears. Here the operator is put between
layers, beside a shortcut, behind a concatenation, in front of a sum over channels and of a
flattening, in evaluation and in training; then channels are removed and reordered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, TypeAlias

import torch
from torch import Tensor, nn

from taskprune.calling.forward import call_inputs
from taskprune.cost import count_params, measure_params
from taskprune.coupling import CouplingGroups, couple
from taskprune.errors import (
    CouplingError,
    InputError,
    TaskPruneError,
    TraceError,
    UnsupportedOperatorError,
    VerificationError,
)
from taskprune.graph import trace
from taskprune.plan.plan import build_plan
from taskprune.restore.modes import modes_given_back
from taskprune.restore.process import preserved_rng
from taskprune.rewrite import apply_and_verify, apply_plan
from taskprune.rewrite.surgery import duplicate
from taskprune.rewrite.verification import check_permutation
from taskprune.testing.oracles import random_drop, randomise_

Operator: TypeAlias = nn.Module | Callable[..., Any]
"""A module, or a function of tensors such as ``torch.ops.mylib.swish``."""

Mode: TypeAlias = Literal["eval", "train"]

TOLERANCE = 1e-9
"""Largest relative error in float64. A right rule stays below 1e-12, a wrong one moves outputs."""


@dataclass(frozen=True, slots=True)
class RuleCheck:
    """What one net around the operator has shown.

    Attributes:
        net: Which net, in words.
        shapes: Shapes of the operator's inputs.
        mode: Whether it ran in evaluation or in training.
        n_channels: How many channels of the layers in front of it can go.
        reasons: Why the others stay.
        max_relative_error: The largest among all comparisons.
    """

    net: str
    shapes: tuple[tuple[int, ...], ...]
    mode: Mode
    n_channels: int
    reasons: tuple[str, ...]
    max_relative_error: float


@dataclass(frozen=True, slots=True)
class RuleReport:
    """All checks of one operator's rule; every one of them passed."""

    checks: tuple[RuleCheck, ...]

    @property
    def max_relative_error(self) -> float:
        """The largest error of all checks."""
        return max((check.max_relative_error for check in self.checks), default=0.0)

    def __str__(self) -> str:
        nets = ", ".join(dict.fromkeys(check.net for check in self.checks))
        return (
            f"{len(self.checks)} nets exact, largest relative error "
            f"{self.max_relative_error:.1e}: {nets}"
        )


def assert_rule_is_exact(
    operator: Operator,
    *shapes: Sequence[Sequence[int]],
    channel_dim: int = 1,
    may_freeze: bool = False,
    seed: int = 0,
) -> RuleReport:
    """Assert that the channel rules behind ``operator`` hold in nets of all kinds.

    ::

        assert_rule_is_exact(torch.ops.mylib.swish, [(2, 8, 6, 6)], [(2, 5, 4)])

    Args:
        operator: A module, or a function of tensors, that returns a tensor. A module may own
            parameters along its channels; they are given random values in a copy.
        *shapes: Each a list with the shape of every input of one call; dim 0 is the batch.
        channel_dim: Which dim of the inputs has the channels.
        may_freeze: Let pass a rule by which no channel in front of the operator can go. Such a
            rule is never wrong, but rarely what is wanted.
        seed: Of weights, inputs and removed channels.

    Returns:
        What was measured.

    Raises:
        AssertionError: The operator has no rule, or a wrong one: which net, which shapes, which
            group of channels, by how much, and what that points to.
        InputError: No shapes were given, or the operator does not run on them.
    """
    if not shapes:
        raise InputError(
            "Expected the shapes of at least one call, a list with one shape an input, such as "
            "`assert_rule_is_exact(op, [(2, 8, 6, 6)])`. Found none."
        )
    checks: list[RuleCheck] = []
    with preserved_rng():
        for call in shapes:
            sizes = tuple(tuple(int(n) for n in shape) for shape in call)
            for name, net in _nets(operator, sizes, channel_dim, seed):
                modes = _modes(net, sizes, seed)
                checks += [_Check(net, name, sizes, mode, seed).run() for mode in modes]
    if not may_freeze and not any(check.n_channels for check in checks):
        reasons = dict.fromkeys(reason for check in checks for reason in check.reasons)
        raise AssertionError(
            "The rule lets no channel in front of the operator go, in none of "
            f"{len(checks)} nets, because: {'; '.join(reasons) or 'unknown'}. Hand the axes of the "
            "inputs on to `ctx.produce`, or pass `may_freeze=True` if that is meant."
        )
    return RuleReport(tuple(checks))


# -- nets ------------------------------------------------------------------------------------------


class _Mix(nn.Module):
    """A linear layer along one dim of a tensor of any rank."""

    def __init__(self, inputs: int, outputs: int, dim: int) -> None:
        super().__init__()
        self.linear, self.dim = nn.Linear(inputs, outputs), dim

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.linear(x.movedim(self.dim, -1))
        return mixed.movedim(-1, self.dim)


class _Around(nn.Module):
    """Layers that make the operator's inputs, the operator, and what is done with its result."""

    def __init__(
        self, operator: Operator, shapes: tuple[tuple[int, ...], ...], dim: int, use: str,
        result: tuple[int, ...],
    ) -> None:  # fmt: skip
        super().__init__()
        self.operator, self.dim, self.use = operator, dim, use
        widths = [shape[dim] for shape in shapes]
        cuts = [max(1, width // 3) if use == "concatenated" else 0 for width in widths]
        self.makers = nn.ModuleList(
            _Mix(3, width - cut, dim) for width, cut in zip(widths, cuts, strict=True)
        )
        self.others = nn.ModuleList(_Mix(3, cut, dim) for cut in cuts if cut)
        if use == "beside a shortcut":
            self.shortcut = _Mix(3, widths[0], dim)
        flat = torch.Size(result[1:]).numel()
        self.head: nn.Module = (
            nn.Linear(flat, 2)
            if use == "flattened"
            else _Mix(1 if use == "summed" else result[dim], 2, dim)
        )

    def forward(self, *sources: Tensor) -> Any:
        inputs = [make(x) for make, x in zip(self.makers, sources, strict=True)]
        if self.use == "concatenated":
            pairs = zip(inputs, self.others, sources, strict=True)
            inputs = [torch.cat([a, make(x)], self.dim) for a, make, x in pairs]
        y = self.operator(*inputs)
        if self.use == "beside a shortcut":
            y = y + self.shortcut(sources[0])
        elif self.use == "twice":
            y = self.operator(y)
        elif self.use == "summed":
            y = y.sum(self.dim, keepdim=True)
        elif self.use == "flattened":
            y = y.flatten(1)
        return self.head(y)


def _nets(
    operator: Operator, shapes: tuple[tuple[int, ...], ...], dim: int, seed: int
) -> Iterator[tuple[str, nn.Module]]:
    """Yield nets around the operator, in words and built, randomised, in float64."""
    result = _result_shape(operator, shapes)
    uses = ["between layers", "concatenated", "summed", "flattened"]
    if result == shapes[0]:
        uses.append("beside a shortcut")
        if len(shapes) == 1:
            uses.append("twice")
    if not -len(result) <= dim < len(result):
        uses = ["flattened"]
    for use in uses:
        if use == "concatenated" and min(shape[dim] for shape in shapes) < 2:
            continue
        # A function is copied as itself; a callable object of a library may not allow copies.
        own = (
            duplicate(operator)
            if isinstance(operator, nn.Module)
            else lambda *inputs: operator(*inputs)
        )
        yield use, randomise_(_Around(own, shapes, dim, use, result).double().eval(), seed)


def _result_shape(operator: Operator, shapes: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    own = duplicate(operator).double().eval() if isinstance(operator, nn.Module) else operator
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
        for shape in shapes
    ]
    try:
        with torch.no_grad():
            result = own(*inputs)
    except Exception as error:
        raise InputError(
            f"Expected an operator that takes tensors of shapes {list(shapes)} in float64. It "
            f"raised {type(error).__name__}: {error}"
        ) from error
    if not isinstance(result, Tensor):
        raise InputError(
            f"Expected an operator that returns one tensor. Found {type(result).__name__}: wrap it "
            "in a function that returns one of its results, and check one after the other."
        )
    return tuple(result.shape)


def _sources(net: nn.Module, shapes: tuple[tuple[int, ...], ...], seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    dim = int(net.dim)  # type: ignore[arg-type]
    sources = []
    for shape in shapes:
        sizes = list(shape)
        sizes[dim] = 3
        sources.append(torch.randn(sizes, generator=generator, dtype=torch.float64, device="cpu"))
    return tuple(sources)


def _modes(net: nn.Module, shapes: tuple[tuple[int, ...], ...], seed: int) -> list[Mode]:
    """Return the modes to check: not training, where the operator is random then."""
    x = _sources(net, shapes, seed)
    with torch.no_grad():
        first, second = (_trained(duplicate(net), x) for _ in range(2))
    return ["eval", "train"] if torch.equal(first, second) else ["eval"]


def _trained(net: nn.Module, x: Any) -> Any:
    """Run in training mode; as a `forward=`, whatever mode the caller has set."""
    with modes_given_back(net):
        return call_inputs(net.train(), x)


# -- one net ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Check:
    """The oracles on one net."""

    net: nn.Module
    name: str
    shapes: tuple[tuple[int, ...], ...]
    mode: Mode
    seed: int

    def run(self) -> RuleCheck:
        x = _sources(self.net, self.shapes, self.seed)
        forward = _trained if self.mode == "train" else call_inputs
        groups = self._coupled(x)
        worst = 0.0
        for group in groups:
            try:
                moved = check_permutation(
                    self.net, groups, [group.name], inputs=x, forward=forward, seed=self.seed
                )
            except TaskPruneError as error:
                self._fail(
                    f"reordering the channels of group `{group.name}` moves the output",
                    "An axis of a result is handed on in another order than the operator's, or an "
                    "argument is not tied to what it is combined with",
                    error,
                )
            worst = max([worst, *(error.relative for error in moved.errors)])
        for ratio in (0.3, 0.6):
            plan = build_plan(groups, random_drop(groups, ratio, self.seed))
            try:
                report = apply_and_verify(
                    self.net, plan, example_inputs=x, forward=forward, groups=groups
                )[1]
            except TaskPruneError as error:
                self._fail(
                    f"removing {ratio:.0%} of the channels is not the same as zeroing them",
                    "The operator mixes channels without `ctx.cross`, its result is not zero where "
                    "its inputs are although `zero=True` says so, or a size in the call does not "
                    "follow (`ctx.constrain`)",
                    error,
                )
            assert report is not None
            worst = max(worst, report.max_relative_error)
            smaller = apply_plan(self.net, plan, verify=False)
            predicted, found = count_params(groups, plan.kept), measure_params(smaller)
            if predicted != found:
                self._fail(f"{predicted} parameters were predicted, {found} found", "", None)
        if worst > TOLERANCE:
            self._fail(f"outputs move by {worst:.1e} (tolerance {TOLERANCE:g})", "", None)
        makers = [group for group in groups if _is_made_in_front(group.name)]
        reasons = [
            f"{reason.operator or 'the net'}: {reason.detail}"
            for group in groups.frozen
            if _is_made_in_front(group.name)
            for reason in group.reasons
        ]
        return RuleCheck(
            self.name,
            self.shapes,
            self.mode,
            sum(group.n_channels for group in makers),
            tuple(dict.fromkeys(reasons)),
            worst,
        )

    def _coupled(self, x: tuple[Tensor, ...]) -> CouplingGroups:
        try:
            return couple(trace(self.net, x, modes=self.mode), strict=True)
        except UnsupportedOperatorError as error:
            self._fail("an operator has no rule", "", error)
        except CouplingError as error:
            self._fail("the rule contradicts what was traced", "", error)
        except TraceError as error:
            raise InputError(
                f"The operator does not run {self.name} on shapes {list(self.shapes)}: {error}"
            ) from error

    def _fail(self, what: str, hint: str, error: Exception | None) -> NoReturn:
        told = f" {hint}." if hint else ""
        detail = f"\n{error}" if error is not None else ""
        if isinstance(error, VerificationError) and error.__cause__ is not None:
            detail += f"\n{type(error.__cause__).__name__}: {error.__cause__}"
        raise AssertionError(
            f"In the net `{self.name}`, inputs {[list(s) for s in self.shapes]}, {self.mode} mode: "
            f"{what}.{told}{detail}"
        ) from error


def _is_made_in_front(group: str) -> bool:
    return group.startswith(("makers.", "others."))
