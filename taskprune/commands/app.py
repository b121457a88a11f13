"""The command line: ``taskprune init``, ``inspect``, ``prune`` and the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from taskprune.commands import arguments, beginning, checking, inspection, shrinking
from taskprune.terminal.console import plain_errors
from taskprune.version import __version__

app = typer.Typer(
    help="Make multi-task PyTorch models smaller and faster without any task paying for it.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        Console().print(f"taskprune {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Options of all commands."""


for command in (
    beginning.init,
    inspection.inspect,
    shrinking.prune,
    shrinking.frontier,
    shrinking.distill,
    shrinking.compress,
    checking.evaluate,
    checking.verify,
    checking.report,
    beginning.export,
):
    app.command()(command)


@app.command()
def demo(
    data: Annotated[
        Path | None, typer.Option(help="Data set in BDD100K's layout. Default: embedded scenes.")
    ] = None,
    teacher: Annotated[
        Path | None, typer.Option(help="Weights of a trained net. Default: the bundled teacher.")
    ] = None,
    ratio: Annotated[
        float, typer.Option(help="Fraction of the parameters to remove, between 0 and 1.")
    ] = 0.327,
    macs: Annotated[
        float, typer.Option(help="Fraction of the multiply-adds to keep, at most 1.")
    ] = 0.8,
    steps: Annotated[int, typer.Option(help="Distillation steps.")] = 40,
    out: Annotated[Path, typer.Option(help="Folder for pictures, report and checkpoint.")] = Path(
        "runs/demo"
    ),
    seed: Annotated[int, typer.Option(help="Seed of scenes and data order.")] = 0,
    debug: arguments.Debug = False,
) -> None:
    """Prune and distil a trained three-task driving net, and show what it cost each task."""
    # Imported here: help and version do not need the extra packages.
    from taskprune.driving.demo import DemoSettings, run_demo

    with plain_errors(debug=debug):
        run_demo(DemoSettings(data, teacher, ratio, macs, steps, out, seed), Console())
