"""The training loop on a tiny net and tiny scenes."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from damaged_files import put
from launched_processes import run_in_processes
from nets_samples import TINY, scenes, tiny_net
from torch import Tensor
from torch.utils.data import Dataset

from taskprune.driving.batch import DrivingBatch
from taskprune.driving.data.sample import DrivingSample
from taskprune.driving.netfile import load_net
from taskprune.driving.nets import PanopticDrivingNet
from taskprune.driving.training import TrainSettings, train
from taskprune.driving.training.state import FORMAT
from taskprune.driving.training.stream import Drawn, Shuffled
from taskprune.driving.training.team import Team
from taskprune.errors import CheckpointError, InputError, TrainingError
from taskprune.files import read_sealed, write_sealed

SETTINGS = TrainSettings(steps=6, batch_size=2, workers=0, log_every=2, save_every=2)


class Samples(Dataset[DrivingSample]):
    """Five labelled images, or others in their place."""

    def __init__(self, **changes: Any) -> None:
        batch = scenes((2, 0, 1, 1, 3))
        self.samples = [
            dataclasses.replace(
                DrivingSample(
                    (batch.images[i] * 255).byte(),
                    batch.boxes[i] if batch.boxes else None,
                    batch.labels[i] if batch.labels else None,
                    batch.drivable[i].byte() if batch.drivable is not None else None,
                    batch.lane[i].byte() if batch.lane is not None else None,
                ),
                **changes,
            )
            for i in range(5)
        ]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> DrivingSample:
        return self.samples[index]


class KilledError(Exception):
    """Stands for a kill."""


class Dying(Samples):
    """Ends the process's life at its n-th read."""

    def __init__(self, n_reads: int) -> None:
        super().__init__()
        self.left = n_reads

    def __getitem__(self, index: int) -> DrivingSample:
        self.left -= 1
        if self.left < 0:
            raise KilledError
        return super().__getitem__(index)


def darkened(sample: DrivingSample, rng: np.random.Generator) -> DrivingSample:
    return dataclasses.replace(sample, image=(sample.image * rng.random()).byte())


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def assert_same_weights(first: PanopticDrivingNet, second: PanopticDrivingNet) -> None:
    other = second.state_dict()
    for name, value in first.state_dict().items():
        assert torch.equal(value, other[name]), name


def test_losses_fall(tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, steps=40, lr=5e-3, log_every=10, save_every=40)
    train(tiny_net(), Samples(), settings=settings, out=tmp_path)
    first, *_, last = records(tmp_path)
    assert last["step"] == 40
    for task in ("detection", "drivable", "lane"):
        assert last["losses"][task] < 0.95 * first["losses"][task]


def test_a_trained_net_can_be_trained_on(tmp_path: Path) -> None:
    trained = train(tiny_net(), Samples(), settings=SETTINGS, out=tmp_path)
    assert all(parameter.requires_grad for parameter in trained.parameters())


def test_a_killed_run_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    expected = train(
        tiny_net(), Samples(), settings=SETTINGS, out=tmp_path / "whole", augment=darkened
    )
    with pytest.raises(KilledError):
        train(
            tiny_net(),
            Dying(2 * 5 + 1),  # in the sixth step; the last checkpoint is of step 4
            settings=SETTINGS,
            out=tmp_path / "killed",
            augment=darkened,
        )
    torch.manual_seed(123)
    other_start = PanopticDrivingNet(TINY)
    resumed = train(
        other_start,
        Samples(),
        settings=SETTINGS,
        out=tmp_path / "killed",
        augment=darkened,
        resume=True,
    )
    assert_same_weights(resumed, expected)
    assert [r["step"] for r in records(tmp_path / "killed")] == [2, 4, 6]
    assert_same_weights(load_net(tmp_path / "killed" / "net.safetensors"), expected)


def test_a_run_is_only_resumed_with_its_own_recipe(tmp_path: Path) -> None:
    train(tiny_net(), Samples(), settings=SETTINGS, out=tmp_path)
    for changed in (
        dataclasses.replace(SETTINGS, lr=1e-4),
        dataclasses.replace(SETTINGS, steps=None, minutes=1.0),
    ):
        with pytest.raises(CheckpointError, match="own settings"):
            train(tiny_net(), Samples(), settings=changed, out=tmp_path, resume=True)
    with pytest.raises(CheckpointError, match="another net"):
        train(tiny_net(num_classes=3), Samples(), settings=SETTINGS, out=tmp_path, resume=True)


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    train(tiny_net(), Samples(), settings=SETTINGS, out=tmp_path)
    path = tmp_path / "last.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"last\.safetensors"):
        train(tiny_net(), Samples(), settings=SETTINGS, out=tmp_path, resume=True)


def test_changed_files_are_refused_and_leave_the_net_as_it_was(tmp_path: Path) -> None:
    train(tiny_net(), Samples(), settings=SETTINGS, out=tmp_path)
    net = tiny_net()
    before = {key: value.clone() for key, value in net.state_dict().items()}

    def resume() -> None:
        train(net, Samples(), settings=SETTINGS, out=tmp_path, resume=True)

    rng = random.Random(0)
    for name, use in (
        ("net.safetensors", lambda: load_net(tmp_path / "net.safetensors")),
        ("last.safetensors", resume),
    ):
        good = (tmp_path / name).read_bytes()
        for place in (9, *(rng.randrange(len(good)) for _ in range(5))):
            changed = bytearray(good)
            changed[place] ^= 1 << rng.randrange(8)
            put(tmp_path / name, bytes(changed))
            with pytest.raises(CheckpointError, match=name):
                use()
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_checkpoints_without_all_that_a_run_has_are_refused(tmp_path: Path) -> None:
    train(tiny_net(), Samples(), settings=SETTINGS, out=tmp_path)
    path = tmp_path / "last.safetensors"
    tensors, texts = read_sealed(path, file_format=FORMAT)
    average = next(name for name in tensors if name.startswith("average."))
    moment = next(name for name in tensors if name.startswith("optimizer.exp_avg."))
    for name in (average, moment):
        left = {key: value for key, value in tensors.items() if key != name}
        write_sealed(path, left, {"run": texts["run"]}, file_format=FORMAT)
        with pytest.raises(CheckpointError, match="another net"):
            train(tiny_net(), Samples(), settings=SETTINGS, out=tmp_path, resume=True)
    for text in ("{", "[]", '{"step": 2}', texts["run"].replace('"step": 6', '"step": "6"')):
        write_sealed(path, tensors, {"run": text}, file_format=FORMAT)
        with pytest.raises(CheckpointError, match="no training checkpoint"):
            train(tiny_net(), Samples(), settings=SETTINGS, out=tmp_path, resume=True)


def test_a_folder_is_for_one_run_at_a_time(tmp_path: Path) -> None:
    class Twice(Samples):
        def __getitem__(self, index: int) -> DrivingSample:
            with pytest.raises(InputError, match="no other run writes to"):
                train(tiny_net(), Samples(), settings=SETTINGS, out=tmp_path)
            return super().__getitem__(index)

    train(tiny_net(), Twice(), settings=SETTINGS, out=tmp_path)
    assert [record["step"] for record in records(tmp_path)] == [2, 4, 6]
    assert not (tmp_path / ".lock").exists()


def test_half_a_line_that_a_kill_left_is_dropped(tmp_path: Path) -> None:
    train(tiny_net(), Samples(), settings=SETTINGS, out=tmp_path)
    log = tmp_path / "log.jsonl"
    whole = log.read_text()
    log.write_text(whole + '{"step": 8, "lo')
    train(tiny_net(), Samples(), settings=SETTINGS, out=tmp_path, resume=True)
    assert log.read_text() == whole
    log.write_text("what is this?\n" + whole)
    with pytest.raises(CheckpointError, match=r"Line 1 of .*log\.jsonl"):
        train(tiny_net(), Samples(), settings=SETTINGS, out=tmp_path, resume=True)


def test_loading_processes_change_nothing(tmp_path: Path) -> None:
    nets = [
        train(
            tiny_net(),
            Samples(),
            settings=dataclasses.replace(SETTINGS, steps=3, workers=workers),
            out=tmp_path / str(workers),
            augment=darkened,
        )
        for workers in (0, 2)
    ]
    assert_same_weights(*nets)


def test_training_draws_nothing_from_the_callers_random_numbers(tmp_path: Path) -> None:
    net = tiny_net()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(net, Samples(), settings=SETTINGS, out=tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_tasks_without_labels_are_left_out(tmp_path: Path) -> None:
    train(tiny_net(), Samples(lane=None), settings=SETTINGS, out=tmp_path)
    assert set(records(tmp_path)[-1]["losses"]) == {"detection", "drivable"}


def test_validation_is_logged_at_the_end(tmp_path: Path) -> None:
    net = train(
        tiny_net(), Samples(), settings=SETTINGS, out=tmp_path, validation=[scenes((2, 0, 1))]
    )
    *_, last = records(tmp_path)
    assert last["step"] == 6
    assert set(last["validation"]) == {"detection", "drivable", "lane"}
    assert not net.training


class Broken(PanopticDrivingNet):
    """Answers NaN from the third step on."""

    calls = 0

    def forward(self, images: Tensor, targets: DrivingBatch | None = None) -> dict[str, Any]:
        outputs = super().forward(images, targets)
        self.calls += 1
        if self.calls > 2:
            outputs["lane"] = outputs["lane"] * float("nan")
        return outputs


def test_a_loss_that_is_not_finite_ends_training(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"`lane`.*nan at step 2"):
        train(Broken(TINY), Samples(), settings=SETTINGS, out=tmp_path)
    assert (tmp_path / "last.safetensors").exists()


def test_an_empty_data_set_is_refused(tmp_path: Path) -> None:
    empty = Samples()
    empty.samples = []
    with pytest.raises(InputError, match="at least one sample"):
        train(tiny_net(), empty, settings=SETTINGS, out=tmp_path)


def test_every_pass_shows_every_sample_once() -> None:
    stream = iter(Shuffled(5, batch_size=2, seed=0, first_step=0, team=Team()))
    draws = [draw for _ in range(10) for draw in next(stream)]
    assert [number for _, number in draws] == list(range(20))
    passes = [[index for index, _ in draws[i : i + 5]] for i in range(0, 20, 5)]
    assert all(sorted(p) == [0, 1, 2, 3, 4] for p in passes)
    assert len({tuple(p) for p in passes}) > 1


def test_a_stream_can_start_anywhere_and_be_shared() -> None:
    def first(n: int, *, step: int, rank: int = 0, size: int = 1) -> list[list[tuple[int, int]]]:
        team = Team()
        team.rank, team.size = rank, size
        stream = iter(Shuffled(5, batch_size=2, seed=0, first_step=step, team=team))
        return [next(stream) for _ in range(n)]

    whole = first(6, step=0)
    assert first(3, step=3) == whole[3:]
    assert first(3, step=0, rank=0, size=2) == whole[::2]
    assert first(3, step=0, rank=1, size=2) == whole[1::2]


def test_augmentation_belongs_to_the_draw() -> None:
    data = Drawn(Samples(), seed=0, augment=darkened)
    assert torch.equal(data[0, 3].image, data[0, 3].image)
    assert not torch.equal(data[0, 3].image, data[0, 4].image)


def test_two_processes_keep_the_same_parameters(tmp_path: Path) -> None:
    run_in_processes(Path(__file__).with_name("training_child.py"), tmp_path)
    first, second = (torch.load(tmp_path / str(rank) / "net.pt") for rank in range(2))
    for name, _ in tiny_net().named_parameters():
        assert torch.equal(first[name], second[name]), name
    assert not (tmp_path / "1" / "log.jsonl").exists()
