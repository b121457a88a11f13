"""A model on one batch, in a forward of its own that stops at readers."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from taskprune.calling.forward import Forward
from taskprune.compensation.attention_products import Product, ProductMode
from taskprune.compensation.lockstep import Stoppable
from taskprune.compensation.reading_calls import Read, ReadingMode
from taskprune.importance.calibration import run_forward
from taskprune.restore.copying import deep_copy
from taskprune.rewrite.surgery import duplicate


class StoppingForward:
    """A model on a batch, that stops at readers.

    It has modules and buffers of its own, so that what the forwards of other batches leave in
    theirs stays apart; what is re-weighted is the model's.

    Args:
        model: The model.
        batch: The batch; left as it is.
        forward: ``(model, batch) -> outputs``.
        dims: The dims along which parameters read what goes, by name.
        means: Names of buffers that are re-weighted as well.
        before: Is told of reads before they run.
        after: Is told of them after.
        on_product: Is told where queries meet keys; ``None``: nobody.

    Attributes:
        batch: A copy of the batch, as the model leaves it.
        outputs: What it made of it, at the end.
        call: The forward.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: Any,
        forward: Forward,
        dims: Mapping[str, Container[int]],
        means: Container[str],
        *,
        before: Callable[[tuple[Read, ...]], None] | None = None,
        after: Callable[[tuple[Read, ...]], None] | None = None,
        on_product: Callable[[Product], Tensor | None] | None = None,
    ) -> None:
        self.batch = self.outputs = None
        self._before, self._after = before, after
        shared = [b for name, b in model.named_buffers() if name in means]
        own = duplicate(model, instead={t: t for t in (*model.parameters(), *shared)}).eval()
        parameters = dict(model.named_parameters())
        modes: list[Any] = [ReadingMode(parameters, dims, self)]
        if on_product is not None:
            modes.append(ProductMode(parameters, on_product))

        def call() -> None:
            # Other forwards stand in the middle of this batch: what writes to it needs its own.
            self.batch = deep_copy(batch)
            with ExitStack() as stack:
                for mode in modes:
                    stack.enter_context(mode)
                self.outputs = run_forward(own, self.batch, forward, where="a calibration batch")

        self.call = Stoppable(call)

    def about_to_read(self, reads: tuple[Read, ...]) -> None:
        """See :class:`~.reading_calls.Listener`."""
        if self._before is not None:
            self._before(reads)

    def has_read(self, reads: tuple[Read, ...]) -> None:
        """See :class:`~.reading_calls.Listener`."""
        if self._after is not None:
            self._after(reads)

    def has_called(self, function: Any, args: tuple[Any, ...], kwargs: Any, result: Any) -> None:
        """See :class:`~.reading_calls.Listener`."""
