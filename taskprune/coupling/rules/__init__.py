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
    quantization,
    recurrence,
    reduction,
    reshape,
    slicing,
    spectrum,
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
    "quantization",
    "recurrence",
    "reduction",
    "reshape",
    "slicing",
    "spectrum",
]
