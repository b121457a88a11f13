"""Collect the overloads of ATen operators by name."""

from __future__ import annotations

import torch
from torch._ops import OpOverload


def overloads(*names: str) -> list[OpOverload]:
    """Return all functional and in-place overloads of the named operators that this torch has.

    A name stands for its in-place form too. Variants that write to an ``out`` tensor are left
    out: they appear in a trace only where the user's code passes one.
    """
    found: list[OpOverload] = []
    for form in (form for name in names for form in (name, f"{name}_")):
        packet = getattr(torch.ops.aten, form, None)
        if packet is None:
            continue
        found += [
            getattr(packet, overload)
            for overload in packet.overloads()
            if not any(a.is_out for a in getattr(packet, overload)._schema.arguments)
        ]
    return found
