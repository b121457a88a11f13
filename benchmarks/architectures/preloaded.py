"""Importing this imports the libraries of all architectures: a child forked afterwards need not."""

from __future__ import annotations

import importlib

from architectures.torchvision_import import import_torchvision

import_torchvision()
for _name in ("timm", "transformers", "torch._dynamo"):
    importlib.import_module(_name)
