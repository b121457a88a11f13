"""Laws of reading and writing BDD100K's layout."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from taskprune.driving.data import (
    BDD100K,
    DrivingSample,
    RoadScenes,
    collate,
    write_bdd100k,
)
from taskprune.driving.data.pixels import shrink_area, shrink_lines
from taskprune.errors import DataError, InputError

SIZE = (160, 96)
SCENES = RoadScenes(5, seed=8, size=SIZE)


class Changed(Dataset[DrivingSample]):
    """The scenes with some labels replaced."""

    def __init__(self, change: Callable[[int, DrivingSample], DrivingSample]) -> None:
        self.change = change

    def __len__(self) -> int:
        return len(SCENES)

    def __getitem__(self, index: int) -> DrivingSample:
        return self.change(index, SCENES[index])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_bdd100k(SCENES, tmp_path, "train")
    return tmp_path


def frames(root: Path) -> Path:
    return root / "labels" / "det_20" / "det_train.json"


def mask(root: Path, task: str, index: int = 2) -> Path:
    return root / "labels" / task / "masks" / "train" / f"train_{index:06d}.png"


def rewrite_frames(root: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(frames(root).read_text())
    frames(root).write_text(json.dumps(change(content)))


def boxes_of(sample: DrivingSample) -> torch.Tensor:
    assert sample.boxes is not None
    return sample.boxes


def test_what_is_written_reads_back(root: Path) -> None:
    data = BDD100K(root, "train", size=SIZE)
    assert len(data) == 5
    for read, drawn in zip((data[i] for i in range(5)), (SCENES[i] for i in range(5)), strict=True):
        assert torch.allclose(boxes_of(read), boxes_of(drawn), atol=1e-5)
        assert read.labels is not None
        assert drawn.labels is not None
        assert torch.equal(read.labels, drawn.labels)
        assert read.drivable is not None
        assert drawn.drivable is not None
        assert torch.equal(read.drivable, drawn.drivable)
        assert read.lane is not None
        assert drawn.lane is not None
        assert torch.equal(read.lane, drawn.lane)
        assert (read.image.float() - drawn.image.float()).abs().mean().item() < 6
    assert len(collate([data[i] for i in range(5)])) == 5


def test_another_size_stretches_image_and_labels(root: Path) -> None:
    large, small = BDD100K(root, "train", size=SIZE), BDD100K(root, "train", size=(96, 64))
    for index in range(5):
        a, b = large[index], small[index]
        assert b.image.shape == (3, 64, 96)
        assert torch.equal(boxes_of(a), boxes_of(b))
        for name, slack in (("drivable", 0.01), ("lane", 0.06)):
            share = [getattr(s, name).float().mean().item() for s in (a, b)]
            assert share[1] == pytest.approx(share[0], abs=slack)
            assert share[1] >= share[0] - 0.01


def test_thin_lines_survive_any_resize() -> None:
    thin = np.zeros((720, 1280), bool)
    thin[:, 600] = True
    thin[300, :] = True
    for size in ((32, 32), (320, 192), (96, 64), (1280, 720), (1600, 960)):
        small = shrink_lines(thin, size=size)
        assert small.shape == size[::-1]
        assert (small.max(axis=0) == 1).all()
        assert (small.max(axis=1) == 1).all()
        assert small.mean() < 0.07
    assert (shrink_lines(thin, size=(1280, 720)) == thin).all()


@pytest.mark.parametrize("size", [(7, 5), (64, 50), (33, 100), (128, 128)])
def test_line_pooling_is_the_maximum_over_each_pixel(size: tuple[int, int]) -> None:
    values = np.random.default_rng(0).random((50, 64)) < 0.02
    small = shrink_lines(values, size=size)
    width, height = size
    for row in range(height):
        for column in range(width):
            top, bottom = row * 50 // height, -(-(row + 1) * 50 // height)
            left, right = column * 64 // width, -(-(column + 1) * 64 // width)
            assert small[row, column] == values[top:bottom, left:right].max()


def test_areas_follow_the_majority() -> None:
    area = np.zeros((4, 8), bool)
    area[:, :3] = True
    area[0, 3] = True
    expected: NDArray[np.uint8] = np.array([[1, 1, 0, 0]] * 2, np.uint8)
    assert (shrink_area(area, size=(4, 2)) == expected).all()


def test_missing_kinds_of_labels_are_none(tmp_path: Path) -> None:
    bare = Changed(lambda _, s: replace(s, boxes=None, labels=None, drivable=None, lane=None))
    write_bdd100k(bare, tmp_path, "test")
    sample = BDD100K(tmp_path, "test", size=SIZE)[1]
    assert sample.boxes is sample.labels is sample.drivable is sample.lane is None
    lanes = Changed(lambda _, s: replace(s, boxes=None, labels=None, drivable=None))
    write_bdd100k(lanes, tmp_path, "val")
    sample = BDD100K(tmp_path, "val", size=SIZE)[1]
    assert sample.boxes is sample.drivable is None
    assert sample.lane is not None


def test_only_chosen_categories_become_boxes(root: Path) -> None:
    box = {"x1": 0, "y1": 0, "x2": 79, "y2": 47}
    labels = [
        {"category": "traffic sign", "box2d": box},
        {"category": "drivable area", "poly2d": []},
        {"category": "truck", "box2d": box},
        {"category": "rider", "box2d": box},
    ]
    rewrite_frames(root, lambda f: [{**frame, "labels": labels} for frame in f])
    sample = BDD100K(root, "train", size=SIZE)[0]
    # The second corner names the last pixel inside: 80 x 48 pixels.
    assert boxes_of(sample).tolist() == [[0.25, 0.25, 0.5, 0.5]]
    both = BDD100K(root, "train", size=SIZE, classes={"truck": 0, "rider": 1})[0]
    assert both.labels is not None
    assert both.labels.tolist() == [0, 1]


def test_boxes_are_clipped_and_those_outside_dropped(root: Path) -> None:
    labels = [
        {"category": "car", "box2d": {"x1": -80.0, "y1": 0, "x2": 79, "y2": 95}},
        {"category": "car", "box2d": {"x1": 200, "y1": 0, "x2": 300, "y2": 95}},
    ]
    rewrite_frames(root, lambda f: [{**frame, "labels": labels} for frame in f])
    sample = BDD100K(root, "train", size=SIZE)[0]
    assert boxes_of(sample).tolist() == [[0.25, 0.5, 0.5, 1.0]]


@pytest.mark.parametrize("labels", [None, []])
def test_frames_without_objects_have_no_boxes(root: Path, labels: Any) -> None:
    rewrite_frames(root, lambda f: [{"name": frame["name"], "labels": labels} for frame in f])
    assert boxes_of(BDD100K(root, "train", size=SIZE)[0]).shape == (0, 4)


def test_images_without_a_frame_are_left_out_and_named(root: Path) -> None:
    rewrite_frames(root, lambda f: f[:2] + f[3:])
    data = BDD100K(root, "train", size=SIZE)
    assert data.left_out == ["train_000002.jpg"]
    assert len(data) == 4
    assert torch.allclose(boxes_of(data[2]), boxes_of(SCENES[3]), atol=1e-5)


def test_alternative_lanes_are_drivable_and_bit_3_is_lane_background(root: Path) -> None:
    values = np.full((96, 160), 2, np.uint8)
    values[:10], values[10:20] = 0, 1
    Image.fromarray(values).save(mask(root, "drivable"))
    lanes = np.full((96, 160), 255, np.uint8)
    lanes[0], lanes[1], lanes[2] = 0x20 | 3, 0x28 | 3, 7
    Image.fromarray(lanes).save(mask(root, "lane"))
    sample = BDD100K(root, "train", size=SIZE)[2]
    assert sample.drivable is not None
    assert sample.lane is not None
    assert sample.drivable[:20].all()
    assert not sample.drivable[20:].any()
    assert sample.lane[:3, 0].tolist() == [1, 0, 1]
    assert not sample.lane[3:].any()


def test_the_older_layout_with_one_file_an_image_reads_alike(root: Path) -> None:
    new = BDD100K(root, "train", size=SIZE)
    expected = [boxes_of(new[i]) for i in range(5)]
    folder = root / "labels" / "100k" / "train"
    folder.mkdir(parents=True)
    for frame in json.loads(frames(root).read_text()):
        area = {"category": "area/drivable", "poly2d": [[0, 0, "L"]]}
        record = {"name": frame["name"][:-4], "frames": [{"objects": [area, *frame["labels"]]}]}
        (folder / f"{frame['name'][:-4]}.json").write_text(json.dumps(record))
    frames(root).unlink()
    old = BDD100K(root, "train", size=SIZE)
    assert all(torch.equal(boxes_of(old[i]), expected[i]) for i in range(5))
    (folder / "train_000001.json").unlink()
    with pytest.raises(DataError, match=r"train_000001\.json"):
        BDD100K(root, "train", size=SIZE)


def test_missing_folders_are_named(root: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        BDD100K(root / "nowhere", "train", size=SIZE)
    with pytest.raises(DataError, match=r"100k/val.*\['train'\]"):
        BDD100K(root, "val", size=SIZE)
    (root / "images" / "100k" / "val").mkdir()
    with pytest.raises(DataError, match=r"100k/val.*JPEG"):
        BDD100K(root, "val", size=SIZE)


@pytest.mark.parametrize("task", ["drivable", "lane"])
def test_a_missing_mask_is_named_at_once(root: Path, task: str) -> None:
    mask(root, task).unlink()
    with pytest.raises(DataError, match=rf"{task}/masks/train/train_000002\.png.*1 missing"):
        BDD100K(root, "train", size=SIZE)


BAD_FRAMES: dict[str, Callable[[Any], Any]] = {
    "no list": lambda f: {"frames": f},
    "no name": lambda f: [{"labels": []}, *f[1:]],
    "twice": lambda f: [*f, f[0]],
    "labels no list": lambda f: [{**f[0], "labels": 3}, *f[1:]],
    "no category": lambda f: [{**f[0], "labels": [{}]}, *f[1:]],
    "no box": lambda f: [{**f[0], "labels": [{"category": "car"}]}, *f[1:]],
    "text": lambda f: [with_box(f[0], x1="3"), *f[1:]],
    "infinite": lambda f: [with_box(f[0], y2=float("inf")), *f[1:]],
    "swapped": lambda f: [with_box(f[0], x1=90, x2=10), *f[1:]],
    "other images": lambda f: [{**frame, "name": "x" + frame["name"]} for frame in f],
}


def with_box(frame: Any, **change: Any) -> Any:
    box = {"x1": 1, "y1": 1, "x2": 20, "y2": 20, **change}
    return {**frame, "labels": [{"category": "car", "box2d": box}]}


@pytest.mark.parametrize("change", BAD_FRAMES.values(), ids=BAD_FRAMES.keys())
def test_a_damaged_frame_list_is_refused(root: Path, change: Callable[[Any], Any]) -> None:
    rewrite_frames(root, change)
    with pytest.raises(DataError, match=r"det_train\.json|frame list"):
        BDD100K(root, "train", size=SIZE)


def test_broken_json_is_refused(root: Path) -> None:
    frames(root).write_text(frames(root).read_text()[:-40])
    with pytest.raises(DataError, match=r"det_train\.json.*JSON"):
        BDD100K(root, "train", size=SIZE)
    frames(root).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"det_train\.json.*JSON"):
        BDD100K(root, "train", size=SIZE)


@pytest.mark.parametrize("keep", [0, 10, 0.3, 0.9])
@pytest.mark.parametrize("task", ["image", "drivable", "lane"])
def test_a_cut_off_file_is_refused_by_name(root: Path, task: str, keep: float) -> None:
    path = mask(root, task)
    if task == "image":
        path = root / "images" / "100k" / "train" / "train_000002.jpg"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if keep < 1 else int(keep)])
    data = BDD100K(root, "train", size=SIZE)
    assert data[1].image.shape == (3, 96, 160)
    with pytest.raises(DataError, match="train_000002"):
        data[2]


def test_wrong_masks_are_refused_by_name(root: Path) -> None:
    data = BDD100K(root, "train", size=SIZE)
    Image.new("L", (80, 48)).save(mask(root, "lane"))
    with pytest.raises(DataError, match=r"train_000002\.png.*160 x 96.*80 x 48"):
        data[2]
    Image.new("RGB", SIZE).save(mask(root, "drivable", 3))
    with pytest.raises(DataError, match=r"train_000003\.png.*mode 'RGB'"):
        data[3]
    Image.new("L", SIZE, 7).save(mask(root, "drivable", 4))
    with pytest.raises(DataError, match=r"train_000004\.png.*Found 7"):
        data[4]


def test_wrong_arguments_are_refused(root: Path) -> None:
    with pytest.raises(InputError, match="multiples of 32"):
        BDD100K(root, "train", size=(100, 96))
    with pytest.raises(InputError, match="`classes`"):
        BDD100K(root, "train", size=SIZE, classes={"car": 1})
    with pytest.raises(InputError, match="`classes`"):
        BDD100K(root, "train", size=SIZE, classes={})


def test_the_writer_refuses_to_mix(root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="already there"):
        write_bdd100k(SCENES, root, "train")
    uneven = Changed(lambda i, s: replace(s, lane=None) if i == 3 else s)
    with pytest.raises(InputError, match="sample 3"):
        write_bdd100k(uneven, tmp_path, "uneven")
    unnamed = Changed(
        lambda _, s: replace(s, boxes=torch.full((1, 4), 0.5), labels=torch.tensor([1]))
    )
    with pytest.raises(InputError, match="class 1"):
        write_bdd100k(unnamed, tmp_path, "unnamed")
    write_bdd100k(unnamed, tmp_path, "named", class_names=("car", "person"))
    data = BDD100K(tmp_path, "named", size=SIZE, classes={"car": 0, "person": 1})
    assert data[0].labels is not None
    assert data[0].labels.tolist() == [1]


@pytest.fixture
def real() -> Path:
    root = Path(os.environ.get("TASKPRUNE_DATA", ""))
    if not (root / "camvid3task").is_dir():
        pytest.skip("needs real data: set TASKPRUNE_DATA to the folder that holds camvid3task")
    return root


def test_real_labelled_images_read(real: Path) -> None:
    data = BDD100K(real / "camvid3task", "train", size=(320, 192))
    assert len(data) == 367
    samples = [data[i] for i in (0, 100, 350, 366)]
    batch = collate(samples)
    assert batch.drivable is not None
    assert batch.lane is not None
    assert batch.boxes is not None
    assert 0.1 < batch.drivable.mean().item() < 0.6
    assert 0.001 < batch.lane.mean().item() < 0.08
    assert sum(len(b) for b in batch.boxes) > 3
    # Paint lies on the road.
    on_road = (batch.lane * batch.drivable).sum() / batch.lane.sum()
    assert on_road.item() > 0.8


def test_real_unlabelled_images_read(real: Path) -> None:
    data = BDD100K(real / "bdd100k_unlabelled", "test", size=(320, 192))
    batch = collate([data[i] for i in range(len(data))])
    assert batch.images.shape == (7, 3, 192, 320)
    assert (batch.boxes, batch.drivable, batch.lane) == (None, None, None)
