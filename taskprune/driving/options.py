"""Options that the commands of both nets have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EMBEDDED = "embedded"

N_VALIDATION = 160
"""Made-up scenes that nets are measured on."""

Out = Annotated[Path, typer.Option(help="Folder to write to.")]
Init = Annotated[str | None, typer.Option(help="Start from 'teacher' (bundled) or a file instead.")]
Steps = Annotated[int | None, typer.Option(help="Length of the run, in steps.")]
Minutes = Annotated[float | None, typer.Option(help="Or by the clock.")]
LearningRate = Annotated[float, typer.Option(help="Highest learning rate.")]
Resume = Annotated[bool, typer.Option(help="Go on with the run in --out.")]
Weights = Annotated[
    Path | None, typer.Option(help="File of a trained net. Default: the bundled teacher.")
]
Split = Annotated[str, typer.Option(help="Split of the data set.")]
MetricsFile = Annotated[Path | None, typer.Option(help="JSON file for the metrics.")]
