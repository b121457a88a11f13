"""The bundled camera-LiDAR net sees unknown scenes, and can be drawn."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from PIL import Image

from taskprune.driving.bundled import bundled_file
from taskprune.driving.fusion import (
    judge,
    load_fusion_teacher,
    scene_batches,
)
from taskprune.driving.fusion.pictures import draw_frames
from taskprune.driving.fusion.recipe import RECIPE


def test_the_bundled_net_sees_unknown_scenes() -> None:
    net = load_fusion_teacher()
    assert not net.training
    found = judge(net, scene_batches("validation", 1, batch_size=6, seed=1))
    assert found["detection"]["map_bev"] > 0.5
    assert found["drivable"]["iou"] > 0.8


def test_the_card_tells_of_the_recipe() -> None:
    card = json.loads(bundled_file("fusion_n.json").read_text())
    assert card["recipe"] == vars(RECIPE)
    assert card["params"] == sum(p.numel() for p in load_fusion_teacher().parameters())


def test_a_picture_shows_labelled_frames(tmp_path: Path) -> None:
    net = load_fusion_teacher().train()
    [batch] = scene_batches("validation", 1, batch_size=2)
    state = torch.get_rng_state()
    draw_frames(net, batch, tmp_path / "frames.png", grid=net.config.grid, n_frames=1)
    assert net.training
    assert torch.equal(state, torch.get_rng_state())
    with Image.open(tmp_path / "frames.png") as picture:
        assert picture.size[0] == 500
        assert len(picture.convert("L").getcolors() or []) > 50
