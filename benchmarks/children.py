"""Measure in child processes: a clean memory, a time limit, and a crash that costs one row."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, TypeAlias

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

Outcome: TypeAlias = dict[str, Any]

Report: TypeAlias = Callable[[Outcome], None]
"""Hands a result to the parent; of several, the last one counts."""

MARK = "measured: "
TIMED_OUT = "time-out"
PATIENCE = 4
"""How many seconds a child may take for one of processor time: others are busy as well."""

START = 60
"""Seconds for importing the libraries, which no limit covers."""


def limit_processor_time(seconds: float) -> None:
    """End this process once it has used so much; on a busy machine it does not get less."""
    allowed = math.ceil(time.process_time() + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (allowed, allowed + 1))


def report(outcome: Outcome) -> None:
    """Hand a child's result to its parent; of several, the last one counts."""
    sys.stdout.write(f"\n{MARK}{json.dumps(outcome)}\n")
    sys.stdout.flush()


def run_child(script: str, arguments: Sequence[str], *, limit: float) -> Outcome:
    """Run ``python script arguments --limit limit`` on one thread and return what it reports.

    The child is to call :func:`limit_processor_time`; here the clock is watched, more patiently.

    Returns:
        Its last report; ``{"outcome": "time-out"}`` or ``{"outcome": "crash: …"}`` without any.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            [sys.executable, script, *arguments, "--limit", str(limit)],
            capture_output=True,
            text=True,
            timeout=PATIENCE * limit + START,
            check=False,
            env=environment,
        )
    except subprocess.TimeoutExpired as error:
        text = error.stdout or b""
        said = text.decode(errors="replace") if isinstance(text, bytes) else text
        return _last_report(said) or {"outcome": TIMED_OUT}
    reported = _last_report(done.stdout)
    if reported is not None:
        return reported
    if -done.returncode in (signal.SIGXCPU, signal.SIGKILL):
        return {"outcome": TIMED_OUT}
    last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    return {"outcome": f"crash: {last[:200]}"}


def _last_report(text: str) -> Outcome | None:
    for line in reversed(text.splitlines()):
        if line.startswith(MARK):
            outcome: Outcome = json.loads(line.removeprefix(MARK))
            return outcome
    return None


def preload(*modules: str) -> None:
    """Have these modules imported once for all children of :func:`run_forked`."""
    # The server that forks them does not take over the path of imports, only the environment.
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(modules))


def run_forked(work: Callable[[Report, str], None], name: str, *, limit: float) -> Outcome:
    """Run ``work(report, name)`` in a process forked from one that has imported everything.

    For measurements that take less time than imports do. Limits are those of :func:`run_child`.

    Args:
        work: A function of an importable module.
        name: What it is to work on.
        limit: Seconds of processor time.
    """
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_forked, args=(sender, work, name, limit))
    process.start()
    sender.close()
    last: Outcome | None = None
    deadline = time.monotonic() + PATIENCE * limit + START
    try:
        while receiver.poll(max(0.0, deadline - time.monotonic())):
            last = receiver.recv()
    except EOFError:
        process.join(START)
    finally:
        process.kill()
        process.join()
        receiver.close()
    if last is not None:
        return last
    ended = -(process.exitcode or 0)
    if ended in (signal.SIGXCPU, signal.SIGKILL):
        return {"outcome": TIMED_OUT}
    return {"outcome": f"crash: exit status {process.exitcode}"}


def _forked(
    sender: Connection, work: Callable[[Report, str], None], name: str, limit: float
) -> None:
    torch.set_num_threads(1)
    limit_processor_time(limit)
    try:
        work(sender.send, name)
    except Exception as error:  # noqa: BLE001 - whatever goes wrong is the row's content
        sender.send({"outcome": f"crash: {type(error).__name__}: {str(error)[:200]}"})


def run_all(
    title: str, work: Mapping[str, Callable[[], Outcome]], *, jobs: int
) -> Iterator[tuple[str, Outcome]]:
    """Run all of ``work``, ``jobs`` at a time, and yield results as they come."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns) as progress, ThreadPoolExecutor(jobs) as pool:
        bar = progress.add_task(title, total=len(work))
        futures = {pool.submit(job): name for name, job in work.items()}
        for future in as_completed(futures):
            progress.advance(bar)
            progress.update(bar, description=f"{title}: {futures[future]}")
            yield futures[future], future.result()


class Watch:
    """Seconds of processor time and peak memory of a block.

    Other programs on the machine add nothing to processor time; the block runs on one thread.
    """

    seconds: float = 0.0
    megabytes: float = 0.0


@contextmanager
def watched() -> Iterator[Watch]:
    """Measure a block; memory is the rise of the process's peak."""
    watch = Watch()
    peak, start = _peak(), time.process_time()
    try:
        yield watch
    finally:
        watch.seconds = time.process_time() - start
        watch.megabytes = _peak() - peak


def _peak() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
