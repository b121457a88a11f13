"""The commands on small models of one's own; the whole way is run by `tests/docs`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from architectures.torchvision_import import import_torchvision
from command_runs import DATA, NET, PICTURES, TASKS, as_json, refused, run
from typer.testing import CliRunner

import taskprune
from taskprune.commands import entering
from taskprune.commands.app import app
from taskprune.files import only_user_of
from taskprune.report.record import PruneReport


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, in which files of Python are read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield tmp_path
    for name in {*entering._entered, "package", "package.nets"} & (set(sys.modules) - before):
        del sys.modules[name]
    entering._entered.clear()


def test_training_and_compression_write_runs_like_pruning_does(folder: Path) -> None:
    (folder / "net.py").write_text(NET + DATA + TASKS)
    run("prune", "net.py", "--ratio", "0.3")
    trained = as_json("distill", "net.py", "runs/net", "--steps", "4")
    assert trained["metrics"].keys() == {"original", "pruned", "distilled"}
    assert "runs/net-distilled" in run("verify", "net.py", "runs/net-distilled")

    points = as_json("compress", "net.py", "--ratio", "0.5", "--rounds", "2", "--steps", "2")
    assert [point["step"] for point in points["points"]] == [0, 1, 2]
    as_json("export", "net.py", "runs/net-compressed", "-o", "net.pt2")
    measured = as_json("evaluate", "net.py", "runs/net-compressed", "net.pt2")["metrics"]
    assert measured.keys() == {"original", "runs/net-compressed", "net.pt2"}
    same = measured["runs/net-compressed"]["a"]
    assert measured["net.pt2"]["a"] == pytest.approx(same, rel=1e-4)
    assert "drops" in run("report", "runs/net-compressed")


@pytest.mark.parametrize("command", ["prune", "frontier", "compress"])
def test_a_second_run_is_locked_out(folder: Path, command: str) -> None:
    (folder / "net.py").write_text(NET + DATA + TASKS)
    size = ["--tolerance", "a=9"] if command == "frontier" else ["--ratio", "0.3"]
    with only_user_of(folder, option="x"):
        said = refused(command, "net.py", *size, "--out", ".")
    assert "no other run writes to" in said
    assert [path.name for path in folder.iterdir() if path.suffix != ".py"] in ([], ["__pycache__"])


def test_a_file_can_show_pictures(folder: Path) -> None:
    (folder / "net.py").write_text(NET + DATA + TASKS + PICTURES)
    run("prune", "net.py", "--ratio", "0.3")
    run("distill", "net.py", "runs/net", "--steps", "1")
    for place, models in (("net", "original, pruned"), ("net-distilled", "pruned, distilled")):
        page = (folder / "runs" / place / "report.html").read_text()
        (content,) = re.findall('data:image/png;base64,([^"]+)"', page)
        assert models in b64decode(content)[8:].decode()
        assert "What they see" in page
    (folder / "odd.py").write_text(NET + DATA + "pictures = 1\n")
    assert "`pictures()`" in refused("inspect", "odd.py")
    (folder / "other.py").write_text(NET + DATA + "def pictures(models):\n    return models\n")
    assert "file of a picture" in refused("prune", "other.py", "--ratio", "0.3")
    assert (folder / "runs" / "other" / "model.safetensors").is_file()


def test_a_frontier_is_measured_once_and_picked_from(folder: Path) -> None:
    (folder / "net.py").write_text(NET + DATA + TASKS)
    assert "--tolerance" in run("frontier", "net.py")
    assert not (folder / "runs" / "net-frontier" / "model.safetensors").exists()
    points = sorted((folder / "runs" / "net-frontier" / "points").iterdir())
    before = [point.stat().st_mtime_ns for point in points]
    picked = as_json("frontier", "net.py", "--tolerance", "a=9", "--force")["picked"]
    assert picked["budget"] == "20 % of the multiply-adds"
    assert [point.stat().st_mtime_ns for point in points] == before, "points are kept"
    assert "runs/net-frontier" in run("verify", "net.py", "runs/net-frontier")
    assert "lane=0.005" in refused("frontier", "net.py", "--tolerance", "a", "--force")
    assert "--by" in refused("frontier", "net.py", "--by", "size")


def test_what_machines_read_is_what_people_read(folder: Path) -> None:
    (folder / "net.py").write_text(NET + DATA)
    found = as_json("inspect", "net.py")
    assert found["tasks"] == ["a", "b"], "without tasks, every output is one"
    assert sum(module["params"] for module in found["modules"]) == found["costs"]["params"]
    assert sum(module["macs"] for module in found["modules"]) == found["costs"]["macs"]
    assert [group["name"] for group in found["groups"]] == ["trunk.0", "trunk.2"]
    assert {group["kind"] for group in found["frozen"]} == {"interface"}

    pruned = as_json("prune", "net.py", "--ratio", "0.3", "--protect", "trunk.2")
    assert pruned["report"]["criterion"] == "output_change"
    assert {g["name"] for g in pruned["report"]["groups"]} == {"trunk.0"}
    text = (folder / "runs" / "net" / "report.json").read_text()
    assert str(PruneReport.from_json(text)).splitlines()[0] in run("report", "runs/net")
    assert as_json("report", "runs/net")["report"] == json.loads(text)
    assert as_json("verify", "net.py", "runs/net")["max_relative_error"] < 1e-6


def test_figures_that_were_damaged_are_refused(folder: Path) -> None:
    (folder / "net.py").write_text(NET + DATA)
    run("prune", "net.py", "--ratio", "0.3")
    file = folder / "runs" / "net" / "report.json"
    whole = file.read_text()
    for damaged in (
        whole[:-9],
        whole.replace('"masked"', '"guessed"'),
        whole.replace("16", '"16"'),
    ):
        assert damaged != whole
        file.write_text(damaged)
        assert "report.json" in refused("report", "runs/net")


@pytest.mark.parametrize("how", ["net.py:build", "package.nets:build"])
def test_models_enter_without_data(how: str, folder: Path) -> None:
    text = NET.replace("def model", "def build")
    text += "def example():\n    return torch.rand(2, 3, 8, 8)\n"
    (folder / "package").mkdir()
    for path in (folder / "net.py", folder / "package" / "nets.py"):
        path.write_text(text)
    shown = run("prune", how, "--ratio", "0.3", "-o", "out")
    assert "There is no data()" in shown
    assert "by magnitude" in shown
    assert as_json("export", how, "out", "-o", "net.pt2")["format"] == "torch.export"
    program = torch.export.load("net.pt2").module()
    assert program(torch.rand(5, 3, 8, 8))["b"].shape == (5, 2, 4, 4)


def test_models_of_libraries_enter_by_name(folder: Path) -> None:
    import_torchvision()  # which both libraries import
    from transformers import BertConfig

    small = BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        architectures=["BertForMaskedLM"],
    )
    small.save_pretrained(folder / "bert")
    found = as_json("inspect", "hf:bert")
    assert found["class"] == "BertForMaskedLM"
    assert "random" in found["notes"][0]
    assert "no model `resnet1`. Close ones: resnet18" in refused("inspect", "timm:resnet1")
    assert as_json("inspect", "timm:resnet10t")["class"] == "ResNet"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["prune", "net.py"], "--ratio 0.3"),
        (["prune", "net.py", "--ratio", "2"], "between 0 and 1"),
        (["prune", "net.py", "--ratio", "0.3", "--steps", "few"], "'auto'"),
        (["prune", "net.py", "--ratio", "0.3"], "`data()`"),
        (["inspect", "nothere.py"], "taskprune init nothere.py"),
        (["inspect", "net"], "a file such as `net.py`"),
        (["inspect", "net.py:build"], "a function `build()`"),
        (["inspect", "no.module:build"], "Expected a module `no.module`"),
        (["inspect", "json.py"], "has the name of a module that is in use"),
        (["inspect", "broken.py"], "ZeroDivisionError: division by zero (broken.py:2)"),
        (["inspect", "number.py"], "Found int"),
        (["inspect", "typo.py"], "SyntaxError"),
        (["inspect", "timm:"], "Expected the name of a model of timm"),
        (["inspect", "hf:nowhere"], "config.json"),
        (["inspect", "ultralytics:yolo11n.yaml"], "pip install ultralytics"),
        (["evaluate", "net.py"], "with a metric each"),
        (["distill", "net.py", "nowhere"], "`taskprune prune` makes one"),
        (["verify", "net.py", "net.py"], "damaged"),
        (["report", "nowhere"], "`taskprune prune` makes one"),
        (["init", "net.py"], "is there already"),
        (["init", "net.txt"], "a Python file"),
        (["export", "net.py", "-o", "net.pb"], "`data()`"),
    ],
    ids=" ".join,
)
def test_what_cannot_work_is_said_in_a_paragraph(
    arguments: list[str], words: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ultralytics", None)  # as where it is not installed
    (folder / "net.py").write_text(NET)
    (folder / "json.py").write_text(NET)
    (folder / "broken.py").write_text("def model():\n    return 1 / 0\n")
    (folder / "number.py").write_text("def model():\n    return 1\n")
    (folder / "typo.py").write_text("def model(:\n")
    assert words in refused(*arguments)


def test_a_finished_run_is_replaced_on_request_only(folder: Path) -> None:
    (folder / "net.py").write_text(NET + DATA)
    run("prune", "net.py", "--ratio", "0.3")
    before = (folder / "runs" / "net" / "model.safetensors").read_bytes()
    assert "`--force`" in refused("prune", "net.py", "--ratio", "0.5")
    assert (folder / "runs" / "net" / "model.safetensors").read_bytes() == before
    run("prune", "net.py", "--ratio", "0.5", "--force")
    assert (folder / "runs" / "net" / "model.safetensors").read_bytes() != before
    (folder / "model.onnx").write_text("mine")
    assert "`--force`" in refused("export", "net.py")
    assert (folder / "model.onnx").read_text() == "mine"


def test_traces_are_shown_on_request(folder: Path) -> None:
    (folder / "broken.py").write_text("def model():\n    return 1 / 0\n")
    result = CliRunner().invoke(app, ["inspect", "broken.py", "--debug"])
    assert isinstance(result.exception, taskprune.TaskPruneError)
    assert isinstance(result.exception.__cause__, ZeroDivisionError)


def test_pruning_and_metrics_need_no_extra_and_training_names_its_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "net.py").write_text(NET + DATA + TASKS)
    for name in ("accelerate", "accelerate.utils"):
        monkeypatch.setitem(sys.modules, name, None)
    run("prune", "net.py", "--ratio", "0.3")
    assert "Metrics on the validation data" in run("evaluate", "net.py", "runs/net")
    assert 'pip install "taskprune[distill]"' in refused("distill", "net.py", "runs/net")


def test_completion_knows_commands_and_options() -> None:
    def completed(words: str, position: int) -> str:
        environment = {
            "_TASKPRUNE_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(position),
        }
        return CliRunner(env=environment).invoke(app, [], prog_name="taskprune").stdout

    assert completed("taskprune ins", 1).split() == ["inspect"]
    assert "--ratio" in completed("taskprune prune --ra", 2)


BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"accelerate", "faster_coco_eval", "matplotlib", "PIL", "shapely"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
from taskprune.driving.cli import app
app()
"""


def test_driving_shows_its_help_without_its_extra() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


@pytest.mark.parametrize("arguments", [["prune", "--help"], ["init", "net.py"]], ids=" ".join)
def test_what_runs_no_model_needs_no_torch(arguments: list[str], folder: Path) -> None:
    code = (
        f"import sys; sys.argv = ['taskprune', *{arguments}]\n"
        "from taskprune.commands.app import app\n"
        "try:\n    app()\nfinally:\n    assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
