"""The bundled teacher, and teachers fitted to other data."""

from __future__ import annotations

import dataclasses
import json
from importlib import resources
from pathlib import Path

import pytest
import torch
from nets_samples import randomise_norms, scenes, tiny_net

from taskprune.driving.bundled import bundled_file
from taskprune.driving.data import RoadScenes, loader, write_bdd100k
from taskprune.driving.evaluation import evaluate
from taskprune.driving.netfile import load_net, save_net
from taskprune.driving.teacher import FINE_TUNING, fit_teacher, load_teacher
from taskprune.driving.training import TrainSettings
from taskprune.errors import CheckpointError, DataError, MissingDependencyError

SHORT = TrainSettings(steps=2, batch_size=2, workers=0)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for number, split in enumerate(("train", "val")):
        write_bdd100k(RoadScenes(4, seed=number, size=(96, 64)), folder, split)
    return folder


def test_the_bundled_teacher_sees_unknown_scenes() -> None:
    unseen = loader(RoadScenes(16, seed=987_654), batch_size=8, shuffle=False, seed=0)
    metrics = evaluate(load_teacher(), unseen)
    assert metrics["detection"]["map50"] > 0.8
    assert metrics["drivable"]["miou"] > 0.94
    assert metrics["lane"]["iou"] > 0.65


def test_the_card_tells_recipe_and_metrics() -> None:
    card = json.loads(bundled_file("teacher_n.json").read_text())
    assert {"command", "seed", "steps", "versions", "metrics"} <= card.keys()
    assert card["metrics"]["detection"]["map50"] >= 0.6
    assert card["metrics"]["drivable"]["miou"] >= 0.9
    assert card["metrics"]["lane"]["iou"] >= 0.5


def test_the_bundled_teacher_is_ready_for_use() -> None:
    net = load_teacher()
    assert not any(module.training for module in net.modules())
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            tiny = (value != 0) & (value.abs() < torch.finfo(value.dtype).tiny)
            assert not tiny.any(), f"{name} holds denormal numbers"


def test_a_net_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    net = tiny_net(num_classes=2).eval()
    randomise_norms(net)
    save_net(net, tmp_path / "net.safetensors")
    again = load_net(tmp_path / "net.safetensors")
    images = scenes().images
    with torch.no_grad():
        assert torch.equal(again(images)["lane"], net(images)["lane"])
    assert again.config == net.config
    assert again.detection.num_classes == 2
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]


def test_denormal_numbers_are_saved_as_zero(tmp_path: Path) -> None:
    net = tiny_net()
    bias = net.detection.enc_norm.bias
    with torch.no_grad():
        bias.view(torch.int32)[0] = 1  # the smallest positive float32
    save_net(net, tmp_path / "net.safetensors")
    saved = load_net(tmp_path / "net.safetensors").detection.enc_norm.bias
    assert saved.view(torch.int32)[0] == 0


@pytest.mark.parametrize("damage", ["absent", "cut", "foreign", "another format"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "net.safetensors"
    if damage == "cut":
        save_net(tiny_net(), path)
        path.write_bytes(path.read_bytes()[:5000])
    elif damage == "foreign":
        path.write_text("no weights")
    elif damage == "another format":
        save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"net\.safetensors"):
        load_teacher(path)


def test_a_fitted_teacher_is_kept_for_the_same_data_and_recipe(root: Path, tmp_path: Path) -> None:
    fitted = fit_teacher(root, out=tmp_path, settings=SHORT, size=(96, 64))
    card = json.loads((tmp_path / "teacher.json").read_text())
    assert set(card["metrics"]) == {"detection", "drivable", "lane"}
    written = (tmp_path / "teacher.safetensors").stat().st_mtime_ns

    again = fit_teacher(root, out=tmp_path, settings=SHORT, size=(96, 64))
    assert (tmp_path / "teacher.safetensors").stat().st_mtime_ns == written
    for name, value in fitted.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name

    other = dataclasses.replace(SHORT, steps=1)
    fit_teacher(root, out=tmp_path, settings=other, size=(96, 64))
    assert (tmp_path / "teacher.safetensors").stat().st_mtime_ns != written


def test_fitting_starts_from_the_bundled_teacher(root: Path, tmp_path: Path) -> None:
    gentle = dataclasses.replace(SHORT, steps=1, lr=1e-12)
    fitted = fit_teacher(root, out=tmp_path, settings=gentle, size=(96, 64))
    for (name, value), start in zip(
        fitted.named_parameters(), load_teacher().parameters(), strict=True
    ):
        torch.testing.assert_close(value, start.detach(), msg=name, check_stride=False)


def test_fitting_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        fit_teacher(tmp_path / "nowhere", out=tmp_path, settings=SHORT)
    assert FINE_TUNING.steps is not None, "a time would give every machine another teacher"


def test_weights_that_were_not_installed_are_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "files", lambda _: tmp_path)
    with pytest.raises(MissingDependencyError, match="pip install taskprune-driving-weights"):
        load_teacher()
