"""Outputs as tasks: random projections say how much an output changes, and need no labels."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as processes

from taskprune.calling.forward import Forward, call_batch
from taskprune.calling.outputs import flatten_outputs, resolve_paths
from taskprune.calling.task import Task
from taskprune.errors import InputError, LossError
from taskprune.importance.calibration import differentiable, run_forward
from taskprune.importance.distributed import several_processes
from taskprune.restore.lending import lent

_log = logging.getLogger("taskprune")

FLAT = 16
"""Rounding errors of its largest value that an output may vary by and still count as constant."""

SEEDS_OF_A_PROCESS = 1_000_003
"""How far apart the seeds of two processes are, so that their projections are independent."""


class Projection:
    r"""A loss whose gradients tell by how much outputs change; made anew for every batch.

    .. math:: L = \frac{1}{\sqrt{n}} \sum_o \frac{\langle v_o, o \rangle}
              {\sqrt{\mathrm{numel}(o)} \; \mathrm{std}(o)}, \qquad v_o \sim N(0, 1)

    over the *n* outputs *o* of a task. To first order the expected square of an effect on it is the
    mean squared change of the outputs, in shares of their variance: a diagonal of the Gauss-Newton
    matrix by random probes (Hutchinson, Communications in Statistics 19, 1990). Factors and
    constants in an output change nothing. The value of the loss itself means nothing.

    Draws from a generator of its own, on the CPU, so that all devices see the same. Entries that
    are not finite, such as those of a mask, are left out, and so are outputs that are no
    floating-point tensors or that no gradient reaches. ``None`` where what is left is constant.

    Args:
        paths: Outputs, see :func:`taskprune.calling.flatten_outputs`; a prefix takes all below it.
        seed: Of the generator.

    Raises:
        InputError: The model does not return one of them.
        LossError: Nothing is left.
    """

    def __init__(self, paths: Iterable[str], seed: int) -> None:
        self.paths = tuple(paths)
        rank = processes.get_rank() if several_processes() else 0
        self.generator = torch.Generator().manual_seed(seed + SEEDS_OF_A_PROCESS * rank)

    def __call__(self, outputs: Any, _batch: Any) -> Tensor | None:
        fit = self._fit(outputs)
        parts = [part for output in fit if (part := self._projected(output, None)) is not None]
        return sum(parts[1:], parts[0]) / math.sqrt(len(fit)) if parts else None

    def _fit(self, outputs: Any) -> list[Tensor]:
        """Return the outputs whose change can be measured."""
        flat = flatten_outputs(outputs)
        paths = resolve_paths({"projected": self.paths}, flat)["projected"]
        fit = [flat[path] for path in paths if not _unfit(flat[path])]
        if not fit:
            raise LossError(
                f"Expected outputs whose change can be measured. Of {_named(paths)} none is a "
                "floating-point tensor that depends on the model's parameters."
            )
        return fit

    def _projected(self, output: Tensor, weights: Tensor | None) -> Tensor | None:
        """Return the projection of one output, whose entries count by weights of any scale."""
        values = output.to(torch.promote_types(output.dtype, torch.float32))
        probe = torch.randn(
            values.shape, generator=self.generator, dtype=values.dtype, device="cpu"
        ).to(values.device)
        finite = values.isfinite()
        count, seen = int(finite.sum()), values.detach()[finite]
        spread = _spread(seen)
        if spread == 0:
            return None
        if weights is not None:
            shares = weights[finite] / weights[finite].mean()
            probe = probe * (weights / weights[finite].mean()).sqrt()
            spread = math.sqrt(float((shares * (seen - (shares * seen).mean()).square()).mean()))
            if spread == 0:
                return None
        inner = (probe * values.where(finite, 0.0)).sum()
        return inner / (math.sqrt(count) * spread)


class LossProjection(Projection):
    r"""A projection in which an output's entries count by what a loss says of them.

    As :class:`Projection`, with :math:`v_o \sim N(0, w_o)` and the spread of the outputs weighted
    likewise, where

    .. math:: w_o = \phi + \frac{|\partial L / \partial o|}{\mathrm{mean} |\partial L / \partial o|}

    A background that fills nearly all of an output then does not outvote the few entries that a
    loss looks at, and what a loss has given up on still counts a little.

    Args:
        paths: Outputs of the task; ``None`` for all that its loss depends on.
        floor: :math:`\phi`, what every entry counts.
        seed: Of the generator.
    """

    def __init__(self, paths: Iterable[str] | None, *, floor: float, seed: int) -> None:
        super().__init__(paths or (), seed)
        self.floor = floor

    def __call__(self, outputs: Any, loss: Tensor) -> Tensor | None:
        """Return the projection of outputs, given the loss that was made of them."""
        flat = flatten_outputs(outputs)
        paths = resolve_paths({"probed": self.paths}, flat)["probed"] if self.paths else flat
        distinct = {id(flat[path]): flat[path] for path in paths if not _unfit(flat[path])}
        fit = list(distinct.values())
        found = torch.autograd.grad(loss, fit, retain_graph=True, allow_unused=True) if fit else ()
        parts = [
            part
            for output, gradient in zip(fit, found, strict=True)
            if gradient is not None
            and (part := self._projected(output, self._weights(output, gradient))) is not None
        ]
        return sum(parts[1:], parts[0]) / math.sqrt(len(parts)) if parts else None

    def _weights(self, output: Tensor, gradient: Tensor) -> Tensor | None:
        size = gradient.abs().to(torch.promote_types(output.dtype, torch.float32))
        size = size.where(size.isfinite(), 0.0)
        mean = size.mean()
        return self.floor + size / mean if bool(mean > 0) else None


def output_tasks(
    model: nn.Module, batch: Any, *, forward: Forward = call_batch, seed: int = 0
) -> dict[str, Task]:
    """Return a task for every output of a model, with no labels and no loss to write.

    Runs the model once; model, batch and random generators are left as they were. What cannot be
    measured on this batch is left out and logged: integers, outputs that no gradient reaches,
    constants, what holds nothing finite. A tensor that is returned twice is one output.

    Args:
        model: The model.
        batch: One batch, without labels.
        forward: ``(model, batch) -> outputs``.
        seed: Of the projections; each task has a generator of its own.

    Returns:
        ``{output path: its task}``, in the order of the outputs, each with a :class:`Projection`
        for its loss and its path declared.

    Raises:
        TraceError: The model rejects the batch.
        InputError: There is no output whose change can be measured.
    """
    with lent(batch), differentiable(model):
        flat = flatten_outputs(run_forward(model, batch, forward, where="the first batch"))
        distinct = {id(output): path for path, output in reversed(flat.items())}
        reasons = {
            path: _unfit(output) or _constant(output)
            for path, output in flat.items()
            if distinct[id(output)] == path
        }
    left_out = {path: reason for path, reason in reasons.items() if reason}
    told = ", ".join(f"`{path}` ({reason})" for path, reason in left_out.items())
    fit = [path for path, reason in reasons.items() if not reason]
    if not fit:
        raise InputError(
            f"Expected at least one output whose change can be measured. Found {told or 'none'}. "
            "Pass `tasks=` with losses, or a batch with more samples."
        )
    if told:
        as_usual = set(left_out.values()) == {_INTEGERS}
        level = logging.INFO if as_usual else logging.WARNING
        _log.log(level, "Outputs that nothing is measured by: %s", told)
    return {
        path: Task(Projection((path,), seed + number), outputs=path)
        for number, path in enumerate(fit)
    }


_INTEGERS = "no floating-point numbers"


def _unfit(output: Tensor) -> str:
    """Say why no gradient can tell how an output changes; nothing if one can."""
    if not output.is_floating_point():
        return _INTEGERS
    return "" if output.requires_grad else "no gradient reaches it"


def _constant(output: Tensor) -> str:
    finite = output.isfinite()
    if not bool(finite.any()):
        return "nothing finite in it"
    values = output.detach().to(torch.promote_types(output.dtype, torch.float32))
    return "" if _spread(values[finite]) else "constant on this batch"


def _spread(values: Tensor) -> float:
    """Return the standard deviation of values, 0 where it is rounding or there are none."""
    if not values.numel():
        return 0.0
    spread = float(values.std(correction=0))
    rounding = torch.finfo(values.dtype).eps * float(values.abs().max())
    return spread if spread > FLAT * rounding else 0.0


def _named(paths: Iterable[str]) -> str:
    return ", ".join(f"`{path}`" for path in paths)
