"""Laws of the procedural road scenes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from taskprune.driving.data import DrivingSample, RoadScenes
from taskprune.driving.data.scenes import MIN_BOX_SIDE, dataset, draw_scene, noise
from taskprune.driving.data.scenes.canvas import SCENERY, Canvas
from taskprune.driving.data.scenes.geometry import Camera, Course, View
from taskprune.driving.data.scenes.ground import LANE_WIDTH, _line_label, paint_ground
from taskprune.driving.data.scenes.layout import Marking, draw_layout
from taskprune.driving.data.scenes.light import draw_light
from taskprune.driving.data.scenes.vehicle_paint import paint_vehicle
from taskprune.driving.data.scenes.vehicles import draw_vehicles
from taskprune.errors import InputError

SCENES = RoadScenes(60, seed=11)
FLAT = Course(0.0, 0.0, 0.0, 0.0, 0.0, 100.0)


@pytest.fixture(scope="module")
def samples() -> list[DrivingSample]:
    return [SCENES[i] for i in range(len(SCENES))]


def tensors(sample: DrivingSample) -> list[torch.Tensor]:
    parts = (sample.image, sample.boxes, sample.labels, sample.drivable, sample.lane)
    assert all(part is not None for part in parts)
    return [part for part in parts if part is not None]


def same(a: DrivingSample, b: DrivingSample) -> bool:
    return all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))


def test_a_scene_depends_on_seed_and_index_alone(samples: list[DrivingSample]) -> None:
    again = RoadScenes(1000, seed=11)
    state = repr(np.random.get_state())  # noqa: NPY002
    for index in (31, 2, 59, 2):
        assert same(again[index], samples[index])
    assert repr(np.random.get_state()) == state  # noqa: NPY002
    assert not same(RoadScenes(60, seed=12)[2], samples[2])
    assert not same(samples[2], samples[3])


def test_shapes_types_and_ranges(samples: list[DrivingSample]) -> None:
    for sample in samples:
        image, boxes, labels, drivable, lane = tensors(sample)
        assert image.shape == (3, 192, 320)
        assert image.dtype == torch.uint8
        assert drivable.shape == lane.shape == (192, 320)
        assert drivable.dtype == lane.dtype == torch.uint8
        assert drivable.max() <= 1
        assert lane.max() <= 1
        assert boxes.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert labels.tolist() == [0] * len(boxes)


def test_boxes_lie_in_the_image_and_are_not_tiny(samples: list[DrivingSample]) -> None:
    for sample in samples:
        boxes = tensors(sample)[1]
        low, high = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
        assert (low >= -1e-6).all()
        assert (high <= 1 + 1e-6).all()
        assert (boxes[:, 2:] * torch.tensor([320.0, 192.0]) >= MIN_BOX_SIDE - 1e-3).all()


def test_there_is_something_to_learn_in_every_task(samples: list[DrivingSample]) -> None:
    drivable = np.array([tensors(s)[3].float().mean().item() for s in samples])
    lane = np.array([tensors(s)[4].float().mean().item() for s in samples])
    vehicles = np.array([len(tensors(s)[1]) for s in samples])
    assert (drivable > 0.03).all()
    assert 0.2 < drivable.mean() < 0.45
    assert 0.005 < lane.mean() < 0.04
    assert 1.5 < vehicles.mean() < 4
    assert vehicles.min() == 0
    brightness = np.array([tensors(s)[0].float().mean().item() for s in samples])
    assert brightness.std() > 20  # days and nights


@pytest.mark.parametrize("size", [(96, 64), (320, 192), (640, 384)], ids=str)
def test_labels_keep_their_place_at_other_sizes(size: tuple[int, int]) -> None:
    for index in range(5):
        small = tensors(RoadScenes(5, seed=3, size=(320, 192))[index])[3]
        other = tensors(RoadScenes(5, seed=3, size=size)[index])[3]
        share_small, share_other = small.float().mean().item(), other.float().mean().item()
        # The same streets, but trees and lanes differ by the rounding of their pixels.
        assert share_other == pytest.approx(share_small, abs=0.12)


def painted_vehicles(seed: int) -> tuple[Canvas, list[int]]:
    """Paint only the ground and vehicles of a scene; return the vehicles' whole sizes too."""
    rng = np.random.default_rng(seed)
    light = draw_light(rng)
    layout = draw_layout(rng, light)
    view = View(Camera(0.9, 0.42, 1.5), Course(0.1, 0.02, 1e-3, 0, 1.0, 150), size=(320, 192))
    canvas = Canvas.blank(size=(320, 192))
    paint_ground(canvas, view, layout, light, rng)
    vehicles = draw_vehicles(rng, view, layout, dark=False)
    pixels = [paint_vehicle(canvas, view, v, light, number=k + 1) for k, v in enumerate(vehicles)]
    return canvas, pixels


def test_every_painted_vehicle_owns_its_pixels_and_no_more() -> None:
    for seed in range(20):
        canvas, pixels = painted_vehicles(seed)
        for number, total in enumerate(pixels, start=1):
            assert np.count_nonzero(canvas.owner == number) <= total
        assert canvas.owner.max(initial=0) <= len(pixels)
        assert (canvas.depth[canvas.owner > 0] < 75).all()


def test_near_things_hide_far_things() -> None:
    canvas = Canvas.blank(size=(64, 64))
    window = canvas.window((10, 20), (10, 20))
    assert window is not None
    mask = np.ones((10, 10), bool)
    window.paint(np.full((3, 1, 1), 0.5, np.float32), mask, depth=10, owner=1)
    window.paint(np.full((3, 1, 1), 0.9, np.float32), mask, depth=20, owner=2)
    assert (canvas.owner[10:20, 10:20] == 1).all()
    window.paint(np.full((3, 1, 1), 0.9, np.float32), mask, depth=5, owner=3)
    assert (canvas.owner[10:20, 10:20] == 3).all()
    assert canvas.colour[:, 10:20, 10:20] == pytest.approx(0.9)


def test_drivable_area_and_lane_lines_are_ground_without_vehicles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[np.ndarray] = []

    def spy(canvas: Canvas, *args: object) -> np.ndarray:
        seen.append(canvas.owner.copy())
        return np.zeros((3, 192, 320), np.uint8)

    monkeypatch.setattr(dataset, "expose", spy)
    hidden = 0
    for index in range(25):
        sample = draw_scene(np.random.default_rng((5, index)), size=(320, 192))
        owner = seen[-1]
        _, boxes, _, drivable, lane = (t.numpy() for t in tensors(sample))
        labelled, things = (drivable | lane).astype(bool), owner != SCENERY
        # Scenes for traffic on the left are mirrored after painting.
        assert not (labelled & things).any() or not (labelled[:, ::-1] & things).any()
        hidden += int(np.count_nonzero(things))
        assert len(boxes) <= owner.max(initial=0)
    assert hidden > 0


def test_boxes_are_the_smallest_around_visible_pixels() -> None:
    owner = np.zeros((192, 320), np.int16)
    owner[50:70, 100:140] = 1
    owner[60:65, 130:160] = 2  # shows 30 x 5 pixels: too low
    owner[0:40, 0:20] = 3  # a tenth of a vehicle that fills 8000 pixels
    boxes = dataset._visible_boxes(owner, [800, 200, 8000])
    assert boxes == pytest.approx(np.array([[120 / 320, 60 / 192, 40 / 320, 20 / 192]]))


def test_lane_lines_are_widened_to_a_least_width_but_not_lengthened() -> None:
    view = View(Camera(0.9, 0.42, 1.5), FLAT, size=(320, 192))
    solid = _line_label(Marking(1.7, 0.12, (1, 1, 1)), view, last=80.0)
    rows = solid.sum(axis=1)[(view.distance < 80) & (view.distance > 8)]
    assert rows.min() >= LANE_WIDTH - 1
    assert rows.max() <= LANE_WIDTH + 2
    assert solid[view.distance > 80].sum() == 0
    dashed = _line_label(Marking(1.7, 0.12, (1, 1, 1), 12.0, 0.4), view, last=80.0)
    assert not (dashed & ~solid).any()
    near = view.distance < 25
    assert 0.2 < dashed[near].sum() / solid[near].sum() < 0.6


def test_ground_rows_and_points_agree() -> None:
    camera, course = Camera(0.9, 0.42, 1.5), Course(0.2, 0.03, 2e-3, 0, 1.5, 120)
    view = View(camera, course, size=(320, 192))
    middles = np.arange(view.top, 192) + 0.5
    near = view.distance < 60
    z = view.distance.astype(np.float64)[near]
    assert view.row(z, course.elevation(z)) == pytest.approx(middles[near], abs=0.02)
    assert (np.diff(view.distance) < 0).all()  # rows come nearer downwards
    for row in (0, 40, len(middles) - 1):
        z_row = float(view.distance[row])
        column = float(view.column(z_row, course.centre(z_row)))
        if 1 < column < 319:
            at = float(np.interp(column - 0.5, np.arange(320), view.lateral[row]))
            assert at == pytest.approx(0, abs=0.02)


def test_walls_follow_the_bend() -> None:
    bend = Course(0.0, 0.0, 4e-3, 0.0, 0.0, 100.0)  # to the right
    straight = View(Camera(0.9, 0.42, 1.5), FLAT, size=(320, 192))
    curved = View(Camera(0.9, 0.42, 1.5), bend, size=(320, 192))
    inside, outside = curved.wall(6.0), curved.wall(-6.0)
    assert np.isfinite(straight.wall(6.0)).sum() == pytest.approx(
        np.isfinite(straight.wall(-6.0)).sum(), abs=1
    )
    assert np.isfinite(outside).sum() > np.isfinite(straight.wall(-6.0)).sum()
    hit = np.isfinite(inside)
    assert (np.diff(inside[hit]) <= 1e-9).all()  # nearer towards the border
    assert (np.diff(outside[np.isfinite(outside)]) >= -1e-9).all()


@pytest.mark.parametrize("side", [5, 700, 1024, 2500])
def test_textures_tile(side: int) -> None:
    for seed in range(4):
        piece = noise.cut(noise.white(), np.random.default_rng(seed), height=side, width=3)
        top, left = np.random.default_rng(seed).integers(0, noise.TEXTURE_SIZE, 2)
        rows = (top + np.arange(side)) % noise.TEXTURE_SIZE
        columns = (left + np.arange(3)) % noise.TEXTURE_SIZE
        assert (piece == noise.white()[rows[:, None], columns]).all()


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(InputError, match="multiples of 32"):
        RoadScenes(3, seed=0, size=(321, 192))
    with pytest.raises(InputError, match="`n`"):
        RoadScenes(0, seed=0)
    with pytest.raises(InputError, match="`seed`"):
        RoadScenes(3, seed=-1)
    with pytest.raises(IndexError):
        RoadScenes(3, seed=0)[3]
    assert same(RoadScenes(3, seed=0)[-1], RoadScenes(3, seed=0)[2])
