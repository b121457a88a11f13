"""Rules of ATen operators, one file a family; importing this package registers them all."""

from taskprune.coupling.rules import (
    attention,
    convolution,
    elementwise,
    factory,
    indexing,
    layout,
    matmul,
    normalization,
    pooling,
    reduction,
    reshape,
    slicing,
)

__all__ = [
    "attention",
    "convolution",
    "elementwise",
    "factory",
    "indexing",
    "layout",
    "matmul",
    "normalization",
    "pooling",
    "reduction",
    "reshape",
    "slicing",
]
