"""Gradients through float16, in which small ones would vanish: the loss is scaled meanwhile."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.graph import Node

HIGHEST = 2.0**24
"""Scale to begin with. float16 knows nothing below 6e-8, and the gradient of a mean over a map is
smaller than that for each of its entries."""

LOWEST = 2.0**-16
"""Below that, what overflows is taken to be infinite by itself."""

STEP = 16.0


def runs_in_half(loss: Tensor) -> bool:
    """Whether something that the loss was computed from is float16: weights, or under autocast."""
    seen: set[Node] = set()
    waiting = [loss.grad_fn] if loss.grad_fn is not None else []
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if any(made.dtype == torch.float16 for made in getattr(node, "_input_metadata", ())):
            return True
        waiting += [before for before, _ in node.next_functions if before is not None]
    return False


class LossScale:
    """What one task's loss is multiplied by before its backward, and its gradients divided by.

    A power of two, so that nothing is rounded, the highest at which nothing overflows. It stays
    from batch to batch and only ever goes down: a few more backwards in the first.

    Attributes:
        value: The scale.
        used: That of the last backward; 1 where nothing is float16.
        is_silent: Whether all gradients so far were exactly 0; ``None`` where there were none.
    """

    def __init__(self) -> None:
        self.value, self.used = HIGHEST, 1.0
        self.is_silent: bool | None = None
        self._in_half: bool | None = None

    def gradients(
        self, loss: Tensor, inputs: tuple[Tensor, ...], *, retain_graph: bool
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of a loss: of float16 inputs in float32, as those are.

        Args:
            loss: One number.
            inputs: To differentiate by.
            retain_graph: Whether the graph is needed again.
        """
        if not inputs:
            return ()
        if self._in_half is None:
            self._in_half = runs_in_half(loss)
        found = self._found(loss, inputs, retain_graph=retain_graph)
        known = [gradient for gradient in found if gradient is not None]
        if known and self.is_silent is not False:
            self.is_silent = not any(bool(gradient.any()) for gradient in known)
        return found

    def _found(
        self, loss: Tensor, inputs: tuple[Tensor, ...], *, retain_graph: bool
    ) -> tuple[Tensor | None, ...]:
        if not self._in_half:
            return torch.autograd.grad(loss, inputs, retain_graph=retain_graph, allow_unused=True)
        self.value = min(self.value, _limit(loss.dtype))
        while True:
            # Retained for the next try; the graph goes with the loss.
            found = torch.autograd.grad(
                loss,
                inputs,
                grad_outputs=torch.full_like(loss, self.value),
                retain_graph=True,
                allow_unused=True,
            )
            if self.value <= LOWEST or _all_finite(found):
                self.used = self.value
                return tuple(None if g is None else _wide(g) / self.value for g in found)
            self.value /= STEP


def _limit(dtype: torch.dtype) -> float:
    return 2.0**15 if dtype == torch.float16 else HIGHEST


def _all_finite(gradients: tuple[Tensor | None, ...]) -> bool:
    return all(g is None or bool(g.isfinite().all()) for g in gradients)


def _wide(gradient: Tensor) -> Tensor:
    return gradient.to(torch.promote_types(gradient.dtype, torch.float32))
