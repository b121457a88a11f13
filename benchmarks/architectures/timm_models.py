"""Architectures of timm, as they are or with fewer blocks."""

from __future__ import annotations

import importlib
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import nn

from architectures.architecture import Architecture
from architectures.torchvision_import import import_torchvision


def _library(module: str) -> ModuleType:
    import_torchvision()  # timm imports it, and fails where it does
    return importlib.import_module(module)


def _make(name: str, **options: Any) -> nn.Module:
    model: nn.Module = _library("timm").create_model(name, **options)
    return model


def _model(name: str, size: int, **options: Any) -> Architecture:
    # The scores of 1000 classes, none of which can go, would be half of a shortened net.
    options = {"num_classes": 10, **options}
    return Architecture(
        f"timm/{name}", partial(_make, name, **options), partial(torch.randn, 1, 3, size, size)
    )


def _nfnet() -> nn.Module:
    nfnet = _library("timm.models.nfnet")
    config = nfnet.NfCfg(
        depths=(1, 1, 1, 1), channels=(64, 128, 256, 256), stem_type="deep_quad", group_size=16,
        bottle_ratio=0.5, extra_conv=True, num_features=512, act_layer="gelu", attn_layer="se",
        attn_kwargs={"rd_ratio": 0.5},
    )  # fmt: skip
    model: nn.Module = nfnet.NormFreeNet(config, num_classes=10)
    return model


def _starnet() -> nn.Module:
    # Each block multiplies its branches: random weights in many of them blow rounding errors up.
    model: nn.Module = _library("timm.models.starnet").StarNet(
        base_dim=24, depths=[1, 1, 2, 1], num_classes=10
    )
    return model


TIMM_MODELS = (
    _model("beit_base_patch16_224", 32, img_size=32, depth=2),
    _model("cait_xxs24_224", 32, img_size=32, depth=2, depth_token_only=1),
    _model("coatnet_0_224", 64, img_size=64),
    _model("convmixer_768_32", 32),
    _model("convnext_atto", 64),
    _model("crossvit_tiny_240", 120, img_size=120),
    _model("cspdarknet53", 64),
    _model("darknet53", 64),
    _model("davit_tiny", 64, depths=(1, 1, 1, 1)),
    _model("deit_tiny_distilled_patch16_224", 32, img_size=32, depth=2),
    _model("dla34", 64),
    Architecture("timm/nfnet_f0", _nfnet, partial(torch.randn, 1, 3, 64, 64)),
    _model("dpn48b", 64),
    _model("edgenext_xx_small", 64),
    _model("efficientformer_l1", 224),
    _model("efficientformerv2_s0", 64, img_size=64),
    _model("efficientvit_b0", 64),
    _model("efficientvit_m0", 224),
    _model("ese_vovnet19b_dw", 64),
    _model("eva02_tiny_patch14_224", 28, img_size=28, depth=2),
    _model("fastvit_t8", 64),
    _model("focalnet_tiny_srf", 64),
    _model("gcvit_xxtiny", 64, img_size=64),
    _model("ghostnet_100", 64),
    _model("hgnet_tiny", 64),
    _model("hiera_tiny_224", 64, img_size=64, stages=(1, 1, 2, 1)),
    _model("hrnet_w18_small", 64),
    _model("inception_next_atto", 64),
    _model("lcnet_050", 64),
    _model("levit_128s", 64, img_size=64),
    _model("mixer_s16_224", 32, img_size=32),
    _model("mobilenetv4_conv_small", 64),
    _model("mobileone_s0", 64),
    _model("mobilevit_xxs", 64),
    _model("mobilevitv2_050", 64),
    _model("mvitv2_tiny", 64, img_size=64),
    _model("nextvit_small", 64),
    _model("nf_resnet50", 64),
    _model("pit_ti_224", 64, img_size=64),
    _model("poolformer_s12", 64),
    _model("pvt_v2_b0", 64),
    _model("regnetz_005", 64),
    _model("repghostnet_050", 64),
    _model("repvit_m0_9", 64),
    _model("res2net50_26w_4s", 64),
    _model("resmlp_12_224", 32, img_size=32),
    _model("resnest14d", 64),
    _model("rexnet_100", 64),
    _model("selecsls42", 64),
    _model("sequencer2d_s", 32, img_size=32, layers=(1, 1, 1, 1)),
    _model("skresnet18", 64),
    Architecture("timm/starnet_s1", _starnet, partial(torch.randn, 1, 3, 64, 64)),
    _model("swin_tiny_patch4_window7_224", 56, img_size=56, depths=(2, 2), num_heads=(3, 6)),
    _model("swinv2_tiny_window8_256", 64, img_size=64, depths=(2, 2), num_heads=(3, 6)),
    _model("tnt_s_legacy_patch16_224", 32, img_size=32, depth=2),
    _model("twins_pcpvt_small", 64, img_size=64, depths=(1, 1, 1, 1)),
    _model("twins_svt_small", 64, img_size=64, depths=(1, 1, 2, 1)),
    _model("vit_tiny_patch16_224", 32, img_size=32, depth=2),
    _model("volo_d1_224", 64, img_size=64),
    _model("xception41", 64),
    _model("xcit_nano_12_p16_224", 32, img_size=32, depth=2, cls_attn_layers=1),
)
