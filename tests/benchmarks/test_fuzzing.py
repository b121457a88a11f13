"""Random nets follow from their seeds, come through whole, and are counted as what they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fuzzing
import fuzzing_trial
import pytest
import torch
from cells import Cells
from fuzzing_grammar import BLOCKS, build
from fuzzing_grammar.parts import Draw

import taskprune

SHAPES: dict[str, list[tuple[int, ...]]] = {
    "map": [(2, 3, 12), (2, 3, 8, 8), (2, 3, 4, 4, 4)],
    "tokens": [(2, 5, 6)],
}
KINDS = [(domain, kind) for domain, kinds in BLOCKS.items() for kind in kinds]


@pytest.mark.filterwarnings("ignore")  # of what people write all the same
@pytest.mark.parametrize(("domain", "kind"), KINDS, ids=[kind for _, kind in KINDS])
def test_every_kind_of_block_runs_in_its_spellings(domain: str, kind: str) -> None:
    for number, shape in enumerate(SHAPES[domain] * 3):
        block = BLOCKS[domain][kind](torch.Size(shape), Draw(number)).eval()
        with torch.no_grad():
            y = block(torch.rand(shape))
        assert y.shape[0] == shape[0]
        assert y.ndim == len(shape)


def test_a_seed_is_a_net() -> None:
    first, second = build(7), build(7)
    assert first.kinds == second.kinds
    weights = second.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in first.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(first.example, second.example, strict=True))
    assert [build(seed).kinds for seed in range(4)].count(first.kinds) <= 1


@pytest.mark.parametrize("seed", [1, 2, 10])
def test_a_random_net_comes_through_every_stage(seed: int) -> None:
    record = fuzzing_trial.try_net(seed)
    assert fuzzing.lost(record) == []
    assert record["given back"] == "ok"
    assert record["error"] <= fuzzing_trial.WORST


def test_rounding_of_which_a_net_makes_much_is_no_fault_of_a_checkpoint() -> None:
    assert fuzzing_trial.try_net(4316)["reload"] == "ok"


def test_a_net_that_goes_wrong_is_recorded_with_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise IndexError("list index out of range")

    monkeypatch.setattr(taskprune, "prune", fail)
    record = fuzzing_trial.try_net(1)
    assert fuzzing.lost(record) == ["prune: raw: IndexError: list index out of range"]


def test_the_tables_count_nets_by_kind_and_name_what_was_lost() -> None:
    refused = "refused: InputError: Expected `a.b` to hold. Found # in `c`."
    nets: list[dict[str, Any]] = [
        {"seed": 3, "kinds": ["Conv", "Conv"], "prune": "ok", "free": 6, "frozen": {"literal": 2}},
        {"seed": 4, "kinds": ["Conv", "Cell"], "prune": refused, "free": 4, "frozen": {}},
        {"seed": 5, "kinds": ["Cell"], "prune": "raw: KeyError: 'x'", "error": 1e-12},
        {"seed": 6, "crash": "exit status -11"},
    ]
    # Whatever blocks they are in.
    blocks = [{"block": n, **fuzzing.counted(part)} for n, part in enumerate((nets[:1], nets[1:]))]
    found = fuzzing.summary(blocks)
    assert (found["nets"], found["seeds"], found["worst error"]) == (4, [0, 999], 1e-12)
    assert found["stages"][0] == {"stage": "prune", "ok": 1, "refused": 1, "wrong": 0, "raw": 1}
    cell, conv = found["kinds"]
    assert conv == {
        "kind": "Conv", "tried": 2, "pruned": 1, "refused": 1, "lost": 0, "frozen %": 16.7,
    }  # fmt: skip
    assert (cell["tried"], cell["pruned"], cell["lost"]) == (2, 0, 1)
    reason = "InputError: Expected `…` to hold"
    assert found["refusals"] == [{"stage": "prune", "reason": reason, "nets": 1}]
    assert found["lost"] == [
        {"seed": 5, "what": "prune: raw: KeyError: 'x'"},
        {"seed": 6, "what": "crash: exit status -11"},
    ]


def test_a_run_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def tried(seeds: Any) -> list[dict[str, Any]]:
        asked.extend(seeds)
        return [{"seed": seed} for seed in seeds]

    monkeypatch.setattr(fuzzing, "tried", tried)
    monkeypatch.setattr(fuzzing, "BLOCK", 2)
    monkeypatch.setattr(fuzzing, "preload", lambda *_: None)
    cells = Cells("fuzzing", tmp_path)
    fuzzing.run(range(1), cells, jobs=1)
    fuzzing.run(range(3), cells, jobs=1)
    assert asked == [0, 1, 2, 3, 4, 5]
    assert [(cell["block"], cell["nets"]) for cell in cells.all()] == [(0, 2), (1, 2), (2, 2)]
