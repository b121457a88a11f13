"""Commands that look at what was made: ``report``, ``evaluate``, ``verify``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from taskprune.commands import arguments
from taskprune.terminal import plain_errors


def report(
    pruned: arguments.Pruned,
    module: Annotated[
        str | None, typer.Argument(help="A module, parameter or group to explain.")
    ] = None,
    as_json: arguments.Json = False,
    debug: arguments.Debug = False,
) -> None:
    """Show what a run has removed and why; of one module, everything."""
    with plain_errors(debug=debug):
        from rich.text import Text

        from taskprune.commands import run_folder
        from taskprune.commands.showing import next_steps, show
        from taskprune.rewrite.checkpoint import read_header

        file = run_folder.checkpoint_in(pruned)
        header = read_header(file)
        if module is not None:
            told = header.plan.explain(module)
            show([told], json.loads(told.to_json()), as_json=as_json)
            return
        made = ", ".join(f"{key} {value}" for key, value in header.metadata.items())
        head = f"{file}: {header.model_class}, by taskprune {header.version}; {made}."
        figures = run_folder.figures(file.parent)
        parts: list[Any] = [Text(head), figures[0] or header.plan]
        page = file.parent / run_folder.PAGE
        if page.is_file():
            parts.append(Text(f"As a page, with the reasons of each group: {page.resolve()}"))
        first = next((d.name for d in header.plan.groups if d.drop), None)
        if first is not None:
            steps = [(f"taskprune report {pruned} {first}", "one module, and why")]
            parts.append(next_steps(steps))
        record = {
            "checkpoint": str(file),
            "class": header.model_class,
            "version": header.version,
            "metadata": dict(header.metadata),
            "costs": header.plan.costs,
            "kept": header.plan.kept,
            "report": figures[1],
        }
        show(parts, record, as_json=as_json)


def evaluate(
    model: arguments.Model,
    pruned: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[PRUNED]...", help="Folders of runs, checkpoints, exported files."),
    ] = None,
    as_json: arguments.Json = False,
    debug: arguments.Debug = False,
) -> None:
    """Measure each task's metric on the validation data: of the original, and of what became of it.

    An exported file is measured as it runs in its own runtime.
    """
    with plain_errors(debug=debug):
        from taskprune.commands import run_folder
        from taskprune.commands.entering import enter
        from taskprune.commands.showing import show

        source = enter(model)
        original = source.model()
        models, sizes = {"original": original}, {"original": run_folder.size_of(original)}
        for path in pruned or ():
            models[str(path)], sizes[str(path)] = _found(path, source, original)
        metrics = run_folder.measured(source, models, needed=True)
        table = run_folder.metric_table(metrics, sizes)
        show([table], {"metrics": metrics}, as_json=as_json)


def _found(path: Path, source: Any, original: Any) -> tuple[Any, str]:
    """Return a model and how large it is."""
    import torch

    from taskprune.commands.run_folder import pruned_model, size_of
    from taskprune.deployment.export_record import in_bytes
    from taskprune.deployment.file_formats import KINDS
    from taskprune.errors import InputError
    from taskprune.restore import evaluating

    if path.suffix not in KINDS:
        model = pruned_model(path, source)
        return model, size_of(model)
    if not path.is_file():
        raise InputError(f"Expected a file at `{path}`. There is none.")
    kind = KINDS[path.suffix]
    kind.check_installed()
    files = {path, path.with_suffix(kind.beside or path.suffix)}
    size = in_bytes(sum(file.stat().st_size for file in files if file.is_file()))
    example, forward = source.inputs()
    with evaluating(original), torch.no_grad():
        like = forward(original, example)
    return kind.model(path, like), size


def verify(
    model: arguments.Model,
    pruned: arguments.Pruned,
    as_json: arguments.Json = False,
    debug: arguments.Debug = False,
) -> None:
    """Prove that a checkpoint is whole and runs, and that its plan is exact on the original."""
    with plain_errors(debug=debug):
        from rich.text import Text

        from taskprune.commands import run_folder
        from taskprune.commands.entering import enter
        from taskprune.commands.showing import show
        from taskprune.coupling import couple
        from taskprune.graph import trace
        from taskprune.rewrite import apply_and_verify
        from taskprune.rewrite.checkpoint import load_checkpoint, read_header
        from taskprune.terminal import stages

        source, file = enter(model), run_folder.checkpoint_in(pruned)
        plan = read_header(file).plan
        original = source.model()
        example, forward = source.inputs()
        with stages("Verifying") as say:
            say("reading the checkpoint")
            smaller = load_checkpoint(file, original)
            say("tracing the original")
            groups = couple(trace(original, example, forward=forward))
            say("comparing with the masked original")
            _, report = apply_and_verify(
                original, plan, example_inputs=example, forward=forward, groups=groups
            )
            say("running the model of the checkpoint")
            outputs = _same_outputs(original, smaller, example, forward)
        before, after = (run_folder.n_params(each) for each in (original, smaller))
        lines = [
            f"{file} is whole: its checksums are right, and its tensors are those of its plan.",
            f"The plan is exact on the original: {report or 'nothing was compared'}.",
            f"The model of the checkpoint runs, {before:,} -> {after:,} parameters: "
            f"{', '.join(outputs)} as in the original, all numbers finite.",
        ]
        record = {
            "checkpoint": str(file),
            "verification": None if report is None else str(report),
            "max_relative_error": None if report is None else report.max_relative_error,
            "vacuous": report is None or report.is_vacuous,
            "outputs": outputs,
            "params": [before, after],
        }
        show([Text(line) for line in lines], record, as_json=as_json)


def _same_outputs(original: Any, smaller: Any, example: Any, forward: Any) -> dict[str, list[int]]:
    """Return the shapes of what both return, by path.

    Raises:
        VerificationError: One returns something else, or infinities or NaN alone.
    """
    import torch

    from taskprune.calling import flatten_outputs
    from taskprune.errors import VerificationError
    from taskprune.restore import evaluating

    found = []
    for model in (original, smaller):
        with evaluating(model), torch.no_grad():
            found.append(flatten_outputs(forward(model, example)))
    before, after = found
    for path in {**before, **after}:
        shapes = [list(each[path].shape) if path in each else None for each in found]
        if shapes[0] != shapes[1]:
            raise VerificationError(
                f"The model of the checkpoint returns `{path}` of shape {shapes[1]}, the original "
                f"of shape {shapes[0]}."
            )
        if before[path].isfinite().all() and not after[path].isfinite().all():
            raise VerificationError(
                f"The model of the checkpoint returns infinities or NaN in `{path}`."
            )
    return {path: list(tensor.shape) for path, tensor in after.items()}
