"""The modes of a model's modules, set for a pass that is only watched and given back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from taskprune.restore.process import without_cached_casts

Mode: TypeAlias = Literal["eval", "train"]


def set_mode_without_updates(model: nn.Module, mode: Mode) -> None:
    """Put a model into a mode for a pass that must leave its buffers as they are.

    In ``"train"``, BatchNorm and parametrizations stay in evaluation. Batch statistics couple
    nothing that running statistics do not, but they reject a single example and would be updated.
    So would the iterations of parametrizations, such as those of ``spectral_norm``. Updates that a
    module of its own makes while training are not prevented.

    Args:
        model: Its training flags are changed; giving them back is the caller's part.
        mode: Which forward pass is to run.
    """
    model.train(mode == "train")
    if mode == "train":
        for path, module in model.named_modules():
            if isinstance(module, _BatchNorm) or "parametrizations" in path.split("."):
                module.training = False


@contextmanager
def modes_given_back(model: nn.Module) -> Iterator[None]:
    """Restore each module's ``training`` flag on exit, also on error."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run with every submodule in eval mode; give each one's own mode back, also on error."""
    with modes_given_back(model), without_cached_casts():
        model.eval()
        yield
