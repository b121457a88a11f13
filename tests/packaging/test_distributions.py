"""What is published: a small wheel, the weights beside it, and a source that can be tested."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]
WEIGHTS = "taskprune/driving/weights"
BUILD = "from hatchling.build import build_{0}; print(build_{0}(r'{1}'))"


def built(kind: str, project: Path, into: Path) -> Path:
    """Build a distribution as a front end would, in a process in the project's folder."""
    into.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", BUILD.format(kind, into)],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return into / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built("wheel", ROOT, tmp_path_factory.mktemp("dist") / "wheel")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built("sdist", ROOT, tmp_path_factory.mktemp("dist") / "source")


def test_the_wheel_is_small_and_holds_the_package_alone(wheel: Path) -> None:
    assert wheel.stat().st_size <= 1_000_000
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(n for n in names if n.endswith("/METADATA"))).decode()
    package = ROOT / "taskprune"
    kept = {*package.rglob("*.py"), package / "py.typed", *(package / "report/templates").iterdir()}
    inside = {name for name in names if ".dist-info/" not in name}
    assert inside == {path.relative_to(ROOT).as_posix() for path in kept}
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert "\nProject-URL: Documentation, " in metadata


def test_the_weights_are_a_distribution_that_a_wheel_finds(tmp_path: Path) -> None:
    wheel = built("wheel", ROOT / WEIGHTS, tmp_path / "dist")
    with ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    in_the_clone = {p.name for p in (ROOT / WEIGHTS).iterdir() if p.suffix != ".toml"}
    assert inside == {f"{WEIGHTS}/{name}" for name in in_the_clone}
    assert any(name.endswith(".safetensors") for name in inside)


def test_the_source_holds_what_its_tests_need(source: Path) -> None:
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for folder in ("taskprune", "tests", "benchmarks", "examples", "docs"):
        files = {
            path.relative_to(ROOT).as_posix()
            for path in (ROOT / folder).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        assert files <= names
    assert {"Makefile", "constraints.txt", "LICENSE", "CITATION.cff", "SECURITY.md"} <= names
    assert not any("__pycache__" in name or name.startswith(".venv") for name in names)


def test_the_same_source_makes_the_same_bytes(wheel: Path, tmp_path: Path) -> None:
    assert built("wheel", ROOT, tmp_path / "wheel").read_bytes() == wheel.read_bytes()
