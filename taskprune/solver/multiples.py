"""Channel counts that devices like, by name.

Where a layer's channels fill whole registers or tiles, none of the hardware idles on the last one.
What is best on a device at hand is what runs fastest there: measure it.
"""

from __future__ import annotations

from taskprune.errors import InputError, short

DEVICE_MULTIPLES = {
    # NVIDIA, "Matrix Multiplication Background User's Guide", section on tensor core requirements:
    # dimensions that are multiples of 16 bytes, which are 8 elements of fp16 or bf16, ...
    "tensor-core-fp16": 8,
    "tensor-core-bf16": 8,
    # ... 16 of int8 ...
    "tensor-core-int8": 16,
    # ... and 4 of TF32.
    "tensor-core-tf32": 4,
    # The same section: on A100 multiples of 128 bytes are the most efficient, 64 of fp16.
    "a100-fp16": 64,
    # A 512-bit register holds 16 float32 (Intel, "Intrinsics Guide", AVX-512F `__m512`); oneDNN
    # stores activations in blocks of as many channels (its layout `nChw16c`).
    "cpu-avx512": 16,
    # A 256-bit register holds 8 (the same guide, AVX `__m256`; oneDNN's `nChw8c`).
    "cpu-avx2": 8,
    # A 128-bit register holds 4 float32 (Arm, "Neon Intrinsics Reference", `float32x4_t`).
    "cpu-neon": 4,
}
"""``{device: channels}`` for ``Safety(round_to=...)``."""


def multiple_for(round_to: int | str) -> int:
    """Return the number of channels that a group should keep a multiple of.

    Args:
        round_to: The number itself, or a name in :data:`DEVICE_MULTIPLES`.

    Raises:
        InputError: It is neither.
    """
    if isinstance(round_to, str):
        if round_to not in DEVICE_MULTIPLES:
            known = ", ".join(f"'{name}' ({n})" for name, n in DEVICE_MULTIPLES.items())
            raise InputError(
                f"`round_to` must be a whole number from 1 on, or one of {known}. Found "
                f"{short(round_to)}."
            )
        return DEVICE_MULTIPLES[round_to]
    if isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1:
        raise InputError(
            "`round_to` must be a whole number from 1 on, or the name of a device such as "
            f"'tensor-core-fp16'. Found {short(round_to)}."
        )
    return round_to
