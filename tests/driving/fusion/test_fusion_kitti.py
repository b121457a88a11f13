"""KITTI's own layout: what is written there is what comes out, and damage is named."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from taskprune.driving.fusion import CLASSES, BevGrid, KittiObjects, collate_frames
from taskprune.driving.fusion.calibration import Calibration
from taskprune.driving.fusion.kitti import boxes_in_lidar, read_labels
from taskprune.driving.fusion.sensors import calibration_of
from taskprune.errors import DataError

CAR = "Car 0.10 0 -1.57 600.0 170.0 700.0 230.0 1.50 1.60 4.00 2.00 1.70 20.00 -1.57\n"
VAN = "Van 0.00 2 0.0 10.0 170.0 60.0 200.0 2.0 1.8 5.0 -9.0 1.7 30.0 0.0\n"
REST = "DontCare -1 -1 -10 0 0 10 10 -1 -1 -1 -1000 -1000 -1000 -10\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in ("image_2", "velodyne", "calib", "label_2"):
        (tmp_path / "training" / folder).mkdir(parents=True)
    (tmp_path / "ImageSets").mkdir()
    (tmp_path / "ImageSets" / "train.txt").write_text("000007\n")
    training = tmp_path / "training"
    pixels = np.arange(62 * 18 * 3, dtype=np.uint8).reshape(18, 62, 3)
    Image.fromarray(pixels).save(training / "image_2" / "000007.png")
    points = np.random.default_rng(0).normal(size=(50, 4)).astype("<f4")
    points.tofile(training / "velodyne" / "000007.bin")
    calibration_of((62, 18)).write(training / "calib" / "000007.txt")
    (training / "label_2" / "000007.txt").write_text(CAR + VAN + REST)
    return tmp_path


def test_a_frame_holds_what_the_files_say(root: Path) -> None:
    frame = KittiObjects(root)[0]
    assert frame.image.shape == (3, 18, 62)
    assert frame.points.shape == (50, 4)
    assert frame.labels.tolist() == [CLASSES.index("Car"), -1]
    assert frame.difficulty.tolist() == [0, 2]
    torch.testing.assert_close(frame.boxes[0, 3:6], torch.tensor([4.0, 1.6, 1.5]))


def test_the_picture_shows_a_box_where_its_projection_says(root: Path) -> None:
    whole, small = KittiObjects(root)[0], KittiObjects(root, size=(31, 9))[0]
    assert small.image.shape == (3, 9, 31)
    centre = torch.cat((whole.boxes[0, :3], torch.ones(1)))
    (u, v, depth), (u_small, v_small, _) = whole.projection @ centre, small.projection @ centre
    torch.testing.assert_close(depth, torch.tensor(20.0), atol=0.01, rtol=0)
    torch.testing.assert_close(u_small / depth, u / depth / 2)
    torch.testing.assert_close(v_small / depth, v / depth / 2)


def test_boxes_go_to_the_lidar_frame_and_back() -> None:
    calibration = calibration_of((1242, 375))
    rng = np.random.default_rng(1)
    places = rng.normal(size=(5, 3)) * 10
    np.testing.assert_allclose(
        calibration.to_camera(calibration.to_lidar(places)), places, atol=1e-9
    )


def test_a_car_that_drives_ahead_looks_along_x(root: Path) -> None:
    labels = read_labels(root / "training" / "label_2" / "000007.txt")
    [car, *_] = boxes_in_lidar(labels[:1], calibration_of((1242, 375)))
    # KITTI's rotation of -90 degrees about the camera's y axis is straight ahead.
    assert abs(car[6]) < 0.01
    assert car[0] == pytest.approx(20.27, abs=0.01)
    assert car[1] == pytest.approx(-2.0, abs=0.01)


@pytest.mark.parametrize(
    ("damaged", "content", "message"),
    [
        ("label_2/000007.txt", "Car 1 2 three\n", "line 1"),
        ("velodyne/000007.bin", "12345", "float32"),
        ("calib/000007.txt", "P2: 1 2 3\n", "R0_rect"),
        ("image_2/000007.png", "no picture", "image"),
    ],
)
def test_damaged_files_are_named(root: Path, damaged: str, content: str, message: str) -> None:
    (root / "training" / damaged).write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        KittiObjects(root)[0]
    assert Path(damaged).name in str(caught.value)


def test_a_folder_of_another_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="KITTI's object layout"):
        KittiObjects(tmp_path)


@pytest.mark.skipif(
    "TASKPRUNE_DATA" not in os.environ,
    reason="needs real data: set TASKPRUNE_DATA to the folder that holds kitti_mini",
)
def test_real_frames_have_their_points_on_their_objects() -> None:
    frames = KittiObjects(Path(os.environ["TASKPRUNE_DATA"]) / "kitti_mini", size=(320, 96))
    for number in range(len(frames)):
        frame = frames[number]
        for box, label, level in zip(
            frame.boxes, frame.labels.tolist(), frame.difficulty.tolist(), strict=True
        ):
            if label < 0 or level > 1:
                continue
            away = (frame.points[:, :3] - box[:3]).norm(dim=1)
            assert (away < box[3:6].norm() / 2).sum() > 5
    batch = collate_frames([frames[0], frames[1]], n_points=2048, grid=BevGrid())
    assert batch.points.shape == (2, 2048, 4)


def test_calibration_without_a_matrix_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "000000.txt"
    path.write_text("P2: 1\n")
    with pytest.raises(DataError, match="R0_rect"):
        Calibration.read(path)
