"""Values in place of those that would hide a mistake.

A head of zeros returns zeros whatever it reads, fresh norms do not tell their channels apart, and a
NaN makes all that follows NaN. Whether a plan is right does not depend on values, so the two models
that are compared hold others there: the same in both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from zlib import crc32

import torch
from torch import Tensor, nn

from taskprune.plan.decisions import KeptEntries
from taskprune.plan.plan import PruningPlan
from taskprune.replace import ModuleReplacement, split_parameters
from taskprune.rewrite.loading import Values
from taskprune.rewrite.surgery import kept_entries_by_name, named_tensors, select

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
SPREAD = 0.25
"""By which fraction of itself a constant is moved, at most: it keeps its sign and its order."""


class Draws:
    """Random values for the tensors of a model that say nothing.

    These are constants of several entries, and entries that are NaN; where asked for, all entries
    of all parameters. Drawn by the tensor's name, so that all versions of a model get the same.

    Args:
        original: The model as it is written.
        everything: Draw all parameters.
        nothing: Leave all values as they are.
        apart: Modules whose tensors keep their values.
    """

    def __init__(
        self,
        original: nn.Module,
        *,
        everything: bool = False,
        nothing: bool = False,
        apart: Iterable[str] = (),
    ) -> None:
        self._original = original
        left = tuple(f"{path}." for path in apart)
        tensors = {} if nothing else named_tensors(original)
        self._tensors = {n: t for n, t in tensors.items() if not n.startswith(left)}
        self._parameters = dict(original.named_parameters())
        self._everything = everything
        self._is_constant: dict[str, bool] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors of the original that say nothing, among those asked for so far."""
        return tuple(name for name in self._tensors if name in self._is_constant)

    def as_written(self, then: Values) -> Values:
        """Return what the original's tensors hold: drawn, then changed further."""

        def values(name: str, data: Tensor) -> Tensor:
            return then(name, self._drawn(name, data, slice(None), ()))

        return values

    def replaced(self, replacements: Iterable[ModuleReplacement], then: Values) -> Values:
        """Return what tensors hold in the model with replacements in place."""
        return self._of_parts(replacements, (), then)

    def pruned(self, plan: PruningPlan) -> Values:
        """Return what the tensors of the rewritten model hold."""
        return self._of_parts(plan.replacements, plan.tensors, lambda _, data: data)

    def _of_parts(
        self,
        replacements: Iterable[ModuleReplacement],
        tensors: Iterable[KeptEntries],
        then: Values,
    ) -> Values:
        written = {
            part: (name, rows)
            for name, parts in split_parameters(self._original, replacements).items()
            for part, rows in parts
        }
        kept = kept_entries_by_name(tensors)

        def values(name: str, data: Tensor) -> Tensor:
            source, rows = written.get(name, (name, slice(None)))
            return then(name, self._drawn(source, data, rows, kept.get(name, ())))

        return values

    def _drawn(self, name: str, data: Tensor, rows: slice, kept: Iterable[KeptEntries]) -> Tensor:
        """Return the data of (a part of) a tensor with what says nothing drawn anew."""
        whole = self._tensors.get(name)
        if whole is None or whole.dtype not in _DTYPES or whole.layout != torch.strided:
            return data
        anew = self._everything and name in self._parameters
        if not anew and not self._says_nothing(name, whole.detach()):
            return data
        drawn = self._values(name, whole.detach(), anew=anew)[rows]
        drawn = (select(drawn, kept) if kept else drawn).to(data)
        if anew or self._is_constant[name]:
            return drawn
        return torch.where(data.isnan(), drawn, data)

    def _says_nothing(self, name: str, data: Tensor) -> bool:
        if name not in self._is_constant:
            low, high = (float(end) for end in data.aminmax()) if data.numel() else (0.0, 0.0)
            # A NaN anywhere is both ends; of a single entry there is nothing to mix up.
            if math.isnan(low):
                self._is_constant[name] = False
                return True
            if low != high or data.numel() == 1 or math.isinf(low):
                del self._tensors[name]
                return False
            self._is_constant[name] = True
        return True

    def _values(self, name: str, data: Tensor, *, anew: bool) -> Tensor:
        generator = torch.Generator().manual_seed(crc32(name.encode()))
        constant = 0.0 if anew or not self._is_constant[name] else float(data.reshape(-1)[0])
        if constant or data.ndim < 2:
            # Around the constant; scales, shifts, means and variances of norms around 1.
            share = torch.rand(data.shape, generator=generator, dtype=torch.float64, device="cpu")
            return (constant or 1.0) * (1 - SPREAD + 2 * SPREAD * share)
        scale = math.sqrt(data.shape[0] / data.numel())  # of what the entries of a row add up
        return scale * torch.randn(
            data.shape, generator=generator, dtype=torch.float64, device="cpu"
        )
