"""Takes a small YOLO through all that ultralytics does with one, in a folder of its own."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures.torchvision_import import import_torchvision
from PIL import Image

if importlib.util.find_spec("torchvision"):
    import_torchvision()  # which ultralytics imports as well, as it is
    del sys.modules["torchvision"]  # without operators of its own it cannot suppress boxes

import onnxruntime
from ultralytics import YOLO

from taskprune.errors import InputError
from taskprune.integrations.ultralytics import PrunedYOLO, batches, load, prune

YAML = """
nc: 2
backbone:
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, Conv, [32, 3, 2]]
  - [-1, 1, C3k2, [32, False, 0.5]]
  - [-1, 1, Conv, [48, 3, 2]]
  - [-1, 1, C2f, [48, True]]
head:
  - [-1, 1, nn.Upsample, [None, 2, nearest]]
  - [[-1, 2], 1, Concat, [1]]
  - [-1, 1, C3k2, [32, False]]
  - [[7, 4], 1, Detect, [nc]]
"""
SIZE = 64


def n_params(yolo: Any) -> int:
    return sum(parameter.numel() for parameter in yolo.model.parameters())


def predicted(network: Any, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return network.eval()(images)[0]  # type: ignore[no-any-return]


def data_set(folder: Path) -> Path:
    draw = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    for number in range(4):
        pixels = draw.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        (folder / "labels" / f"{number}.txt").write_text("1 0.5 0.5 0.4 0.3\n")
    file = folder / "data.yaml"
    file.write_text(f"path: {folder}\ntrain: images\nval: images\nnames: {{0: a, 1: b}}\n")
    return file


def main(folder: Path) -> None:
    data = data_set(folder)
    Path("yolo-small.yaml").write_text(YAML)
    torch.manual_seed(0)
    yolo = YOLO("yolo-small.yaml")
    images = torch.rand(1, 3, SIZE, SIZE)
    before, was = predicted(yolo.model, images), n_params(yolo)
    labelled = batches(yolo, data, imgsz=SIZE, batch=2)
    assert [b["img"].shape for b in labelled] == 2 * [(2, 3, SIZE, SIZE)]
    for given in ([batch["img"] for batch in labelled], labelled):
        pruned = prune(yolo, 0.3, data=given)
        assert pruned.pruning is not None
        assert not [f for f in pruned.pruning.report.frozen if f.kind != "interface"]
    assert isinstance(pruned, PrunedYOLO)
    size = n_params(pruned)
    assert 0.695 * was < size <= 0.7 * was
    assert n_params(yolo) == was
    assert torch.equal(predicted(yolo.model, images), before)

    common = {"imgsz": SIZE, "plots": False, "verbose": False, "workers": 0, "project": "runs"}
    assert len(pruned.predict(np.zeros((SIZE, SIZE, 3), np.uint8), imgsz=SIZE, verbose=False)) == 1
    pruned.val(data=data, **common)
    expected = predicted(pruned.model, images)
    assert not pruned.model.is_fused()

    session = onnxruntime.InferenceSession(pruned.export(format="onnx", imgsz=SIZE, simplify=False))
    found = session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-3, atol=1e-3)

    pruned.save("small.pt")
    again = load("small.pt")
    torch.testing.assert_close(predicted(again.model, images), expected, rtol=0.01, atol=0.1)
    training = {"data": data, "epochs": 1, "batch": 2, "amp": False, **common}
    with pytest.raises(KeyError, match="its yaml file does not say"):
        YOLO("small.pt").train(**training)
    yolo.save("whole.pt")
    with pytest.raises(InputError, match="holds another"):
        load("whole.pt")

    again.train(**training)
    assert isinstance(again, PrunedYOLO)
    assert n_params(again) == size
    assert n_params(load(again.trainer.best)) == size
    other = data.with_name("other.yaml")
    other.write_text(data.read_text().replace("1: b", "1: b, 2: c"))
    with pytest.raises(InputError, match="of the 2 classes"):
        again.train(**{**training, "data": other})
    again.fuse(verbose=False)
    with pytest.raises(InputError, match="batch normalisations"):
        again.train(**training)


main(Path(sys.argv[1]))
