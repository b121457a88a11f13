"""Arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A file with `model()` (see `taskprune init`), `package.module:factory`, `timm:NAME`, "
        "`hf:FOLDER` or `ultralytics:NAME`.",
    ),
]
Pruned = Annotated[
    Path, typer.Argument(metavar="PRUNED", help="Folder of a run, or a checkpoint in it.")
]
Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="Folder to write to.", show_default="runs/…")
]
Force = Annotated[bool, typer.Option("--force", help="Replace what an earlier run has written.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the trace of an error.")]
Steps = Annotated[int, typer.Option(help="Steps to train for.")]
Rate = Annotated[float, typer.Option("--lr", help="Highest learning rate.")]
