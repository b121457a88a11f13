"""Laws of the augmentations: labels go where the picture goes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from taskprune.driving.data import (
    Augment,
    Chain,
    ColourJitter,
    DrivingSample,
    Flip,
    RoadScenes,
    ScaleShift,
    SensorNoise,
    standard_augment,
)
from taskprune.driving.data.augment import flipped, moved

SCENES = RoadScenes(8, seed=21, size=(160, 96))
STEPS: dict[str, Augment] = {
    "flip": Flip(1.0),
    "scale-shift": ScaleShift(chance=1.0),
    "colour": ColourJitter(1.0),
    "noise": SensorNoise(),
    "standard": standard_augment(),
}


def marked_box(left: int, top: int, right: int, bottom: int) -> DrivingSample:
    """A black picture with one white rectangle, which is vehicle, road and lane at once."""
    image = torch.zeros(3, 96, 160, dtype=torch.uint8)
    image[:, top:bottom, left:right] = 255
    mask = (image[0] > 0).to(torch.uint8)
    box = ((left + right) / 320, (top + bottom) / 192, (right - left) / 160, (bottom - top) / 96)
    return DrivingSample(image, torch.tensor([box]), torch.tensor([0]), mask, mask.clone())


def bright_box(sample: DrivingSample) -> list[float]:
    rows, columns = np.nonzero(sample.image[0].numpy() == 255)
    left, right = columns.min() / 160, (columns.max() + 1) / 160
    top, bottom = rows.min() / 96, (rows.max() + 1) / 96
    return [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]


def boxes_of(sample: DrivingSample) -> torch.Tensor:
    assert sample.boxes is not None
    return sample.boxes


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())
def test_the_input_stays_as_it_was_and_types_hold(step: Augment) -> None:
    for index in range(len(SCENES)):
        sample, twin = SCENES[index], SCENES[index]
        out = step(sample, np.random.default_rng(index))
        for name in ("image", "boxes", "labels", "drivable", "lane"):
            before, after = getattr(twin, name), getattr(out, name)
            assert torch.equal(getattr(sample, name), before)
            assert after.dtype == before.dtype
            assert after.shape[1:] == before.shape[1:]
        assert len(boxes_of(out)) == len(out.labels if out.labels is not None else [])


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())
def test_the_generator_alone_decides(step: Augment) -> None:
    one, two = (step(SCENES[1], np.random.default_rng(9)) for _ in range(2))
    assert torch.equal(one.image, two.image)
    assert torch.equal(boxes_of(one), boxes_of(two))


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())
def test_absent_labels_stay_absent(step: Augment) -> None:
    bare = replace(SCENES[0], boxes=None, labels=None, drivable=None, lane=None)
    out = step(bare, np.random.default_rng(0))
    assert out.boxes is out.labels is out.drivable is out.lane is None


def test_a_flip_moves_labels_with_the_picture() -> None:
    out = flipped(marked_box(20, 30, 60, 50))
    assert boxes_of(out)[0].tolist() == pytest.approx(bright_box(out))
    assert boxes_of(out)[0, 0].item() == pytest.approx(0.75)
    for mask in (out.drivable, out.lane):
        assert mask is not None
        assert torch.equal(mask > 0, out.image[0] > 0)


def test_two_flips_give_the_sample_back() -> None:
    sample = SCENES[2]
    twice = flipped(flipped(sample))
    assert torch.equal(twice.image, sample.image)
    assert torch.allclose(boxes_of(twice), boxes_of(sample), atol=1e-6)


@pytest.mark.parametrize("scale", [0.8, 1.0, 1.5])
@pytest.mark.parametrize("centre", [(0.5, 0.5), (0.4, 0.55)])
def test_a_move_takes_labels_with_the_picture(scale: float, centre: tuple[float, float]) -> None:
    out = moved(marked_box(60, 30, 100, 60), scale=scale, centre=centre)
    found = bright_box(replace(out, image=(out.image > 127).to(torch.uint8) * 255))
    # The surroundings are grey 114, below the threshold.
    assert boxes_of(out)[0].tolist() == pytest.approx(found, abs=1.01 / 96)
    for mask in (out.drivable, out.lane):
        assert mask is not None
        assert ((mask > 0) != (out.image[0] > 127)).float().mean().item() < 0.02


def test_a_move_by_nothing_changes_nothing() -> None:
    sample = SCENES[3]
    out = moved(sample, scale=1.0, centre=(0.5, 0.5))
    for name in ("image", "drivable", "lane", "labels"):
        assert torch.equal(getattr(out, name), getattr(sample, name))
    assert torch.allclose(boxes_of(out), boxes_of(sample), atol=1e-6)


def test_what_comes_from_outside_is_grey_and_unlabelled() -> None:
    sample = marked_box(0, 0, 160, 96)
    out = moved(sample, scale=1.0, centre=(0.0, 0.5))  # the left half comes from outside
    assert (out.image[:, :, :79] == 114).all()
    assert out.drivable is not None
    assert out.drivable[:, :79].sum() == 0
    assert out.drivable[:, 80:].all()
    assert boxes_of(out)[0].tolist() == pytest.approx([0.75, 0.5, 0.5, 1.0])


def test_boxes_that_leave_the_picture_are_dropped_with_their_labels() -> None:
    sample = marked_box(0, 30, 40, 60)
    gone = moved(sample, scale=1.0, centre=(0.75, 0.5))
    assert gone.labels is not None
    assert len(boxes_of(gone)) == len(gone.labels) == 0
    assert boxes_of(gone).shape == (0, 4)
    sliver = moved(sample, scale=1.0, centre=(0.5 + 32 / 160, 0.5))  # a fifth is left
    assert len(boxes_of(sliver)) == 0
    half = moved(sample, scale=1.0, centre=(0.5 + 20 / 160, 0.5))
    assert boxes_of(half)[0].tolist() == pytest.approx([10 / 160, 45 / 96, 20 / 160, 30 / 96])


def test_colours_and_noise_leave_labels_alone() -> None:
    sample = SCENES[4]
    for step in (ColourJitter(1.0), SensorNoise(20.0)):
        out = step(sample, np.random.default_rng(1))
        assert not torch.equal(out.image, sample.image)
        assert out.boxes is sample.boxes
        assert out.lane is sample.lane
    neutral = ColourJitter(0.0)(sample, np.random.default_rng(1))
    assert (neutral.image.int() - sample.image.int()).abs().max() <= 1


def test_a_chain_applies_its_steps_in_order() -> None:
    sample = SCENES[5]
    both = Chain((Flip(1.0), Flip(1.0)))(sample, np.random.default_rng(0))
    assert torch.equal(both.image, sample.image)
    assert Chain(())(sample, np.random.default_rng(0)) is sample


def test_a_flip_happens_as_often_as_asked() -> None:
    sample, rng = SCENES[6], np.random.default_rng(4)
    assert Flip(0.0)(sample, rng) is sample
    times = sum(Flip(0.3)(sample, rng) is not sample for _ in range(400))
    assert 80 < times < 160
