"""Reads folders in a new process and stores what comes out: ``python reading_child.py FOLDER…``."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch
from architectures.torchvision_import import import_torchvision

if importlib.util.find_spec("torchvision"):
    import_torchvision()  # which transformers imports as well, as it is

import taskprune
from taskprune.calling.outputs import flatten_outputs
from taskprune.integrations.transformers import from_pretrained

DEPLOYED = ("bert", "llama", "segformer")

for folder in map(Path, sys.argv[1:]):
    before = torch.get_rng_state()
    model = from_pretrained(folder)
    assert torch.equal(torch.get_rng_state(), before)
    inputs = torch.load(folder / "inputs.pt")
    with torch.no_grad():
        outputs = flatten_outputs(model(**inputs))
        if model.can_generate():
            fixed = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
            outputs["generated"] = model.generate(**inputs, use_cache=True, **fixed)
    torch.save(outputs, folder / "outputs.pt")
    if folder.name in DEPLOYED:
        example = {**inputs, "use_cache": False} if model.can_generate() else inputs
        taskprune.export(model, folder / "model.onnx", example, dynamic_batch=False)
