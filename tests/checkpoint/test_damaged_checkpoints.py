"""A checkpoint gives back what was saved, or is refused: whatever befell it, whoever wrote it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from damaged_files import damaged_json, damaged_safetensors, outcomes, put
from torch import Tensor, nn

from taskprune.errors import CheckpointError, InputError
from taskprune.files import read_sealed, sealed, write_sealed
from taskprune.plan.plan import PruningPlan, build_plan
from taskprune.rewrite import apply_plan
from taskprune.rewrite.checkpoint import FORMAT, load_checkpoint, read_header, save_checkpoint
from taskprune.testing import random_drop

sys.path.insert(0, str(Path(__file__).parents[1] / "rewrite"))
from small_nets import ConvNet, conv_net

METADATA = {"epoch": 3, "scores": [0.5, None], "names": {"a": "b"}}


@cache
def pruned() -> tuple[nn.Module, PruningPlan]:
    made = conv_net()
    plan = build_plan(made.groups, random_drop(made.groups, 0.4, seed=2), {"params": (9, 5)})
    model = apply_plan(made.model, plan)
    return model.to(memory_format=torch.channels_last), plan  # type: ignore[call-overload]


def is_what_was_saved(path: Path) -> bool:
    model, plan = pruned()
    header = read_header(path)
    loaded = load_checkpoint(path, ConvNet())
    state = loaded.state_dict()
    return (header.plan, header.metadata) == (plan, METADATA) and all(
        torch.equal(state[name], tensor) and state[name].stride() == tensor.stride()
        for name, tensor in model.state_dict().items()
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    model, plan = pruned()
    save_checkpoint(tmp_path / "net.safetensors", model, plan, metadata=METADATA)
    assert is_what_was_saved(tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


def test_damaged_files_are_refused_or_hold_the_same(path: Path) -> None:
    def load(data: bytes) -> bool:
        put(path, data)
        return is_what_was_saved(path)

    counts = outcomes(damaged_safetensors(path.read_bytes(), 2000, seed=0), load)
    assert counts["refused"] > 1900


def test_files_that_are_sealed_again_are_checked_all_the_same(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # hundreds of these take long
    tensors, texts = read_sealed(path, file_format=FORMAT)
    given = {key: texts[key] for key in ("plan", "taskprune", "metadata")}

    def rewritten() -> Iterator[tuple[dict[str, Tensor], dict[str, str]]]:
        for seed, key in enumerate(given):
            content = json.loads(given[key])
            for text in damaged_json(content, 100, seed=seed):
                if key == "plan":
                    try:
                        changed = json.loads(text)
                        changed.pop("sha256", None)
                        text = json.dumps(sealed(changed))
                    except (ValueError, RecursionError):
                        continue
                yield tensors, {**given, key: text}
            yield tensors, {name: text for name, text in given.items() if name != key}
        for name, tensor in tensors.items():
            for other in (tensor[None], tensor.reshape(-1), tensor.to(torch.int64), None):
                left = {n: t for n, t in tensors.items() if n != name}
                yield (left if other is None else {**left, name: other}), given

    def load(content: tuple[dict[str, Tensor], dict[str, str]]) -> bool:
        write_sealed(path, content[0], content[1], file_format=FORMAT)
        return is_what_was_saved(path)

    counts = outcomes(rewritten(), load, may_differ=True)
    assert counts["refused"] > 200


def test_metadata_that_cannot_be_read_back_is_refused_when_it_is_written(tmp_path: Path) -> None:
    model, plan = pruned()
    deep: list[object] = []
    for _ in range(200):
        deep = [deep]
    for metadata in ({"a": deep}, {1: "a", "1": "b"}):
        with pytest.raises(InputError, match="metadata"):
            save_checkpoint(tmp_path / "a", model, plan, metadata=metadata)  # type: ignore[arg-type]


def test_tensors_that_share_memory_are_stored_apart(tmp_path: Path) -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            both = torch.arange(6.0)
            self.a, self.b = nn.Parameter(both[:3]), nn.Parameter(both[2:])

    plan = PruningPlan((), (), (), (), {"a": (3,), "b": (4,)})
    model = Views()
    save_checkpoint(tmp_path / "a", model, plan)
    loaded = load_checkpoint(tmp_path / "a", Views).state_dict()
    assert all(torch.equal(loaded[name], t) for name, t in model.state_dict().items())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(3, dtype=torch.complex128), r"`inner`.*complex128"),
        (torch.zeros(3).to_sparse(), r"`inner`.*sparse"),
        (torch.empty(3, device="meta"), r"`inner`.*meta"),
    ],
    ids=["complex128", "sparse", "meta"],
)
def test_tensors_that_no_file_can_hold_are_named(
    value: Tensor, message: str, tmp_path: Path
) -> None:
    model = nn.Module()
    model.register_buffer("inner", value)
    with pytest.raises(CheckpointError, match=message):
        save_checkpoint(tmp_path / "a", model, PruningPlan((), (), (), (), {"inner": (3,)}))
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_of_another_version_say_so(path: Path) -> None:
    tensors, texts = read_sealed(path, file_format=FORMAT)
    write_sealed(path, tensors, {"plan": texts["plan"]}, file_format="taskprune.checkpoint/1")
    with pytest.raises(CheckpointError, match=r"has the format 'taskprune\.checkpoint/1'"):
        load_checkpoint(path, ConvNet)
