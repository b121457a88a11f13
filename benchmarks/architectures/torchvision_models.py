"""Architectures of torchvision, as they are or with fewer blocks."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from architectures.architecture import Architecture
from architectures.torchvision_import import import_torchvision


def _make(name: str, **options: Any) -> nn.Module:
    model: nn.Module = import_torchvision().models.get_model(name, weights=None, **options)
    return model


def _model(name: str, size: int, **options: Any) -> Architecture:
    return Architecture(
        f"torchvision/{name}",
        partial(_make, name, **options),
        partial(torch.randn, 1, 3, size, size),
    )


def _vit() -> nn.Module:
    transformer: type[nn.Module] = import_torchvision().models.VisionTransformer
    return transformer(
        image_size=32,
        patch_size=16,
        num_layers=2,
        num_heads=12,
        hidden_dim=768,
        mlp_dim=3072,
        num_classes=10,
    )


def _swin(version: str) -> nn.Module:
    swin = import_torchvision().models.swin_transformer
    v2 = {"block": swin.SwinTransformerBlockV2, "downsample_layer": swin.PatchMergingV2}
    model: nn.Module = swin.SwinTransformer(
        patch_size=[4, 4], embed_dim=96, depths=[2, 2], num_heads=[3, 6],
        window_size=[4, 4], num_classes=10, **(v2 if version == "v2" else {}),
    )  # fmt: skip
    return model


def _maxvit() -> nn.Module:
    transformer: type[nn.Module] = import_torchvision().models.MaxVit
    return transformer(
        input_size=(56, 56), stem_channels=32, partition_size=7, block_channels=[32, 64],
        block_layers=[1, 1], head_dim=16, stochastic_depth_prob=0.0,
        num_classes=10,
    )  # fmt: skip


def _vgg() -> nn.Module:
    vgg = import_torchvision().models.vgg
    features = vgg.make_layers([16, "M", 32, "M", 64, "M", 128, "M", 512], batch_norm=True)
    model: nn.Module = vgg.VGG(features, init_weights=False)
    # Its first two layers hold 120 million parameters.
    model.classifier = nn.Sequential(
        nn.Linear(512 * 49, 256), nn.ReLU(), nn.Dropout(), nn.Linear(256, 256), nn.ReLU(),
        nn.Dropout(), nn.Linear(256, 10),
    )  # fmt: skip
    return model


def _image(size: int) -> partial[torch.Tensor]:
    return partial(torch.randn, 1, 3, size, size)


TORCHVISION_MODELS = (
    _model("convnext_tiny", 64),
    _model("deeplabv3_resnet50", 64, weights_backbone=None, aux_loss=True),
    _model("densenet121", 64),
    _model("densenet201", 64),
    _model("efficientnet_b0", 64),
    _model("efficientnet_v2_s", 64),
    _model("fcn_resnet50", 64, weights_backbone=None),
    _model("googlenet", 64, init_weights=False, aux_logits=True),
    _model("inception_v3", 96, init_weights=False, aux_logits=False),
    _model("lraspp_mobilenet_v3_large", 64, weights_backbone=None),
    Architecture("torchvision/maxvit_t", _maxvit, _image(56)),
    _model("mnasnet0_5", 64),
    _model("mobilenet_v2", 64),
    _model("mobilenet_v3_large", 64),
    _model("regnet_x_400mf", 64),
    _model("regnet_y_400mf", 64),
    _model("resnet50", 64),
    _model("resnext50_32x4d", 64),
    _model("shufflenet_v2_x0_5", 64),
    _model("squeezenet1_1", 64),
    Architecture("torchvision/swin_t", partial(_swin, "v1"), _image(48)),
    Architecture("torchvision/swin_v2_t", partial(_swin, "v2"), _image(48)),
    Architecture("torchvision/vgg11_bn", _vgg, _image(32)),
    Architecture("torchvision/vit_b_16", _vit, _image(32)),
)
