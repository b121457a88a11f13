"""Running two models on the same inputs and measuring how far their outputs are apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from taskprune.calling.forward import Forward
from taskprune.calling.outputs import SINGLE, flatten_outputs
from taskprune.errors import TraceError, VerificationError
from taskprune.restore.caches import Caches
from taskprune.restore.lending import lent
from taskprune.restore.process import preserved_rng, without_cached_casts, without_fast_path
from taskprune.rewrite.choices import RecordedChoices, RepeatedChoices
from taskprune.rewrite.loading import Loading, Values, as_they_are
from taskprune.rewrite.samples import cast_floats
from taskprune.rewrite.telling import may_be_silent

Context: TypeAlias = Callable[[nn.Module], AbstractContextManager[Any]]
"""Makes a context for a model to run in."""

TOLERANCE: Mapping[torch.dtype, float] = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.float16: 2e-2,
    torch.bfloat16: 5e-2,
}
"""Largest error relative to the output's largest value, by the dtype both models run in.

A masked and a pruned model add up the same numbers, with and without zeros between them, in another
order. That moves a result by some 1e3 rounding steps in a deep network (a step is 2e-16, 1e-7, 1e-3
and 8e-3); a channel missing or too many moves it by a few percent, which half precision hardly
tells apart. That is why models are compared in float64 wherever they can run in it.
"""

_NOT_FINITE = "has infinities or NaN in one model only"

SMALLEST_SCALE = 1e-6
"""An output that is smaller than this everywhere is compared by its absolute error over this."""


@dataclass(frozen=True, slots=True)
class OutputError:
    """How far two versions of one output are apart.

    Attributes:
        path: Where it lies in the outputs, such as ``detection.boxes``; a lone one is ``output``.
        max_abs: Largest absolute difference; for integers and booleans, between their values.
        relative: The same over the largest absolute value of the expected output.
        problem: What cannot be put in a number, such as another shape; empty if nothing.
    """

    path: str
    max_abs: float
    relative: float
    problem: str = ""

    def exceeds(self, tolerance: float) -> bool:
        """Return whether the outputs count as different."""
        return bool(self.problem) or not self.relative <= tolerance

    @property
    def is_nan(self) -> bool:
        """Whether only one of the two holds an infinity or NaN somewhere."""
        return self.problem == _NOT_FINITE

    def __str__(self) -> str:
        name = "the output" if self.path == SINGLE else f"output `{self.path}`"
        measure = f"is off by {self.max_abs:.3g} ({self.relative:.2g} of its size)"
        return f"{name} {self.problem or measure}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models on the same inputs.

    Attributes:
        errors: One per output.
        dtype: What both ran in, such as ``float64``.
        tolerance: The relative error that goes as equal in this dtype.
        only_expected_is_nan: The first model's outputs are not finite, the second's are.
        only_found_is_nan: The other way round.
        repeated_choices: How many discrete choices met ties and were made to agree.
        may_be_silent: Outputs that might be the same whatever the model computes.
    """

    errors: tuple[OutputError, ...]
    dtype: str
    tolerance: float
    only_expected_is_nan: bool
    only_found_is_nan: bool
    repeated_choices: int
    may_be_silent: frozenset[str] = frozenset()

    @property
    def wrong(self) -> tuple[OutputError, ...]:
        """The outputs that differ."""
        return tuple(error for error in self.errors if error.exceeds(self.tolerance))


@without_cached_casts()
def compare(
    make_expected: Callable[[], nn.Module],
    make_found: Callable[[], nn.Module],
    inputs: Any,
    forward: Forward,
    *,
    caches: Caches,
    expected_values: Values = as_they_are,
    found_values: Values = as_they_are,
    around_expected: Context = nullcontext,
) -> Comparison:
    """Run two models on the same inputs, in float64 if the first can, and compare the outputs.

    Where outputs differ, the second runs again with tied discrete choices made to agree. One model
    is made at a time, and of the first only the outputs stay.

    Args:
        make_expected: Makes a copy of the reference to run, which may borrow its parameters.
        make_found: Makes a copy of the model in question.
        inputs: The example inputs.
        forward: ``(model, inputs) -> outputs``.
        caches: What the code of both keeps outside of module instances.
        expected_values: What the tensors of the reference hold.
        found_values: What those of the model in question hold.
        around_expected: Makes the context in which the reference runs.

    Raises:
        TraceError: The reference rejects the inputs.
        VerificationError: The model in question fails.
    """
    choices = RecordedChoices()
    wanted, dtype, coarsest = _run_reference(
        make_expected, inputs, forward, caches, expected_values, around_expected, choices
    )
    tolerance = TOLERANCE[coarsest]
    repeated = RepeatedChoices(choices, tolerance)
    try:
        got = run(make_found(), inputs, forward, caches, dtype=dtype, values=found_values)
        errors = output_errors(wanted, got)
        if choices.indices and any(error.exceeds(tolerance) for error in errors):
            got = run(
                make_found(),
                inputs,
                forward,
                caches,
                dtype=dtype,
                values=found_values,
                around=(lambda _: repeated,),
            )
            errors = output_errors(wanted, got)
    except Exception as error:
        raise VerificationError(
            f"The rewritten model fails on the example inputs: {type(error).__name__}: {error}. "
            "Nothing was changed. The code uses a size that does not follow the pruning; protect "
            "the module that raised (`protect=`) to go on, and please report the model."
        ) from error
    found_is_finite, expected_is_finite = all_finite(got), all_finite(wanted)
    return Comparison(
        errors=errors,
        dtype=str(coarsest).removeprefix("torch."),
        tolerance=tolerance,
        only_expected_is_nan=found_is_finite and not expected_is_finite,
        only_found_is_nan=expected_is_finite and not found_is_finite,
        repeated_choices=repeated.n_repeated,
        may_be_silent=frozenset(path for path, tensor in wanted.items() if may_be_silent(tensor)),
    )


def _run_reference(
    make: Callable[[], nn.Module],
    inputs: Any,
    forward: Forward,
    caches: Caches,
    values: Values,
    around: Context,
    choices: RecordedChoices,
) -> tuple[dict[str, Tensor], torch.dtype | None, torch.dtype]:
    """Return the outputs, the dtype asked for (``None``: the model's own), the coarsest in use."""
    model = make()
    dtypes = (torch.float64, None) if _runs_in_double(model) else (None,)
    for dtype in dtypes:
        choices.indices.clear()
        try:
            outputs = run(
                model,
                inputs,
                forward,
                caches,
                dtype=dtype,
                values=values,
                around=(around, lambda _: choices),
            )
            return outputs, dtype, dtype or _coarsest(model)
        except Exception as error:
            # Some forwards insist on a dtype: they cast to float32, or make inputs themselves.
            if dtype is None:
                raise TraceError(
                    f"The original model rejects the example inputs: {type(error).__name__}: "
                    f"{error}. Pass inputs it takes, or `forward=lambda model, inputs: ...`."
                ) from error
            model = make()
    raise AssertionError("unreachable: the last dtype either returns or raises")


def _runs_in_double(model: nn.Module) -> bool:
    return {p.device.type for p in model.parameters()} <= {"cpu", "cuda"}


def _coarsest(model: nn.Module) -> torch.dtype:
    """Return the least precise dtype among the parameters."""
    # A model that had to stay in its own dtype computes in float32 somewhere, at best.
    dtypes = {torch.float32, *(p.dtype for p in model.parameters() if p.dtype in TOLERANCE)}
    return max(dtypes, key=lambda dtype: TOLERANCE[dtype])


def run(
    model: nn.Module,
    inputs: Any,
    forward: Forward,
    caches: Caches,
    *,
    dtype: torch.dtype | None,
    values: Values = as_they_are,
    around: Sequence[Context] = (),
) -> dict[str, Tensor]:
    """Run ``model`` in eval mode, without gradients, from a fixed seed; the RNG is given back.

    The fused inference path of attention, which not both of two models may be able to take, is
    left aside: positions of padding are computed like any other.

    Args:
        model: A model of one's own, which is put in eval mode. It may borrow its parameters.
        inputs: The example inputs.
        forward: ``(model, inputs) -> outputs``.
        caches: What its code keeps outside of module instances; also of a model of equal code.
        dtype: What to compute in; ``None`` is what model and inputs have.
        values: What the tensors of the model hold meanwhile.
        around: Make the contexts to run the forward in, from the model.
    """
    model.eval()
    if dtype is not None:
        inputs = cast_floats(inputs, dtype)
    with preserved_rng(), _default_dtype(dtype), without_fast_path(), torch.no_grad():
        torch.manual_seed(0)
        with lent(inputs), ExitStack() as stack:
            stack.enter_context(caches.aside())
            stack.enter_context(Loading(model, dtype, values))
            if dtype == torch.float64:
                stack.enter_context(InDouble())
            for context in around:
                stack.enter_context(context(model))
            outputs = flatten_outputs(forward(model, inputs))
            # Before the weights are given back: one of them may be an output.
            return {path: tensor.clone() for path, tensor in outputs.items()}


@contextmanager
def _default_dtype(dtype: torch.dtype | None) -> Iterator[None]:
    # Tensors that a forward makes itself (grids, anchors) follow the default.
    before = torch.get_default_dtype()
    try:
        if dtype is not None:
            torch.set_default_dtype(dtype)
        yield
    finally:
        torch.set_default_dtype(before)


def output_errors(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> tuple[OutputError, ...]:
    """Compare two sets of outputs, path by path."""
    errors = [_output_error(path, tensor, found.get(path)) for path, tensor in expected.items()]
    nan = float("nan")
    errors += [OutputError(path, nan, nan, "is new") for path in found if path not in expected]
    return tuple(errors)


def _output_error(path: str, expected: Tensor, found: Tensor | None) -> OutputError:
    nan = float("nan")
    if found is None:
        return OutputError(path, nan, nan, "is gone")
    if expected.shape != found.shape:
        shapes = f"has shape {tuple(found.shape)} in place of {tuple(expected.shape)}"
        return OutputError(path, nan, nan, shapes)
    if not expected.numel():
        return OutputError(path, 0.0, 0.0)
    wide = torch.complex128 if expected.is_complex() or found.is_complex() else torch.float64
    a, b = expected.to("cpu", wide), found.to("cpu", wide)
    # Infinities and NaN are fine where both have the same.
    same = (a == b) | (torch.isnan(a) & torch.isnan(b))
    difference = torch.where(same, torch.zeros_like(a), a - b).abs()
    if not torch.isfinite(difference).all():
        return OutputError(path, nan, nan, _NOT_FINITE)
    scale = torch.where(torch.isfinite(a), a, torch.zeros_like(a)).abs().max().item()
    max_abs = difference.max().item()
    return OutputError(path, max_abs, max_abs / max(scale, SMALLEST_SCALE))


def all_finite(outputs: Mapping[str, Tensor]) -> bool:
    """Return whether no output holds an infinity or NaN."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in outputs.values())


_NARROW = frozenset({torch.float32, torch.float16, torch.bfloat16})
_CASTS: Mapping[Any, Callable[..., Any]] = {
    Tensor.float: Tensor.double,
    Tensor.half: Tensor.double,
    Tensor.bfloat16: Tensor.double,
}
_BY_NAME = dict.fromkeys(
    ("torch.FloatTensor", "torch.HalfTensor", "torch.BFloat16Tensor"), "torch.DoubleTensor"
)


class InDouble(TorchFunctionMode):
    """Runs what asks for a narrower floating-point dtype in float64.

    Many norms, softmaxes and position tables compute in float32 whatever the model's dtype. Two
    models that add up the same numbers in another order then differ by a float32 rounding step, ten
    thousand times what their comparison in float64 allows.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run ``func`` with float64 in place of every narrower dtype among its arguments."""
        # A cast of another tensor's dtype (`type_as`, `to(other)`) finds float64 there already.
        if func is Tensor.type:
            args = tuple(_BY_NAME.get(v, v) if isinstance(v, str) else v for v in args)
        return _CASTS.get(func, func)(
            *(_widened(value) for value in args),
            **{name: _widened(value) for name, value in (kwargs or {}).items()},
        )


def _widened(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value in _NARROW else value
