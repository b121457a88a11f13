"""A run goes on from what was saved, or not at all: whatever befell its files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from damaged_files import damaged_bytes, damaged_json, damaged_safetensors, outcomes, put
from distill_toys import Interrupted, interrupt_at
from resume_child import CHILD_PATHS, train
from torch import Tensor, nn

from taskprune.distillation import StepRecord
from taskprune.distillation.batches import Position
from taskprune.distillation.kept_weights import BestWeights, Standing, WeightAverage
from taskprune.distillation.run_checkpoint import FORMAT, RunParts, load_run, save_run
from taskprune.errors import CheckpointError, InputError
from taskprune.files import read_sealed, write_sealed

IDENTITY = {"n_steps": 9, "shapes": {"0.weight": [3, 2]}, "tasks": {"near": [1.0, "loss"]}}
STANDING = Standing(2, -0.25, {"near": 0.5})


def parts(*, steps: int) -> RunParts:
    """Return all that a run can have, after some steps."""
    torch.manual_seed(steps)
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    model[2].weight.requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW([{"params": trained[:2]}, {"params": trained[2:]}], lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.rand(4, 2)).square().sum().backward()
        optimizer.step()
    best = BestWeights(model, None)  # type: ignore[arg-type]
    best.standing = STANDING if steps else None
    average = WeightAverage(model, 0.9)
    return RunParts(model, optimizer, torch.amp.GradScaler("cpu"), average, best)


def tensors_of(run: RunParts) -> list[Tensor]:
    assert run.average
    assert run.best
    states = run.optimizer.state_dict()["state"].values()
    optimizer = [state[key] for state in states for key in sorted(state)]
    kept = (*run.average.tensors.values(), *run.best.tensors.values())
    return [*run.model.state_dict().values(), *optimizer, *kept]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


class Checker:
    """Loads files into a run that has not begun, and says whether they are the one saved."""

    def __init__(self, path: Path) -> None:
        self.path = path
        saved = parts(steps=3)
        self.state = saved.state(4, Position(1, 2), IDENTITY, "0" * 64)
        save_run(path, saved, self.state)
        self.tensors = tensors_of(saved)
        self.run = parts(steps=0)
        self.before = [tensor.clone() for tensor in tensors_of(self.run)]

    def holds_the_same(self) -> bool:
        run = self.run
        try:
            state = load_run(self.path, run, IDENTITY)
        except BaseException:
            assert same(self.before, tensors_of(run)), "a file that was refused changed the run"
            raise
        self.run = parts(steps=0)
        assert run.best
        return (
            asdict(state) == asdict(self.state)
            and same(tensors_of(run), self.tensors)
            and run.best.standing == STANDING
        )


def test_damaged_files_are_refused_and_change_nothing(tmp_path: Path) -> None:
    checker = Checker(tmp_path / "run.safetensors")
    assert checker.holds_the_same()

    def load(data: bytes) -> bool:
        put(checker.path, data)
        return checker.holds_the_same()

    counts = outcomes(damaged_safetensors(checker.path.read_bytes(), 2000, seed=0), load)
    assert counts["refused"] > 1900


def test_files_that_are_sealed_again_are_checked_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # hundreds of these take long
    checker = Checker(tmp_path / "run.safetensors")
    tensors, texts = read_sealed(checker.path, file_format=FORMAT)
    header = texts["taskprune"]

    def rewritten() -> Iterator[tuple[dict[str, Tensor], str]]:
        for text in damaged_json(json.loads(header), 150, seed=1):
            yield tensors, text
        for name, tensor in tensors.items():
            for other in (tensor[None], tensor.long(), tensor.to(torch.complex64), None):
                left = {n: t for n, t in tensors.items() if n != name}
                yield (left if other is None else {**left, name: other}), header
            yield {**tensors, f"{name}x": tensor}, header

    def load(content: tuple[dict[str, Tensor], str]) -> bool:
        write_sealed(checker.path, content[0], {"taskprune": content[1]}, file_format=FORMAT)
        return checker.holds_the_same()

    counts = outcomes(rewritten(), load, may_differ=True)
    assert counts["refused"] > 150


def test_a_history_is_found_as_it_was_left_or_refused(tmp_path: Path) -> None:
    _, whole = train(None)
    with pytest.raises(Interrupted):
        train(tmp_path, interrupt_at(8))
    checkpoint, path = tmp_path / "checkpoint.safetensors", tmp_path / "history.jsonl"
    kept, good = checkpoint.read_bytes(), path.read_bytes()
    n_refused = 0
    for damaged in damaged_bytes(good, 25, seed=0):
        path.write_bytes(damaged)
        checkpoint.write_bytes(kept)
        try:
            _, history = train(tmp_path)
        except CheckpointError:
            n_refused += 1
        else:  # the damage lay behind the last step that counts
            assert history == whole
    assert n_refused > 15


TRAIN = """
import sys, time
from pathlib import Path
from resume_child import train
def wait(record, student):
    (Path(sys.argv[1]) / "begun").touch()
    while record.step == 2 and not (Path(sys.argv[1]) / "go").exists():
        time.sleep(0.01)
train(Path(sys.argv[1]), wait)
"""


def test_two_processes_cannot_train_in_one_folder(tmp_path: Path) -> None:
    _, whole = train(None)
    paths = os.pathsep.join([str(Path(__file__).parent), CHILD_PATHS])
    environment = {**os.environ, "PYTHONPATH": paths}
    command = [sys.executable, "-c", TRAIN, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as first:
        while not (tmp_path / "begun").exists():
            assert first.poll() is None, first.stderr and first.stderr.read()
        with pytest.raises(InputError, match="no other run writes to"):
            train(tmp_path)
        (tmp_path / "go").touch()
        assert first.wait() == 0
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [record.step for record in whole]
    _, history = train(tmp_path)
    assert history == whole


def test_a_run_inside_a_run_cannot_have_its_folder(tmp_path: Path) -> None:
    def again(record: StepRecord, student: nn.Module) -> None:
        with pytest.raises(InputError, match="no other run writes to"):
            train(tmp_path)

    _, history = train(tmp_path, again, steps=2)
    assert len(history) == 2
    assert not (tmp_path / ".lock").exists()
