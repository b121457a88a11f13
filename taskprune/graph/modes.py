"""The mode of a pass that is only watched: evaluation, or training that updates nothing."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from taskprune.graph.records import Mode


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
