"""Takes a small YOLO through what the page on integrations shows, and through refusals."""

from __future__ import annotations

import importlib.util
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from architectures.torchvision_import import import_torchvision
from PIL import Image

if importlib.util.find_spec("torchvision"):
    import_torchvision()  # which ultralytics imports as well, as it is
    del sys.modules["torchvision"]  # without operators of its own it cannot suppress boxes

import onnxruntime
from ultralytics import YOLO
from ultralytics import settings as paths

import taskprune
from taskprune.errors import InputError
from taskprune.integrations.ultralytics import PrunedYOLO, batches, load, prune

YAML = """
nc: 2
kpt_shape: [3, 3]
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
  - [[7, 4], 1, {head}]
"""
HEADS = {"": "Detect, [nc]", "-seg": "Segment, [nc, 4, 16]", "-pose": "Pose, [nc, [3, 3]]"}
LABELS = {
    "": "1 0.5 0.5 0.4 0.3",
    "-seg": "1 0.3 0.3 0.7 0.3 0.7 0.6",
    "-pose": "1 0.5 0.5 0.4 0.3 0.4 0.4 2 0.5 0.5 2 0.6 0.6 2",
}
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "integrations.md"
SIZE = 64


def n_params(yolo: Any) -> int:
    return sum(parameter.numel() for parameter in yolo.model.parameters())


def predicted(network: Any, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return network.eval()(images)[0]  # type: ignore[no-any-return]


def data_set(folder: Path, kind: str = "") -> Path:
    draw = np.random.default_rng(0)
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for number in range(4):
        pixels = draw.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        (folder / "labels" / f"{number}.txt").write_text(f"{LABELS[kind]}\n")
    file = folder / "data.yaml"
    parts = "train: images\nval: images\nkpt_shape: [3, 3]\nnames: {0: a, 1: b}\n"
    file.write_text(f"path: {folder}\n{parts}")
    return file


def main(folder: Path) -> None:
    paths.update({"runs_dir": str(folder / "runs")})
    data = data_set(folder)
    Path("yolo11n.yaml").write_text(YAML.format(head=HEADS[""]))
    torch.manual_seed(0)
    page = PAGE.read_text(encoding="utf-8")
    names: dict[str, Any] = {"__name__": "page"}
    (block,) = re.findall(r"```python yolo\n(.*?)```", page, re.DOTALL)
    exec(compile(block, str(PAGE), "exec"), names)
    yolo, loaded = names["yolo"], names["smaller"]
    size, was = n_params(loaded), n_params(yolo)
    assert isinstance(loaded, PrunedYOLO)
    assert 0.695 * was < size <= 0.7 * was

    images = torch.rand(2, 3, SIZE, SIZE)
    before = predicted(yolo.model, images)
    pruned = prune(yolo, 0.5, data=[images])
    assert pruned.pruning is not None
    assert {f.kind for f in pruned.pruning.report.frozen} == {"interface"}
    assert n_params(yolo) == was
    assert torch.equal(predicted(yolo.model, images), before)
    noted = [note for note in pruned.pruning.report.notes if "integrations.ultralytics" in note]
    assert not noted
    settings = taskprune.PruneSettings(verify=False)
    direct = taskprune.prune(
        yolo.model, None, 0.3, example_inputs=images, importance="magnitude", settings=settings
    )
    assert any("integrations.ultralytics.prune" in note for note in direct.report.notes)
    picture = np.zeros((SIZE, SIZE, 3), np.uint8)
    assert len(loaded.predict(picture, imgsz=SIZE, verbose=False)) == 1
    assert not loaded.model.is_fused()
    (file,) = folder.rglob("best.onnx")  # of the page
    session = onnxruntime.InferenceSession(file)
    found = session.run(None, {session.get_inputs()[0].name: images[:1].numpy()})[0]
    expected = predicted(loaded.model, images[:1])
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-3, atol=1e-3)
    torch.save((images[:1], expected), "seen.pt")

    refusals(yolo, loaded, data)


def refusals(yolo: Any, loaded: Any, data: Path) -> None:
    training = {"data": data, "epochs": 1, "imgsz": SIZE, "plots": False, "project": "runs"}
    assert "its yaml file does not say" in refused(
        KeyError, lambda: YOLO("small.pt").train(**training)
    )
    yolo.save("whole.pt")
    assert "holds another" in refused(InputError, lambda: load("whole.pt"))
    other = data.with_name("other.yaml")
    other.write_text(data.read_text().replace("1: b", "1: b, 2: c"))
    assert "of the 2 classes" in refused(
        InputError, lambda: loaded.train(**{**training, "data": other})
    )
    assert "own weights" in refused(InputError, lambda: loaded.train(**training, pretrained=False))
    loaded.fuse(verbose=False)
    assert "batch normalisations" in refused(InputError, lambda: loaded.train(**training))


def refused(kind: type[Exception], call: Callable[[], Any]) -> str:
    """Return what an error says; pytest must not be imported here, see the test."""
    try:
        call()
    except kind as error:
        return str(error)
    return ""


def again() -> None:
    """Find in a new process what the first one has left."""
    images, expected = torch.load("seen.pt")
    yolo = load("small.pt")
    assert torch.equal(predicted(yolo.model, images), expected)
    file = yolo.export(format="onnx", imgsz=SIZE, simplify=False)
    session = onnxruntime.InferenceSession(file)
    found = session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-3, atol=1e-3)


def others(folder: Path) -> None:
    """Segmentation and poses: trained and validated with labels, and without as the example."""
    paths.update({"runs_dir": str(folder / "runs")})
    run = runpy.run_path(str(ROOT / "examples" / "yolo.py"))["main"]
    for kind in ("-seg", "-pose"):
        name = f"yolo11n{kind}.yaml"
        Path(name).write_text(YAML.format(head=HEADS[kind]))
        data, yolo = data_set(folder / kind, kind), YOLO(name)
        smaller = prune(yolo, 0.3, data=batches(yolo, data, imgsz=SIZE, batch=2))
        smaller.train(data=data, epochs=1, imgsz=SIZE, batch=2, workers=0, plots=False)
        assert smaller.val(data=data, imgsz=SIZE, plots=False).results_dict
        assert run(name, SIZE) < 1e-4


if sys.argv[2:] == ["again"]:
    again()
elif sys.argv[2:]:
    others(Path(sys.argv[1]))
else:
    main(Path(sys.argv[1]))
