from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from taskprune.distillation import FeatureLoss, Tap, mse, pkd
from taskprune.distillation.alignment import make_alignment
from taskprune.errors import InputError

KEEP = (1, 4, 5)


def feature(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("loss", [mse, pkd])
@pytest.mark.parametrize(
    ("shape", "dim"),
    [((2, 7, 4, 5), 1), ((2, 9, 7), 2), ((2, 4, 5, 7), 3), ((2, 7, 9), 1)],
    ids=["map", "tokens", "channels last", "sequence"],
)
def test_a_sliced_teacher_has_feature_loss_exactly_zero(
    loss: FeatureLoss, shape: tuple[int, ...], dim: int
) -> None:
    teacher = feature(*shape)
    student = teacher.index_select(dim, torch.tensor(KEEP))
    for tap in (Tap("layer"), Tap("layer", channel_dim=dim)):
        alignment = make_alignment(tap, student, teacher, keep=KEEP)
        assert alignment.adapter is None
        assert loss(*alignment(student, teacher)).item() == 0.0
    wrong = make_alignment(Tap("layer", channel_dim=dim), student, teacher, keep=(0, 4, 5))
    assert loss(*wrong(student, teacher)).item() > 0.0


@pytest.mark.parametrize("dim", [1, 2])
def test_as_many_kept_channels_as_positions_are_told_apart_by_the_teacher(dim: int) -> None:
    teacher = feature(*((2, 3, 7) if dim == 2 else (2, 7, 3)))
    student = teacher.index_select(dim, torch.tensor(KEEP))
    for axis in (None, 1, 2):  # whatever the modules of the student seem to say
        alignment = make_alignment(Tap("layer"), student, teacher, keep=KEEP, axes=(axis, None))
        assert mse(*alignment(student, teacher)).item() == 0.0


@pytest.mark.parametrize("axes", [(1, None), (None, 1)])
def test_the_layout_that_one_model_tells_holds_for_both(
    axes: tuple[int | None, int | None],
) -> None:
    sequence = feature(2, 4, 5)
    alignment = make_alignment(Tap("layer"), sequence, sequence, axes=axes)
    assert (alignment.channel_dim, alignment.teacher_channel_dim) == (1, 1)
    assert mse(*alignment(sequence, sequence)).item() == 0.0


def test_equal_channels_without_a_map_need_nothing() -> None:
    teacher = feature(2, 7, 4, 5)
    alignment = make_alignment(Tap("layer"), teacher, teacher)
    assert not list(alignment.parameters())
    assert alignment.keep is None
    student, target = alignment(teacher, teacher)
    assert torch.equal(student, teacher)
    assert torch.equal(target, teacher)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 9, 3)], ids=["map", "tokens"])
def test_other_channel_counts_get_a_trainable_adapter(shape: tuple[int, ...]) -> None:
    student = feature(*shape)
    teacher = feature(*(7 if n == 3 else n for n in shape))
    alignment = make_alignment(Tap("layer"), student, teacher)
    assert alignment.adapter is not None
    adapted, target = alignment(student, teacher)
    assert adapted.shape == target.shape == teacher.shape
    mse(adapted, target).backward()  # type: ignore[no-untyped-call]
    assert alignment.adapter.weight.grad is not None


def test_an_adapter_started_from_the_map_embeds_the_kept_channels() -> None:
    teacher = feature(2, 7, 4, 5)
    student = teacher[:, list(KEEP)]
    alignment = make_alignment(Tap("layer", adapter=True), student, teacher, keep=KEEP)
    adapted, _ = alignment(student, teacher)
    assert torch.equal(adapted[:, list(KEEP)], student)
    rest = [c for c in range(7) if c not in KEEP]
    assert torch.equal(adapted[:, rest], torch.zeros(2, 4, 4, 5))


def test_maps_are_resized_to_the_teachers() -> None:
    student, teacher = feature(2, 3, 4, 4), feature(2, 3, 8, 8)
    resized, target = make_alignment(Tap("layer"), student, teacher)(student, teacher)
    expected = F.interpolate(student, size=(8, 8), mode="bilinear", align_corners=False)
    assert torch.equal(resized, expected)
    assert torch.equal(target, teacher)


def test_tokens_are_not_resized() -> None:
    student, teacher = feature(2, 9, 3), feature(2, 16, 3)
    alignment = make_alignment(Tap("layer"), student, teacher)
    with pytest.raises(InputError, match="9 student tokens"):
        alignment(student, teacher)


@pytest.mark.parametrize("keep", [(1, 4), (1, 4, 5, 6), (1, 4, 7), (-1, 4, 5), ()])
def test_a_map_that_does_not_fit_is_refused(keep: Sequence[int]) -> None:
    with pytest.raises(InputError, match="Tap `layer`: the channel map"):
        make_alignment(Tap("layer"), feature(2, 3, 4, 5), feature(2, 7, 4, 5), keep=keep)


def test_features_of_other_dims_are_refused() -> None:
    for student, teacher in ((feature(2), feature(2)), (feature(2, 3), feature(2, 3, 4))):
        with pytest.raises(InputError, match="Tap `layer`: expected maps"):
            make_alignment(Tap("layer"), student, teacher)
    with pytest.raises(InputError, match="channel_dim=4"):
        make_alignment(Tap("layer", channel_dim=4), feature(2, 3, 4, 5), feature(2, 3, 4, 5))
