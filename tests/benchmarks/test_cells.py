"""Long benchmarks go on where they were stopped, and say which commit measured what."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import cells
import pytest
from cells import Cells

from taskprune.errors import InputError

FIRST = {"arm": "a", "seed": 0, "points": {"lane": 1.5}}
SECOND = {"arm": "b", "seed": 0, "points": {"lane": 2.5}}


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cells:
    monkeypatch.setattr(cells, "commit", lambda: "abc1234")
    return Cells("bench", tmp_path / "results" / "cells")


def test_a_benchmark_starts_with_no_cells(kept: Cells) -> None:
    assert kept.all() == []
    assert not kept.has({"arm": "a"})
    assert not kept.path.parent.exists()


def test_cells_come_back_in_order_with_their_commit(kept: Cells) -> None:
    kept.append(FIRST)
    kept.append(SECOND)
    again = Cells("bench", kept.path.parent)
    assert again.all() == [{**FIRST, "commit": "abc1234"}, {**SECOND, "commit": "abc1234"}]
    assert kept.path.read_text().count("\n") == 2


def test_a_key_names_the_cells_that_hold_all_of_it(kept: Cells) -> None:
    kept.append(FIRST)
    kept.append(SECOND)
    assert kept.matching({"arm": "b", "seed": 0})[0]["points"] == {"lane": 2.5}
    assert len(kept.matching({"seed": 0})) == 2
    assert kept.has({"arm": "a", "points": {"lane": 1.5}})
    assert not kept.has({"arm": "a", "seed": 1})
    assert not kept.has({"arm": "a", "steps": None})


def test_cells_without_a_commit_are_read_as_they_are(kept: Cells) -> None:
    kept.path.parent.mkdir(parents=True)
    kept.path.write_text(json.dumps(FIRST) + "\n")
    assert kept.all() == [FIRST]


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_last_line_that_was_cut_off_counts_as_never_written(kept: Cells, cut: int) -> None:
    kept.append(FIRST)
    kept.append({**SECOND, "arm": "1×1 adapters"})
    lines = kept.path.read_bytes().splitlines(keepends=True)
    kept.path.write_bytes(lines[0] + lines[1][:cut])
    assert [cell["arm"] for cell in kept.all()] == ["a"]
    kept.append(SECOND)
    assert [cell["arm"] for cell in kept.all()] == ["a", "b"]


def test_a_whole_last_line_without_its_newline_counts(kept: Cells) -> None:
    kept.append(FIRST)
    kept.path.write_bytes(kept.path.read_bytes().rstrip(b"\n"))
    assert [cell["arm"] for cell in kept.all()] == ["a"]
    kept.append(SECOND)
    assert [cell["arm"] for cell in kept.all()] == ["a", "b"]


@pytest.mark.parametrize("line", ["<<<<<<< HEAD", "[1, 2]", ""])
def test_a_broken_line_elsewhere_is_refused_with_its_place(kept: Cells, line: str) -> None:
    kept.append(FIRST)
    kept.path.write_text(line + "\n" + kept.path.read_text())
    with pytest.raises(InputError, match=r"line 1 of `.*bench\.jsonl`"):
        kept.all()


def test_the_commit_is_a_revision_of_this_checkout_or_nothing() -> None:
    found = cells.commit()
    assert found is None or int(found, 16) >= 0


@pytest.mark.parametrize(
    "failure",
    [
        FileNotFoundError("git"),
        subprocess.CalledProcessError(128, "git"),
        subprocess.TimeoutExpired("git", 10),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_without_git_the_commit_is_null(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise failure

    monkeypatch.setattr(subprocess, "run", fail)
    kept = Cells("bench", tmp_path)
    kept.append(FIRST)
    assert kept.all() == [{**FIRST, "commit": None}]
