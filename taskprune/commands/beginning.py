"""Commands at both ends of the way: ``init`` writes the file, ``export`` the deployed model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from taskprune.commands import arguments
from taskprune.terminal import plain_errors

STARTER = Path(__file__).with_name("starter.py")


def init(
    path: Annotated[Path, typer.Argument(help="The file to write.")] = Path("net.py"),
    force: arguments.Force = False,
    debug: arguments.Debug = False,
) -> None:
    """Write a commented file that says what the model is, its data and its tasks."""
    with plain_errors(debug=debug):
        from rich.text import Text

        from taskprune.commands.showing import next_steps, show
        from taskprune.errors import InputError
        from taskprune.files import make_folder_of, write_text

        if path.suffix != ".py":
            raise InputError(f"Expected the name of a Python file, as `net.py`. Found `{path}`.")
        if path.exists() and not force:
            raise InputError(
                f"`{path}` is there already. Choose another name, or replace it with `--force`."
            )
        make_folder_of(path, option="another PATH")
        write_text(path, STARTER.read_text(encoding="utf-8"))
        text = (
            f"Wrote {path}, which runs as it stands: model() and data(), tasks() and validation() "
            "if you have them. Put your own in their places, one after the other."
        )
        steps = [(f"taskprune inspect {path}", "what can shrink, and what each part costs")]
        show([Text(text), next_steps(steps)], {"path": str(path)}, as_json=False)


def export(  # noqa: PLR0913 - one argument an option
    model: arguments.Model,
    pruned: Annotated[
        Path | None,
        typer.Argument(
            metavar="[PRUNED]", help="Folder of a run, or a checkpoint. Default: MODEL as it is."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="The file: .onnx, .pt2 (torch.export), .xml (OpenVINO), .pte (ExecuTorch) or "
            ".tflite (LiteRT).",
            show_default="model.onnx, in the folder of the run",
        ),
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="8-bit integers, ranges from data().")
    ] = False,
    fixed_batch: Annotated[
        bool, typer.Option("--fixed-batch", help="As many samples as the example has, no others.")
    ] = False,
    timed: Annotated[bool, typer.Option("--time", help="Time it against PyTorch.")] = False,
    tolerance: Annotated[float, typer.Option(help="Largest relative error.")] = 1e-3,
    force: arguments.Force = False,
    as_json: arguments.Json = False,
    debug: arguments.Debug = False,
) -> None:
    """Write a model to one file that runs without its code, and check what the file computes."""
    with plain_errors(debug=debug):
        from rich.text import Text

        import taskprune
        from taskprune.commands.entering import enter
        from taskprune.commands.run_folder import checkpoint_in, pruned_model
        from taskprune.commands.showing import show
        from taskprune.errors import InputError

        out = out or (Path() if pruned is None else checkpoint_in(pruned).parent) / "model.onnx"
        if out.exists() and not force:
            raise InputError(
                f"`{out}` is there already. Choose another name with `--out`, or replace it with "
                "`--force`."
            )
        source = enter(model)
        example, forward = source.inputs()
        done = taskprune.export(
            source.model() if pruned is None else pruned_model(pruned, source),
            out,
            example,
            forward=forward,
            quantize=source.needed("data", "`--int8`") if int8 else None,
            dynamic_batch=False if fixed_batch else None,
            tolerance=tolerance,
            timed=timed,
        )
        show([Text(str(done))], done.summary(), as_json=as_json)
