"""torchvision without its compiled operators.

The Python part of torchvision registers shape functions for its own operators and fails to import
where those were not built. Declaring the two that it insists on is enough for all of its
classification and segmentation models.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_library: list[torch.library.Library] = []


def import_torchvision() -> ModuleType:
    """Return torchvision, with or without its compiled operators.

    Raises:
        ModuleNotFoundError: It is not installed.
    """
    if "torchvision" in sys.modules:
        return sys.modules["torchvision"]
    try:
        return importlib.import_module("torchvision")
    except RuntimeError:
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)  # type: ignore[no-untyped-call]
    _library.append(library)  # the declarations live as long as this object
    return importlib.import_module("torchvision")
