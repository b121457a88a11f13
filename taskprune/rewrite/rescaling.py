"""Weights that come out as others because a statistic of them loses entries.

A filter that is divided by its norm, or standardised, is another filter once it reads fewer
channels. Zeroing what it reads no longer does not show that: the statistic of the masked original
loses the same entries. Here the channels are silenced where they pass, and all that goes into the
statistic stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from taskprune.calling.forward import Forward
from taskprune.coupling.groups import CouplingGroups, WeightStatistic
from taskprune.errors import TraceError, VerificationError
from taskprune.plan.decisions import KeptEntries
from taskprune.plan.plan import PruningPlan
from taskprune.replace import reference_replacements
from taskprune.restore.caches import Caches
from taskprune.rewrite.comparison import compare
from taskprune.rewrite.masking import kept_statistics, silencing
from taskprune.rewrite.surgery import skeleton

NEGLIGIBLE = 1e-5
"""Change of the outputs that goes without saying: what rounding a gain to float32 may do."""


@dataclass(frozen=True, slots=True)
class RescaledWeights:
    """Kept entries of weights that pruning changes.

    Attributes:
        names: The parameters they are computed from.
        operators: What takes the statistics, as ``"operator at module"``.
        change: How far off outputs are, in parts of their size, from those of the original whose
            channels are silenced where they pass; ``None`` where that cannot be run.
    """

    names: tuple[str, ...]
    operators: tuple[str, ...]
    change: float | None

    def __str__(self) -> str:
        more = f" and {len(self.names) - 3} more" if len(self.names) > 3 else ""
        off = (
            "how far that moves the outputs could not be measured"
            if self.change is None
            else f"outputs are off by {self.change:.2g} of their size from those of the original "
            "whose removed channels are silent"
        )
        return (
            f"What stays of {', '.join(self.names[:3])}{more} comes out as another weight, since "
            f"the code computes a statistic of it ({self.operators[0]}): {off}."
        )


def rescaled_weights(
    original: nn.Module,
    smaller: nn.Module,
    plan: PruningPlan,
    *,
    inputs: Any,
    forward: Forward,
    groups: CouplingGroups,
) -> RescaledWeights | None:
    """Measure what statistics of weights make of the entries that stay; ``None`` if nothing.

    Args:
        original: The model as it is written; it is not changed.
        smaller: What the plan makes of it.
        plan: The plan.
        inputs: The example inputs.
        forward: ``(model, inputs) -> outputs``.
        groups: The groups that the plan was made from.
    """
    found = [s for name in plan.drop if name in groups for s in groups[name].statistics]
    if not found:
        return None
    try:
        change: float | None = _change(original, smaller, plan, found, inputs, forward)
    except (TraceError, VerificationError, _NotSilencedError):
        change = None
    if change is not None and change <= NEGLIGIBLE:
        return None
    weights = dict.fromkeys(s.name for s in found if len(plan.shapes[s.name]) > 1)
    return RescaledWeights(tuple(weights), tuple(dict.fromkeys(s.operator for s in found)), change)


class _NotSilencedError(Exception):
    """It is not known where the channels of a weight pass."""


def _change(
    original: nn.Module,
    smaller: nn.Module,
    plan: PruningPlan,
    statistics: list[WeightStatistic],
    inputs: Any,
    forward: Forward,
) -> float:
    owners = {_owner(s.name) for s in statistics}
    others = {(k.name, k.dim) for k in plan.tensors if _owner(k.name) not in owners}
    # A filter of zeros has no norm to be divided by, so that all of such a layer stays.
    weights = [
        kept
        for kept in plan.tensors
        if _owner(kept.name) in owners and len(plan.shapes[kept.name]) > 1
    ]

    @contextmanager
    def silenced(model: nn.Module) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(kept_statistics(model, plan))
            for kept in weights:
                stack.callback(_silence(model, kept))
            yield

    measured = compare(
        lambda: skeleton(original, reference_replacements(plan.replacements)),
        lambda: skeleton(smaller),
        inputs,
        forward,
        caches=Caches(original, forward),
        expected_values=silencing(original, plan, only=others),
        around_expected=silenced,
    )
    if any(error.problem for error in measured.errors):
        raise _NotSilencedError
    return max((error.relative for error in measured.errors), default=0.0)


def _owner(name: str) -> str:
    """Return the path of the layer that a tensor belongs to."""
    path, chain, _ = name.partition(".parametrizations.")
    return path if chain else name.rpartition(".")[0]


def _silence(model: nn.Module, kept: KeptEntries) -> Callable[[], None]:
    """Silence the channels of a dim of a layer's weight where they enter or leave the layer."""
    module = dict(model.named_modules()).get(_owner(kept.name))
    if not isinstance(module, _ConvNd | nn.Linear) or kept.dim > 1:
        raise _NotSilencedError
    rank = len(module.kernel_size) if isinstance(module, _ConvNd) else 0
    entries = set(range(kept.size)) - set(kept.keep)
    times = module.groups if isinstance(module, _ConvNd) and kept.dim == 1 else 1
    gone = torch.tensor(
        [g * kept.size + e for g in range(times) for e in sorted(entries)], device="cpu"
    )

    def zeroed(tensor: Tensor) -> Tensor:
        return tensor.index_fill(tensor.dim() - rank - 1, gone.to(tensor.device), 0)

    if (kept.dim == 1) != isinstance(module, _ConvTransposeNd):
        hook = module.register_forward_pre_hook(lambda _, args: (zeroed(args[0]), *args[1:]))
        return hook.remove
    return module.register_forward_hook(lambda _, __, output: zeroed(output)).remove
