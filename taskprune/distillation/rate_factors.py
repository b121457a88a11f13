"""Learning rates of parts of a student: parts that learn faster, slower or not at all."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from taskprune.errors import InputError


def rate_factor(name: str, factors: Mapping[str, float]) -> float:
    """Return by what the learning rate of a parameter is multiplied: the last entry that fits.

    Args:
        name: Of the parameter.
        factors: By names or shell patterns of parameters, or of modules with all below them.
    """
    fitting = (f for pattern, f in reversed(list(factors.items())) if _fits(name, pattern))
    return next(fitting, 1.0)


def _fits(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


@contextmanager
def resting_parts(student: nn.Module, factors: Mapping[str, float]) -> Iterator[None]:
    """Take parameters whose factor is 0 out of training: no graph leads to them meanwhile.

    Raises:
        InputError: An entry fits no parameter, or nothing is left to train.
    """
    parameters = dict(student.named_parameters())
    for pattern in factors:
        if not any(_fits(name, pattern) for name in parameters):
            close = difflib.get_close_matches(pattern, parameters, n=3) or list(parameters)[:5]
            raise InputError(
                f"No parameter of the student fits `{pattern}` in `DistillSettings.rate_factors`. "
                f"Close or first ones: {', '.join(close)}."
            )
    learning = {name: p for name, p in parameters.items() if p.requires_grad}
    resting = [p for name, p in learning.items() if not rate_factor(name, factors)]
    if factors and len(resting) == len(learning):
        raise InputError(
            f"`DistillSettings.rate_factors` leaves nothing to train: every one of the student's "
            f"{len(learning)} trainable parameters has the factor 0. Give a part another factor."
        )
    try:
        for parameter in resting:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in resting:
            parameter.requires_grad_(True)


def rest_statistics(student: nn.Module, factors: Mapping[str, float]) -> None:
    """Have batch normalisation whose factor is 0 use its running statistics and leave them."""
    for name, module in student.named_modules():
        has_statistics = isinstance(module, _BatchNorm) and module.running_mean is not None
        if has_statistics and not rate_factor(f"{name}.running_mean", factors):
            module.eval()
