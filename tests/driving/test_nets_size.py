from __future__ import annotations

import pytest
import torch
from nets_samples import TINY
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from taskprune.driving.nets import NetConfig, PanopticDrivingNet, build_net
from taskprune.driving.nets.conv import ConvUnit, RepConv
from taskprune.errors import InputError

# Parts of the published net at 640x640, millions of parameters in training form.
PUBLISHED_PARTS = {
    "backbone": 13.55,
    "encoder": 11.95,
    "project": 0.20,
    "detection_gates": 1.11,
    "segmentation_gates": 1.11,
    "detection": 7.11,
    "segmentation": 0.15,
}


def on_meta(scale: str) -> PanopticDrivingNet:
    with torch.device("meta"):
        return build_net(scale)


def n_params(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def macs(net: nn.Module, *, height: int, width: int) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(torch.empty(1, 3, height, width, device="meta"))
    return float(counter.get_total_flops()) / 2


@pytest.mark.parametrize("part", PUBLISHED_PARTS)
def test_each_part_of_scale_l_has_the_published_size(part: str) -> None:
    count = n_params(on_meta("l").get_submodule(part))
    assert count / 1e6 == pytest.approx(PUBLISHED_PARTS[part], abs=0.006)


def test_scale_l_has_the_published_size_also_where_norms_and_branches_are_folded() -> None:
    net = on_meta("l")
    assert n_params(net) / 1e6 == pytest.approx(35.17, abs=0.01)
    branches = [module.point for module in net.modules() if isinstance(module, RepConv)]
    units = {module for module in net.modules() if isinstance(module, ConvUnit)} - {*branches}
    folded = sum(unit.conv.out_channels for unit in units) + sum(map(n_params, branches))
    assert (n_params(net) - folded) / 1e6 == pytest.approx(34.35, abs=0.01)


def test_scale_l_has_the_published_compute() -> None:
    assert macs(on_meta("l").eval(), height=640, width=640) / 1e9 == pytest.approx(107.2, rel=0.01)


def test_scale_n_fits_a_cpu() -> None:
    net = on_meta("n").eval()
    assert 1e6 < n_params(net) < 2e6
    assert macs(net, height=192, width=320) < 1e9


def test_scales_grow() -> None:
    assert n_params(on_meta("n")) < n_params(on_meta("s")) < n_params(on_meta("l"))


def test_a_width_the_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(InputError, match="multiple of 8"):
        NetConfig(**{**vars(TINY), "attention_heads": 3})
