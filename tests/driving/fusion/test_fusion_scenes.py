"""Made-up two-sensor scenes: labels, points and pictures tell of the same world."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from taskprune.driving.fusion import BevGrid, Degradation, FusionFrame, TwoSensorScenes
from taskprune.driving.fusion.raycast import GROUND, cast
from taskprune.driving.fusion.scenes import corners
from taskprune.driving.fusion.sensors import photograph
from taskprune.driving.fusion.world import make_world

GRID = BevGrid(cell=3.0)


def frame(number: int = 0, *, seed: int = 0, degradation: Degradation | None = None) -> FusionFrame:
    return TwoSensorScenes(4, seed=seed, size=(96, 32), grid=GRID, degradation=degradation)[number]


def inside(points: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
    x, y = (points[:, :2] - box[:2]).unbind(1)
    cos, sin = box[6].cos(), box[6].sin()
    along, across = cos * x + sin * y, -sin * x + cos * y
    up = points[:, 2] - box[2]
    reach = box[3:6] / 2 + 0.15
    return (along.abs() < reach[0]) & (across.abs() < reach[1]) & (up.abs() < reach[2])


def test_a_frame_follows_from_seed_and_number_alone() -> None:
    first, again = frame(2), frame(2)
    for name in ("image", "points", "projection", "boxes", "labels", "difficulty", "drivable"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert not torch.equal(first.image, frame(3).image)
    assert not torch.equal(first.image, frame(2, seed=1).image)


def test_degrading_one_sensor_changes_that_sensor_alone() -> None:
    clear = frame()
    dark = frame(degradation=Degradation(camera=0.8))
    blind = frame(degradation=Degradation(lidar=0.8))
    assert torch.equal(clear.points, dark.points)
    assert dark.image.float().mean() < clear.image.float().mean() / 2
    assert torch.equal(clear.image, blind.image)
    assert len(blind.points) < len(clear.points) / 2
    for other in (dark, blind):
        assert torch.equal(clear.boxes, other.boxes)
        assert clear.drivable is not None
        assert other.drivable is not None
        assert torch.equal(clear.drivable, other.drivable)


def test_points_lie_on_the_ground_or_on_labelled_boxes() -> None:
    for number in range(4):
        made = frame(number)
        on_ground = (made.points[:, 2] + 1.73).abs() < 0.3
        on_box = torch.zeros(len(made.points), dtype=torch.bool)
        for box in made.boxes:
            on_box |= inside(made.points, box)
        assert (on_ground | on_box).all()
        assert on_box.sum() > 20


def test_easy_objects_return_points_and_lie_in_the_picture() -> None:
    for number in range(4):
        made = frame(number)
        for box, level in zip(made.boxes, made.difficulty.tolist(), strict=True):
            if level > 0:
                continue
            seen = np.c_[corners(box[None].double().numpy())[0], np.ones(8)]
            pixels = seen @ made.projection.double().numpy().T
            assert (pixels[:, 2] > 0).all()
            assert (pixels[:, 0] / pixels[:, 2]).max() > 0
            assert (pixels[:, 0] / pixels[:, 2]).min() < 96


def test_what_stands_behind_something_is_graded_as_hidden() -> None:
    world = make_world(np.random.default_rng(0))
    boxes = np.array([[10.0, 0.0, -1.0, 4.0, 1.7, 1.5, 0.0], [25.0, 0.0, -0.9, 0.8, 0.7, 1.7, 0.0]])
    one_behind_the_other = replace(
        world, boxes=boxes, labels=np.array([0, 1]), colours=np.full((2, 3), 0.5)
    )
    beside = replace(one_behind_the_other, boxes=boxes + np.array([[0.0] * 7, [0, 8] + [0] * 5]))
    for shown, hidden in ((one_behind_the_other, True), (beside, False)):
        _, visible = photograph(shown, np.random.default_rng(0), size=(320, 96), degraded=0)
        assert visible[0] == 1
        assert (visible[1] < 0.5) == hidden


def test_rays_meet_the_nearest_face() -> None:
    boxes = np.array(
        [[10.0, 0.0, 0.0, 2.0, 2.0, 2.0, 0.0], [6.0, 0.0, 0.0, 2.0, 2.0, 2.0, np.pi / 4]]
    )
    directions = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.8, 0.0, -0.6]])
    hits = cast(np.zeros(3), directions, boxes, -1.5)
    assert hits.what.tolist() == [1, -2, GROUND]
    np.testing.assert_allclose(hits.distance[0], 6 - np.sqrt(2))
    np.testing.assert_allclose(hits.distance[2], 2.5)
    np.testing.assert_allclose(hits.point[2], [2.0, 0.0, -1.5])
