r"""Tasks made of a model's outputs, for data without labels.

A trained teacher's distance to itself has no gradient, but a random projection of an output has
one. With :math:`v \sim N(0, 1)` the loss

.. math:: \langle v, o \rangle \, / \, (\sqrt{n} \; \mathrm{std}\, o)

makes the mean of its squared effects the squared change of the output, in units of its spread: the
diagonal of a Gauss-Newton matrix by Hutchinson's trick.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from taskprune.errors import InputError
from taskprune.calling.forward import Forward
from taskprune.importance.calibration import differentiable, run_forward
from taskprune.restore.lending import lent
from taskprune.calling.outputs import flatten_outputs
from taskprune.calling.task import Task


def output_tasks(model: nn.Module, batch: Any, forward: Forward) -> dict[str, Task]:
    """Return a task for every output of a model that hangs on its weights.

    Args:
        model: The model; left as it was.
        batch: To run it on.
        forward: How the batch reaches it.

    Raises:
        InputError: None of the outputs does.
        TraceError: The model rejects the batch.
    """
    with differentiable(model), lent(batch):
        outputs = flatten_outputs(run_forward(model, batch, forward, where="the first batch"))
        names = [name for name, tensor in outputs.items() if tensor.requires_grad]
    if not names:
        raise InputError(
            "Expected a model with an output that is a tensor computed from its weights. Found "
            f"{', '.join(outputs) or 'no tensor at all'}. Does the forward detach its results?"
        )
    return {name: Task(projection(name), outputs=name) for name in names}


def projection(name: str) -> Callable[[Any, Any], Tensor | None]:
    """Return the loss that projects one output at random, the same way for equal outputs."""

    def loss(outputs: Any, _: Any) -> Tensor | None:
        output = flatten_outputs(outputs).get(name)
        if output is None:
            return None
        values = output.detach().double()
        finite = values.isfinite()
        known = values[finite]
        spread = known.std() if known.numel() > 1 else values.new_zeros(())
        if not bool(spread > 0):
            return None
        # By content, so that neither the order of batches nor the process matters.
        seed = int(known.sum().abs().mul(1e6).remainder(2**31))
        generator = torch.Generator().manual_seed(seed)
        direction = torch.randn(output.shape, generator=generator, dtype=torch.float64)
        scaled = direction.to(output.device) / (spread * output.numel() ** 0.5)
        return (output.where(finite, 0) * scaled.to(output.dtype)).sum()

    return loss
