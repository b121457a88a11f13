"""Training of the fusion net: repeatable, resumable, on scenes of its own."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import get_args

import pytest
import torch

from taskprune.driving.fusion import (
    BevGrid,
    FusionNet,
    TwoSensorScenes,
    fusion_kind,
    judge,
    load_fusion_net,
    save_fusion_net,
    scene_batches,
    train_fusion_net,
    two_sensor_scenes,
)
from taskprune.driving.fusion.net import SCALES
from taskprune.driving.fusion.recipe import Part
from taskprune.driving.training import TrainSettings, train
from taskprune.errors import CheckpointError

GRID = BevGrid(cell=3.0)
SETTINGS = TrainSettings(steps=3, batch_size=2, workers=0, save_every=2)


def small(seed: int = 0) -> FusionNet:
    torch.manual_seed(seed)
    config = dataclasses.replace(
        SCALES["n"], grid=GRID, camera=(8, 8, 8, 8), lidar=(8, 8, 8), fused=8, head=8
    )
    return FusionNet(config)


def scenes() -> TwoSensorScenes:
    return TwoSensorScenes(6, seed=0, size=(96, 32), grid=GRID)


def assert_same_weights(first: FusionNet, second: FusionNet) -> None:
    other = second.state_dict()
    for name, value in first.state_dict().items():
        assert torch.equal(value, other[name]), name


def test_a_run_that_was_stopped_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    kind = fusion_kind(GRID, n_points=256)

    class KilledError(Exception):
        """Stands for a kill."""

    class Dying(TwoSensorScenes):
        """Ends the process's life in the third step."""

        reads = itertools.count()

        def __getitem__(self, number: int) -> object:  # type: ignore[override]
            if next(self.reads) == 5:
                raise KilledError
            return super().__getitem__(number)

    whole = train(small(), scenes(), settings=SETTINGS, out=tmp_path / "whole", kind=kind)
    dying = Dying(6, seed=0, size=(96, 32), grid=GRID)
    with pytest.raises(KilledError):
        train(small(), dying, settings=SETTINGS, out=tmp_path / "killed", kind=kind)
    resumed = train(
        small(seed=1), scenes(), settings=SETTINGS, out=tmp_path / "killed", kind=kind, resume=True
    )
    assert_same_weights(whole, resumed)
    assert_same_weights(whole, load_fusion_net(tmp_path / "whole" / "net.safetensors"))


def test_a_trained_net_follows_from_its_seed_and_draws_from_no_generator() -> None:
    state = torch.get_rng_state()
    first = train_fusion_net(seed=3, steps=1)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(9)
    assert_same_weights(first, train_fusion_net(seed=3, steps=1))
    assert not first.training


def test_a_file_holds_the_whole_net(tmp_path: Path) -> None:
    net = small().eval()
    save_fusion_net(net, tmp_path / "net.safetensors")
    loaded = load_fusion_net(tmp_path / "net.safetensors")
    assert loaded.config == net.config
    assert_same_weights(net, loaded)


def test_a_file_of_another_kind_is_refused() -> None:
    other = Path(__file__).parents[3] / "taskprune/driving/weights/teacher_n.safetensors"
    with pytest.raises(CheckpointError, match="fusion net"):
        load_fusion_net(other)


def test_scenes_for_different_purposes_and_seeds_never_overlap() -> None:
    seeds = {two_sensor_scenes(p, 1, seed=s).seed for p in get_args(Part) for s in range(5)}
    assert len(seeds) == len(get_args(Part)) * 5


def test_the_judge_returns_parts_of_one_and_the_modes_of_the_net() -> None:
    batches = scene_batches("validation", 1, batch_size=2)
    torch.manual_seed(0)
    net = FusionNet(SCALES["n"]).train()
    net.fusion.eval()
    found = judge(net, batches)
    assert {"map_bev", "map_3d"} < set(found["detection"])
    assert 0 <= found["drivable"]["iou"] <= 1
    assert net.training
    assert not net.fusion.training
