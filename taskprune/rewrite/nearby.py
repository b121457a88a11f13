"""How long the dims of tensors below a module are before and after a plan."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.conv import _ConvNd

from taskprune.plan.plan import PruningPlan


@dataclass(frozen=True, slots=True)
class SizedDim:
    """A dim of a parameter or buffer.

    Attributes:
        makes: Whether it may count channels that the module makes.
        reads: Whether it may count channels that the module reads.
        old: Its length in the original.
        new: Its length after pruning.
    """

    makes: bool
    reads: bool
    old: int
    new: int


class NearbySizes:
    """Looks up the sizes of the tensors of a module and of what is in it.

    Args:
        model: The original, with or without the plan's replacements.
        plan: The plan.
    """

    def __init__(self, model: nn.Module, plan: PruningPlan) -> None:
        self._near: dict[str, list[SizedDim]] = {}
        self._below: dict[str, list[SizedDim]] = {}
        modules = dict(model.named_modules())
        groups = {c.module: c.value for c in plan.attributes if c.path == ("groups",)}
        after = plan.pruned_shapes
        for name, shape in plan.shapes.items():
            owner, _, tensor = name.rpartition(".")
            module = modules.get(owner)
            dims = _dims(module, tensor, shape, after[name], groups.get(owner))
            self._near.setdefault(owner, []).extend(dims)
            if owner:
                self._near.setdefault(owner.rpartition(".")[0], []).extend(dims)
            while True:
                self._below.setdefault(owner, []).extend(dims)
                if not owner:
                    break
                owner = owner.rpartition(".")[0]
        self._returned: dict[tuple[str, int], set[int]] = {}
        for kept in plan.activations:
            self._returned.setdefault((kept.name, kept.size), set()).add(len(kept.keep))

    def near(self, module: str) -> list[SizedDim]:
        """Return the dims of a module's own tensors and of its direct children's."""
        return self._near.get(module, [])

    def below(self, module: str) -> list[SizedDim]:
        """Return the dims of all tensors below a module."""
        return self._below.get(module, [])

    def returned(self, module: str, old: int) -> int | None:
        """Return the new length of the one dim of length `old` that shrinks in its output."""
        found = self._returned.get((module, old), set())
        return next(iter(found)) if len(found) == 1 else None


def agreed(dims: Iterable[SizedDim], *, or_same: bool = False) -> int | str | None:
    """Return the new length that all of these dims of one length get.

    Why there is none, where they differ; ``None`` where none shrinks (unless `or_same`).
    """
    found = {(dim.old, dim.new) for dim in dims}
    new = sorted({after for _, after in found})
    if len(new) == 1 and or_same:
        return new[0]
    if all(before == after for before, after in found):
        return None
    if len(new) > 1:
        return f"sizes of that value nearby become {', '.join(map(str, new))}"
    return new[0]


def _dims(
    module: nn.Module | None,
    tensor: str,
    before: tuple[int, ...],
    after: tuple[int, ...],
    new_groups: int | None,
) -> list[SizedDim]:
    if tensor != "weight" or len(before) < 2:
        # One row of entries counts what is made; of other tensors of the user nothing is known.
        return [SizedDim(True, len(before) > 1, a, b) for a, b in zip(before, after, strict=True)]
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return [SizedDim(True, False, before[1], after[1])]
    first = SizedDim(True, False, before[0], after[0])
    if not isinstance(module, _ConvNd):
        known = module is None or isinstance(module, nn.Linear)
        more = [SizedDim(not known, True, a, b) for a, b in zip(before[1:], after[1:], strict=True)]
        return [first, *more]
    groups = module.groups
    inner = before[1] * groups, after[1] * (groups if new_groups is None else new_groups)
    if module.transposed:
        return [SizedDim(False, True, before[0], after[0]), SizedDim(True, False, *inner)]
    return [first, SizedDim(False, True, *inner)]
