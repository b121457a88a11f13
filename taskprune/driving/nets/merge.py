"""The deploy form: norms folded into their convs, RepConv branches merged into one conv."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from taskprune.driving.nets.conv import ConvUnit, RepConv
from taskprune.driving.nets.net import PanopticDrivingNet


def merge_branches(net: PanopticDrivingNet) -> PanopticDrivingNet:
    """Return a copy in eval mode with fewer layers and the same outputs.

    Every `ConvUnit` becomes a conv with bias, every `RepConv` one 3x3 conv. Also works on a
    pruned net, since it reads widths off the weights. Only for inference: merged norms no longer
    follow the data.
    """
    merged = copy.deepcopy(net).eval()
    for module in list(merged.modules()):
        if isinstance(module, ConvUnit):
            _fold(module)
    for parent in list(merged.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, RepConv):
                setattr(parent, name, _merge(child))
    return merged


def _fold(unit: ConvUnit) -> None:
    """Replace conv and norm of a unit by one conv with bias, in place."""
    if isinstance(unit.norm, nn.BatchNorm2d):
        unit.conv = fuse_conv_bn_eval(unit.conv, unit.norm)
        unit.norm = nn.Identity()


@torch.no_grad()
def _merge(rep: RepConv) -> nn.Sequential:
    """Add the 1x1 kernel to the centre of the 3x3 kernel; both are folded already."""
    conv = rep.square.conv
    conv.weight.add_(F.pad(rep.point.conv.weight, (1, 1, 1, 1)))
    _bias(conv).add_(_bias(rep.point.conv))
    return nn.Sequential(conv, nn.SiLU())


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None, "folding gives every conv a bias"
    return conv.bias
