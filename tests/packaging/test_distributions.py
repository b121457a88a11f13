"""What is published: a small wheel, the weights beside it, and a source that can be tested."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from importlib import metadata
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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
    assert not done.stderr.startswith("Error"), done.stderr
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


def test_the_wheel_works_where_nothing_is_but_what_it_asks_for(wheel: Path, tmp_path: Path) -> None:
    installed, empty = tmp_path / "installed", tmp_path / "empty"
    empty.mkdir()
    install = ["-m", "pip", "install", "-q", "--no-deps", "--no-index", "--no-compile"]
    subprocess.run([sys.executable, *install, "--target", installed, wheel], check=True)
    child = Path(__file__).with_name("wheel_child.py")
    there = {"taskprune", "net", *modules_of(asked_for(installed))}
    done = subprocess.run(
        [sys.executable, "-I", child, installed, *sorted(there)],
        cwd=empty,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr.startswith("Error"), done.stderr
    assert {path.name for path in empty.iterdir()} >= {"net.py", "net.pt2", "runs"}
    for said in ("3 groups of channels can shrink", "Verified:", "is whole:", "net.pt2: torch.exp"):
        assert said in done.stdout


def asked_for(installed: Path) -> set[str]:
    """Return the distributions that an installed one asks for, and those that these do."""
    (own,) = metadata.distributions(path=[str(installed)], name="taskprune")
    found: set[str] = set()
    waiting = [own]
    while waiting:
        for text in waiting.pop().requires or ():
            asked = Requirement(text)
            name = canonicalize_name(asked.name)
            if name in found or (asked.marker and not asked.marker.evaluate({"extra": ""})):
                continue
            try:
                waiting.append(metadata.distribution(name))
            except metadata.PackageNotFoundError:
                continue  # what of it is needed is seen when it is run
            found.add(name)
    return found


def modules_of(distributions: set[str]) -> set[str]:
    return {
        module
        for module, names in metadata.packages_distributions().items()
        if distributions & {canonicalize_name(name) for name in names}
    }


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
