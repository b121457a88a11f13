"""Timing single operators on the device at hand, each once: results are kept on disk."""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from taskprune.cost.operator_call import OperatorCall
from taskprune.errors import InputError, short
from taskprune.files import (
    as_type,
    locked,
    parse_json,
    read_bytes,
    replacing,
    sealed,
    unsealed,
)
from taskprune.restore.process import flushed_denormals, preserved_rng

_log = logging.getLogger("taskprune")

CACHE_VARIABLE = "TASKPRUNE_CACHE"
"""Environment variable that names the folder for measured times."""

SAMPLE_NS = 200_000
"""Short operators repeat within a sample until it takes this long."""

TOTAL_NS = 8_000_000
"""Samples are taken for this long, at least ``MIN_SAMPLES`` of them."""

MIN_SAMPLES = 5

FORMAT = "taskprune.latency/2"
"""Name and version of the file that times are kept in."""

PATIENCE_S = 10.0
"""How long to wait for another process that writes to the same file."""


class OperatorTimer(Protocol):
    """Says how long an operator takes."""

    def __call__(self, call: OperatorCall) -> int | None:
        """Return nanoseconds; ``None`` where it cannot be run by itself."""


class DeviceTimer:
    """Runs operators on a device and takes the median time.

    On a GPU many calls are queued before it is waited for, as in a forward pass, so that a short
    operator takes as long as it takes to launch.

    Args:
        device: A CPU or a CUDA device.

    Raises:
        InputError: Another kind of device.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        if self.device.type not in ("cpu", "cuda"):
            raise InputError(
                "Latency can be measured on the CPU and on CUDA devices. Found a model on "
                f"`{self.device}`: move model and inputs to the device that it will run on."
            )

    def __call__(self, call: OperatorCall) -> int | None:
        """Return the median time of one call in nanoseconds."""
        with ExitStack() as stack:
            stack.enter_context(preserved_rng())
            stack.enter_context(torch.inference_mode())
            stack.enter_context(flushed_denormals())
            try:
                function, arguments = call.made(self.device)
                run = partial(function, **arguments)
                run()
            except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
                # What the arguments must fulfil beyond their shapes is not known here.
                return None
            return self._median(run)

    def _median(self, run: Callable[[], object]) -> int:
        once = max(1, self._sample(run, 1))
        repeats = max(1, SAMPLE_NS // once)
        samples: list[int] = []
        spent = 0
        while len(samples) < MIN_SAMPLES or spent < TOTAL_NS:
            samples.append(self._sample(run, repeats))
            spent += samples[-1]
        return max(1, round(statistics.median(samples) / repeats))

    def _sample(self, run: Callable[[], object], repeats: int) -> int:
        self._wait()
        start = time.perf_counter_ns()
        for _ in range(repeats):
            run()
        self._wait()
        return time.perf_counter_ns() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class CachedTimer:
    """Asks a timer once for every call, in all processes.

    Times are kept in a JSON file for each device, number of threads and version of torch; within
    it, by operator, types and shapes, under a checksum.

    Args:
        timer: What measures.
        name: What it measures on, see :func:`circumstances`.
        folder: Where the file lies. Default: ``$TASKPRUNE_CACHE``, or else the platform's cache
            folder.

    Raises:
        InputError: The file is damaged, or of another version.
    """

    def __init__(
        self, timer: OperatorTimer, name: str, *, folder: str | os.PathLike[str] | None = None
    ) -> None:
        self.timer = timer
        where = Path(folder) if folder is not None else cache_folder()
        self.path = where / f"times-{re.sub(r'[^A-Za-z0-9.]+', '-', name)}.json"
        self.times = self._read()
        self._n_saved = len(self.times)

    def __call__(self, call: OperatorCall) -> int | None:
        """Return the time from the file, or measure it."""
        key = call.key
        if key not in self.times:
            self.times[key] = self.timer(call)
        return self.times[key]

    def save(self) -> None:
        """Write what is new to the file; what others have written meanwhile stays.

        Where that cannot be done, a message says so; this run has what it measured all the same.
        """
        if len(self.times) == self._n_saved:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with locked(self.path.with_name(f".{self.path.name}.lock"), wait_s=PATIENCE_S):
                self.times = {**self._read(), **self.times}
                content = sealed({"format": FORMAT, "times": self.times})
                with replacing(self.path) as part:
                    part.write_text(json.dumps(content, indent=0), encoding="utf-8")
        except (OSError, InputError) as error:
            _log.warning(
                "Measured times could not be kept in %s, so the next run measures them again: %s. "
                "$%s names another folder.",
                self.path.parent,
                error,
                CACHE_VARIABLE,
            )
            return
        self._n_saved = len(self.times)

    def _read(self) -> dict[str, int | None]:
        try:
            data = read_bytes(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            _log.warning("Measured times in %s are not used: %s", self.path, error)
            return {}
        try:
            return _times_in(parse_json(data))
        except InputError as error:
            raise InputError(
                f"Expected measured times as JSON in {self.path}. It cannot be read ({error}): "
                "delete it, and they are measured again."
            ) from error


def _times_in(content: Any) -> dict[str, int | None]:
    content = unsealed(content)
    if content.get("format") != FORMAT:
        raise InputError(f"It has the format {short(content.get('format'))}, not {FORMAT!r}.")
    kind = Mapping[str, int | None]
    times: dict[str, int | None] = as_type(kind, content.get("times"), "`times`")
    for key, ns in times.items():
        if ns is not None and ns < 0:
            raise InputError(f"Expected no time below 0. Found {ns} ns for {short(key)}")
    return times


def device_timer(
    device: torch.device | str, *, folder: str | os.PathLike[str] | None = None
) -> CachedTimer:
    """Return a timer for a device that keeps its results on disk."""
    return CachedTimer(DeviceTimer(device), circumstances(torch.device(device)), folder=folder)


def circumstances(device: torch.device) -> str:
    """Name all that a time depends on beside the call: device, threads, settings, versions."""
    if device.type == "cuda":
        settings: tuple[str, ...] = (
            torch.cuda.get_device_name(device),
            f"cuda{torch.version.cuda}",
            torch.get_float32_matmul_precision(),
            f"tf32 {torch.backends.cudnn.allow_tf32}",
            f"benchmark {torch.backends.cudnn.benchmark}",
        )
    else:
        settings = (
            _processor(),
            torch.backends.cpu.get_cpu_capability(),
            f"{torch.get_num_threads()} threads",
        )
    return " ".join((*settings, f"torch {torch.__version__}"))


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cache_folder() -> Path:
    """Return the folder for measured times; ``$TASKPRUNE_CACHE`` overrides the platform's."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "taskprune"
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA", "")
        return (Path(base) if base else Path.home() / "AppData" / "Local") / "taskprune"
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base else Path.home() / ".cache") / "taskprune"
