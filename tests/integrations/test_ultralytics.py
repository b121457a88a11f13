"""A pruned YOLO goes through all that ultralytics does with one, and is never silently rebuilt."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from launched_processes import child_environment


@pytest.mark.skipif(
    importlib.util.find_spec("ultralytics") is None, reason="ultralytics is not installed"
)
def test_a_pruned_yolo_predicts_validates_exports_saves_loads_and_trains(tmp_path: Path) -> None:
    """In a process of its own: ultralytics sets up torch and OpenCV for itself.

    It must not find out that it is tested, or it writes beside the package.
    """
    child = Path(__file__).with_name("yolo_child.py")
    offline = {
        "YOLO_OFFLINE": "true",
        "YOLO_AUTOINSTALL": "false",
        "YOLO_CONFIG_DIR": str(tmp_path),
    }
    for what in ([], ["again"], ["others"]):
        done = subprocess.run(
            [sys.executable, child, tmp_path, *what],
            cwd=tmp_path,
            env={n: v for n, v in child_environment().items() if n != "PYTEST_CURRENT_TEST"}
            | offline,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
