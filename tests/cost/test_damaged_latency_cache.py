"""Measured times are those that were measured, or are refused; no process loses another's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from damaged_files import HOSTILE, damaged_bytes, damaged_json, outcomes, put

from taskprune.cost import CachedTimer, OperatorCall
from taskprune.errors import InputError
from taskprune.files import sealed


def operator(size: int) -> OperatorCall:
    return OperatorCall("aten.relu.default", {"size": size})


def size_of(call: OperatorCall) -> int | None:
    size: int = call.arguments["size"]
    return None if size == 3 else size * 1000


def saved(folder: Path) -> CachedTimer:
    timer = CachedTimer(size_of, "a device", folder=folder)
    for size in range(1, 12):
        timer(operator(size))
    timer.save()
    return timer


def test_damaged_files_are_refused_or_say_the_same(tmp_path: Path) -> None:
    timer = saved(tmp_path)
    good = timer.path.read_bytes()

    def load(data: bytes) -> bool:
        put(timer.path, data)
        return CachedTimer(size_of, "a device", folder=tmp_path).times == timer.times

    assert load(good)
    counts = outcomes(damaged_bytes(good, 1000, seed=0), load)
    counts += outcomes(
        (
            text.encode("utf-8", "surrogatepass")
            for text in damaged_json(json.loads(good), 1000, seed=1)
        ),
        load,
    )
    assert counts["refused"] > 1800


def test_files_that_are_sealed_again_are_checked_all_the_same(tmp_path: Path) -> None:
    timer = saved(tmp_path)
    content = json.loads(timer.path.read_bytes())
    content.pop("sha256")

    def load(text: str) -> bool:
        try:
            put(timer.path, json.dumps(sealed(json.loads(text))).encode())
        except (ValueError, TypeError, RecursionError):
            put(timer.path, text.encode("utf-8", "surrogatepass"))
        times = CachedTimer(size_of, "a device", folder=tmp_path).times
        assert all(ns is None or 0 <= ns < 2**63 for ns in times.values())
        return times == timer.times

    counts = outcomes((*damaged_json(content, 300, seed=2), *HOSTILE), load, may_differ=True)
    assert counts["refused"] > 100


def test_files_of_another_version_are_named(tmp_path: Path) -> None:
    path = saved(tmp_path).path
    path.write_text(json.dumps(sealed({"format": "taskprune.latency/9", "times": {}})))
    with pytest.raises(InputError, match=r"taskprune\.latency/9.*delete it"):
        CachedTimer(size_of, "a device", folder=tmp_path)


SAVE = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_damaged_latency_cache import CachedTimer, operator, size_of
for size in range(int(sys.argv[3]), int(sys.argv[3]) + 20):
    timer = CachedTimer(size_of, "a device", folder=Path(sys.argv[2]))
    timer(operator(size))
    timer.save()
"""


def test_processes_that_save_at_once_keep_each_others_times(tmp_path: Path) -> None:
    here = Path(__file__)
    paths = [here.parents[2], here.parents[1], here.parent, os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", SAVE, str(here.parent), str(tmp_path), str(first)],
            env=environment,
        )
        for first in (100, 200, 300)
    ]
    assert [child.wait() for child in children] == [0, 0, 0]
    times = CachedTimer(size_of, "a device", folder=tmp_path).times
    assert len(times) == 60
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]
