"""Programs whose inputs and outputs are tensors by name, as files of other runtimes have them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from taskprune.deployment.file_models import BATCH, program_inputs, tensors_in


class NamedProgram(nn.Module):
    """A program that takes and returns tensors by name, and nothing else.

    Args:
        program: From ``torch.export``; what it takes beside tensors stays as captured.
        outputs: What to call its outputs; ``None`` numbers them.
    """

    def __init__(
        self, program: torch.export.ExportedProgram, outputs: Sequence[str] | None
    ) -> None:
        super().__init__()
        self._program, self._outputs = program.module(), outputs
        args, kwargs = program.example_inputs or ((), {})
        self._leaves, self._structure = pytree.tree_flatten((args, kwargs))
        self.shapes = program_inputs(program)
        self.example = dict(zip(self.shapes, tensors_in((args, kwargs)), strict=True))
        self.training = False

    def forward(self, *tensors: Tensor, **named: Tensor) -> dict[str, Tensor]:
        """Run the program on tensors in order, or by name."""
        given = iter([*tensors, *(named[name] for name in self.shapes if name in named)])
        leaves = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in self._leaves]
        args, kwargs = pytree.tree_unflatten(leaves, self._structure)
        outputs = pytree.tree_leaves(self._program(*args, **kwargs))
        found = [leaf for leaf in outputs if isinstance(leaf, Tensor)]
        names = self._outputs or [f"output_{number}" for number in range(len(found))]
        return dict(zip(names, found, strict=True))

    def captured(self) -> torch.export.ExportedProgram:
        """Return the same as a program."""
        batch = torch.export.Dim(BATCH, min=1)
        sizes = tuple({0: batch} if BATCH in shape else None for shape in self.shapes.values())
        return torch.export.export(
            self, tuple(self.example.values()), dynamic_shapes={"tensors": sizes}, strict=False
        )
