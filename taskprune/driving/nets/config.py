"""Sizes of the panoptic driving net, one frozen record a scale."""

from __future__ import annotations

from dataclasses import dataclass

from taskprune.errors import InputError

STRIDES = (8, 16, 32)
"""Input pixels per cell of the three feature maps that the heads read."""


@dataclass(frozen=True)
class StageConfig:
    """One backbone stage: optional stride-2 depthwise conv, then HG blocks.

    Attributes:
        mid: Width of the convs inside each block.
        out: Width of the stage's output.
        kernel: Kernel size of the convs inside each block.
        n_blocks: Blocks in a row; every block after the first has a residual connection.
        light: Build the convs as 1x1 followed by depthwise.
    """

    mid: int
    out: int
    kernel: int = 3
    n_blocks: int = 1
    light: bool = False


@dataclass(frozen=True)
class NetConfig:
    """Everything that sets the size of a `PanopticDrivingNet`.

    Attributes:
        stem: Inner and output width of the stem.
        stages: The four backbone stages, at strides 4, 8, 16 and 32.
        convs_per_block: Convs inside each HG block.
        hidden: Width of the encoder, the gates and the detection decoder.
        attention_heads: Heads of every attention; divides ``hidden``.
        encoder_ffn: Inner width of the encoder's transformer layer.
        rep_convs: RepConvs in each fusion block.
        decoder_layers: Layers of the detection decoder.
        decoder_ffn: Inner width of each decoder layer's feed-forward part.
        points: Sampling points per head and level of the deformable attention.
        queries: Boxes that the detector proposes per image.
        denoising: About how many noised boxes, positive ones, are added in training.
        segmentation: Width of the segmentation decoder.
    """

    stem: tuple[int, int]
    stages: tuple[StageConfig, StageConfig, StageConfig, StageConfig]
    convs_per_block: int
    hidden: int
    attention_heads: int
    encoder_ffn: int
    rep_convs: int
    decoder_layers: int
    decoder_ffn: int
    points: int
    queries: int
    denoising: int
    segmentation: int

    def __post_init__(self) -> None:
        if self.attention_heads < 1 or self.hidden % 8 or self.hidden % self.attention_heads:
            raise InputError(
                "`NetConfig.hidden` must be a multiple of 8 and of `attention_heads` "
                f"({self.attention_heads}). Found {self.hidden}."
            )


NANO = NetConfig(
    stem=(16, 24),
    stages=(
        StageConfig(16, 48),
        StageConfig(32, 96),
        StageConfig(48, 192, kernel=5, n_blocks=2, light=True),
        StageConfig(80, 320, kernel=5, light=True),
    ),
    convs_per_block=3,
    hidden=64,
    attention_heads=4,
    encoder_ffn=192,
    rep_convs=3,
    decoder_layers=3,
    decoder_ffn=192,
    points=4,
    queries=60,
    denoising=40,
    segmentation=12,
)

SMALL = NetConfig(
    stem=(24, 32),
    stages=(
        StageConfig(32, 96),
        StageConfig(64, 256),
        StageConfig(96, 512, kernel=5, n_blocks=2, light=True),
        StageConfig(192, 1024, kernel=5, light=True),
    ),
    convs_per_block=4,
    hidden=128,
    attention_heads=8,
    encoder_ffn=512,
    rep_convs=3,
    decoder_layers=4,
    decoder_ffn=512,
    points=4,
    queries=200,
    denoising=100,
    segmentation=32,
)

LARGE = NetConfig(
    stem=(32, 48),
    stages=(
        StageConfig(48, 128),
        StageConfig(96, 512),
        StageConfig(192, 1024, kernel=5, n_blocks=3, light=True),
        StageConfig(384, 2048, kernel=5, light=True),
    ),
    convs_per_block=6,
    hidden=256,
    attention_heads=8,
    encoder_ffn=1024,
    rep_convs=3,
    decoder_layers=6,
    decoder_ffn=1024,
    points=4,
    queries=300,
    denoising=100,
    segmentation=64,
)

SCALES: dict[str, NetConfig] = {"n": NANO, "s": SMALL, "l": LARGE}
"""``n`` trains on a CPU at 320x192, ``l`` has the published widths, ``s`` lies between."""
