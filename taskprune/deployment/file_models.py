"""Files that are called as the model that they were made of."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from taskprune.errors import InputError

BATCH = "batch"
"""What a file calls the dim of samples, where it takes any number of them."""


class FileModel(nn.Module):
    """A file that runs on the CPU, on as many threads as PyTorch.

    Args:
        like: Outputs of the model, whose structure those of the file are given.
    """

    def __init__(self, like: Any) -> None:
        super().__init__()
        self.like, self.structure = pytree.tree_flatten(like)
        self.place = nn.Parameter(torch.empty(0, device="cpu"))  # where batches are moved to

    @abstractmethod
    def run(self, tensors: dict[str, Tensor]) -> Sequence[Tensor]:
        """Run the file on tensors by the names of its inputs, and return those that it returns."""

    @property
    @abstractmethod
    def names(self) -> Sequence[str]:
        """What the file calls its inputs, in order."""

    def named(self, args: Any, kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the tensors of a call by the names of the file's inputs.

        Raises:
            InputError: They are not as many as the file takes.
        """
        named = {n: t for n, t in kwargs.items() if n in self.names and isinstance(t, Tensor)}
        others = tensors_in((args, {n: value for n, value in kwargs.items() if n not in named}))
        places = [name for name in self.names if name not in named]
        if len(others) != len(places):
            raise InputError(
                f"Expected as many tensors as the file takes: {', '.join(self.names)}. Found "
                f"{len(named) + len(others)}."
            )
        given = {**named, **dict(zip(places, others, strict=True))}
        return {name: given[name].detach().cpu().contiguous() for name in self.names}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the file on what the model takes, and return what the model returns."""
        found = iter(self.run(self.named(args, kwargs)))
        # LiteRT has no 64-bit integers.
        leaves = [
            next(found).to(leaf.dtype) if isinstance(leaf, Tensor) else leaf for leaf in self.like
        ]
        return pytree.tree_unflatten(leaves, self.structure)

    def check_returned(self, n_outputs: int) -> None:
        """Check that the file returns as many tensors as the model.

        Raises:
            InputError: It does not.
        """
        if (n_tensors := len(tensors_in(self.like))) != n_outputs:
            raise InputError(
                f"Expected a model that returns tensors, as a file can return nothing else. Found "
                f"{n_tensors} of them, and the file has {n_outputs} outputs. Leave out numbers."
            )


class ProgramModel(nn.Module):
    """A file of ``torch.export``.

    Args:
        path: The file.
        like: Not needed: it returns what the model does.
    """

    def __init__(self, path: Path, like: Any = None) -> None:
        super().__init__()
        del like
        with path.open("rb") as file:
            # No part of this one: captured graphs refuse to be put in eval mode, which they are in.
            self.program = (torch.export.load(file).module(),)
        device = next((t.device for t in self.program[0].parameters()), torch.device("cpu"))
        self.place = nn.Parameter(torch.empty(0, device=device))  # where batches are moved to

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program."""
        return self.program[0](*args, **kwargs)


def tensors_in(values: Any) -> list[Tensor]:
    """Return the tensors among arguments or outputs, in the order in which a file has them."""
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]


def write_program(
    program: torch.export.ExportedProgram, path: Path, *, outputs: Sequence[str] | None
) -> None:
    """Write a program as it is, but for the example that it was captured with.

    Args:
        program: From ``torch.export``.
        path: The file to write.
        outputs: Not needed: what it returns is what the model does.
    """
    del outputs
    program.example_inputs = None  # the user's data has no place in the file
    with path.open("wb") as file:
        torch.export.save(program, file)


def program_inputs(program: torch.export.ExportedProgram) -> dict[str, tuple[int | str, ...]]:
    """Return the shape of each input of a program by its name."""
    wanted = set(program.graph_signature.user_inputs)
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    return {
        name: tuple(size if isinstance(size, int) else BATCH for size in value.shape)
        for name, value in values.items()
        if name in wanted and isinstance(value, Tensor)
    }
