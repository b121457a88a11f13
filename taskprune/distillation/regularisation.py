"""What may change the student's weights beside the gradient of the losses."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, cast

from torch import nn

from taskprune.errors import InputError


class Regulariser(Protocol):
    """Settings of something that acts on the weights, such as a pull towards sparsity.

    One object serves any number of runs: what it has learnt of one is in what it makes for it.
    """

    def for_student(self, student: nn.Module, n_steps: int, /) -> StudentRegulariser:
        """Return what acts on this student in a run of ``n_steps`` optimizer steps.

        An ``nn.Module``, on the student's device. Its buffers are saved in checkpoints, so that a
        run goes on as if it had never stopped; it may hold no parameters.
        """


class StudentRegulariser(Protocol):
    """Acts on one student in one run."""

    def after_step(self, step: int, /) -> None:
        """Change the student's weights in place, after optimizer step number ``step``, from 1.

        Called in every process alike, before running averages of the weights are taken.
        """


def make_regularisers(
    regularisers: Iterable[Regulariser], student: nn.Module, n_steps: int
) -> tuple[StudentRegulariser, ...]:
    """Make what acts on one student.

    Raises:
        InputError: What is made cannot be saved with the run, or would be trained by it.
    """
    made = tuple(regulariser.for_student(student, n_steps) for regulariser in regularisers)
    for one in made:
        module = cast(object, one)
        if not isinstance(module, nn.Module) or any(True for _ in module.parameters()):
            raise InputError(
                "`for_student` of a regulariser must return an `nn.Module` without parameters, "
                f"whose buffers are saved with the run. Found {type(one).__name__}."
            )
    return made
