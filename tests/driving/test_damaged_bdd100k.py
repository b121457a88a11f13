"""What is read from damaged files of BDD100K's is a sample of finite numbers, or is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from damaged_files import damaged_bytes, damaged_json, outcomes, put

from taskprune.driving.data import BDD100K, DrivingSample, RoadScenes, write_bdd100k

SIZE = (96, 64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_bdd100k(RoadScenes(2, seed=1, size=SIZE), root, "train")
    return root


def check(sample: DrivingSample) -> None:
    assert sample.image.shape == (3, SIZE[1], SIZE[0])
    assert sample.boxes is not None
    assert sample.labels is not None
    assert len(sample.boxes) == len(sample.labels)
    assert ((sample.boxes >= 0) & (sample.boxes <= 1)).all()
    assert (sample.boxes[:, 2:] > 0).all()
    for mask in (sample.drivable, sample.lane):
        assert mask is not None
        assert ((mask == 0) | (mask == 1)).all()


def older_layout(root: Path) -> Path:
    """Write the boxes as BDD100K's first release had them; return the first image's file."""
    frames = json.loads((root / "labels" / "det_20" / "det_train.json").read_text())
    folder = root / "labels" / "100k" / "train"
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for frame in frames:
        paths.append(folder / f"{Path(frame['name']).stem}.json")
        paths[-1].write_text(json.dumps({"frames": [{"objects": frame["labels"]}]}))
    return paths[0]


@pytest.mark.parametrize("kind", ["frame list", "image labels", "image", "drivable", "lane"])
def test_damaged_files_are_refused_or_hold_a_sample(folder: Path, kind: str) -> None:
    boxes = folder / "labels" / "det_20" / "det_train.json"
    name = "train_000000"
    path = {
        "frame list": boxes,
        "image labels": older_layout(folder),
        "image": folder / "images" / "100k" / "train" / f"{name}.jpg",
        "drivable": folder / "labels" / "drivable" / "masks" / "train" / f"{name}.png",
        "lane": folder / "labels" / "lane" / "masks" / "train" / f"{name}.png",
    }[kind]
    listed = boxes.read_bytes()
    good = path.read_bytes()
    if kind == "image labels":
        boxes.unlink()

    def load(data: bytes) -> None:
        put(path, data)
        data_set = BDD100K(folder, "train", size=SIZE)
        for number in range(len(data_set)):
            check(data_set[number])

    try:
        damaged = [*damaged_bytes(good, 250, seed=0)]
        if path.suffix == ".json":
            texts = damaged_json(json.loads(good), 400, seed=1)
            damaged += [text.encode("utf-8", "surrogatepass") for text in texts]
        counts = outcomes(damaged, load, may_differ=True)
        assert counts["refused"] > 50
    finally:
        put(path, good)
        put(boxes, listed)
