"""Commands that make a smaller model: ``prune``, ``frontier``, ``compress``, ``distill``."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from taskprune.commands import arguments
from taskprune.terminal import plain_errors

NO_DATA = (
    "There is no data(): channels were ranked by the size of their weights, and nothing was "
    "re-weighted. With data a model loses far less."
)


def prune(  # noqa: PLR0913 - one argument an option
    model: arguments.Model,
    ratio: Annotated[
        float | None, typer.Option(help="Fraction of the parameters to remove, such as 0.3.")
    ] = None,
    macs: Annotated[
        float | None, typer.Option(help="Multiply-adds that may remain: a fraction or a number.")
    ] = None,
    latency: Annotated[
        float | None, typer.Option(help="Latency that may remain: a fraction or milliseconds.")
    ] = None,
    importance: Annotated[
        str | None, typer.Option(help="Criterion, such as task_change, output_change, magnitude.")
    ] = None,
    steps: Annotated[str, typer.Option(help="In how many steps, or 'auto'.")] = "1",
    protect: Annotated[
        list[str] | None, typer.Option(help="Module, or pattern, that loses no channel; repeat.")
    ] = None,
    round_to: Annotated[int, typer.Option(help="Widths are multiples of this.")] = 1,
    out: arguments.Out = None,
    force: arguments.Force = False,
    as_json: arguments.Json = False,
    debug: arguments.Debug = False,
) -> None:
    """Make a model smaller: remove the channels that its tasks need least, and verify it."""
    with plain_errors(debug=debug), ExitStack() as stack:
        import taskprune
        from taskprune.commands import run_folder
        from taskprune.commands.entering import enter
        from taskprune.commands.showing import show
        from taskprune.errors import InputError
        from taskprune.files import write_text

        budget = _budget(ratio, macs, latency)
        source = enter(model)
        folder = stack.enter_context(
            run_folder.claimed(out or Path("runs") / source.name, force=force)
        )
        data = source.data()
        if steps != "auto" and not steps.isdecimal():
            raise InputError(f"`--steps` must be a number or 'auto'. Found {steps!r}.")
        example = source.needed("example", "Pruning without `data()`") if data is None else None
        original = source.model()
        result = taskprune.prune(
            original,
            source.tasks() if data is not None else None,
            data=data,
            validation=source.validation() if data is not None else None,
            example_inputs=source.example() if example is None else example,
            forward=source.forward,
            budget=budget,
            importance=importance or ("magnitude" if data is None else None),
            safety=taskprune.Safety(round_to=round_to),
            settings=taskprune.PruneSettings(
                steps="auto" if steps == "auto" else int(steps), protect=protect or ()
            ),
        )
        run_folder.save(folder, source, result.model, result.plan, "prune")
        write_text(folder / run_folder.REPORT, result.report.to_json())
        drawn = source.pictures({"original": original, "pruned": result.model})
        result.save_html(folder / run_folder.PAGE, pictures=drawn)
        notes = [note for note in (source.note, NO_DATA if data is None else "") if note]
        record = {
            "folder": str(folder),
            "report": json.loads(result.report.to_json()),
            "notes": notes,
        }
        show(
            _pruned_parts(result.report, folder, model, notes, trained=data is not None),
            record,
            as_json=as_json,
        )


def _budget(ratio: float | None, macs: float | None, latency: float | None) -> Any:
    from taskprune import Budget
    from taskprune.errors import InputError

    if ratio is None and macs is None and latency is None:
        raise InputError(
            "Say how much to remove: `--ratio 0.3` removes 30 % of the parameters, `--macs 0.6` "
            "leaves 60 % of the multiply-adds, `--latency 0.6` of the time; together, all hold."
        )
    params = None if ratio is None else Budget.from_ratio(ratio).params
    return Budget(params=params, macs=macs, latency_ms=latency)


def _pruned_parts(
    report: Any, folder: Path, model: str, notes: list[str], *, trained: bool
) -> list[Any]:
    from rich.text import Text

    from taskprune.commands.run_folder import MODEL, PAGE, PLAN, REPORT
    from taskprune.commands.showing import next_steps
    from taskprune.report.record import compensation_table, cost_table, step_table, task_table

    parts: list[Any] = [cost_table(report), task_table(report)]
    if report.compensation is not None:
        parts.append(compensation_table(report.compensation))
    if report.steps:
        parts.append(step_table(report))
    parts += [Text(f"Stopped at step {each.step}: {each}.") for each in report.broken]
    parts += [Text(f"Note: {note}") for note in (*notes, *report.notes)]
    if report.verification is not None:
        parts.append(Text(f"Verified: {report.verification}."))
    parts.append(Text(f"Wrote {MODEL}, {PLAN}, {REPORT} and {PAGE} to {folder}."))
    steps = [
        (f"taskprune report {folder}", "what went where, and why"),
        (f"taskprune evaluate {model} {folder}", "what it costs each task"),
        (f"taskprune distill {model} {folder}", "train it against the original"),
        (f"taskprune export {model} {folder}", "one file to deploy"),
    ]
    parts.append(next_steps(steps if trained else [steps[0], steps[3]]))
    return parts


def frontier(
    model: arguments.Model,
    by: Annotated[
        str, typer.Option(help="What budgets bound: macs, params or latency_ms.")
    ] = "macs",
    tolerance: Annotated[
        list[str] | None,
        typer.Option(help="What a task may lose of its metric, such as lane=0.005; repeat."),
    ] = None,
    importance: Annotated[
        str | None, typer.Option(help="Criterion, such as task_change, output_change.")
    ] = None,
    out: arguments.Out = None,
    force: arguments.Force = False,
    as_json: arguments.Json = False,
    debug: arguments.Debug = False,
) -> None:
    """Measure how small a model can get, and keep the smallest that costs no task too much.

    Interrupted, the same command goes on where it was.
    """
    with plain_errors(debug=debug), ExitStack() as stack:
        import taskprune
        from taskprune.commands import run_folder
        from taskprune.commands.entering import enter
        from taskprune.commands.showing import show
        from taskprune.errors import InputError
        from taskprune.files import write_text

        if by not in ("macs", "params", "latency_ms"):
            raise InputError(f"`--by` must be macs, params or latency_ms. Found {by!r}.")
        allowed = _tolerances(tolerance or ())
        source = enter(model)
        data, held_out = (source.needed(part, "A frontier") for part in ("data", "validation"))
        folder = stack.enter_context(
            run_folder.claimed(out or Path("runs") / f"{source.name}-frontier", force=force)
        )
        curve = taskprune.frontier(
            source.model(),
            source.tasks(),
            data,
            validation=held_out,
            budgets=by,  # type: ignore[arg-type] # checked above
            directory=folder / run_folder.POINTS,
            example_inputs=source.example(),
            forward=source.forward,
            importance=importance,
        )
        parts: list[Any] = [curve]
        record = {"folder": str(folder), **json.loads(curve.to_json())}
        if allowed or curve.tolerances:
            picked = curve.pick(allowed)
            run_folder.save(folder, source, picked.model, picked.plan, "frontier")
            record["picked"] = picked.point.summary()
            parts += [str(picked), *_trained_parts(folder, model, page=True)]
        else:
            parts.append("Pick a model with `--tolerance TASK=NUMBER --force`; points are kept.")
        write_text(folder / run_folder.REPORT, curve.to_json())
        curve.save_html(folder / run_folder.PAGE)
        show(parts, record, as_json=as_json)


def _tolerances(written: Iterable[str]) -> dict[str, float]:
    from taskprune.errors import InputError

    found = {}
    for each in written:
        task, _, number = each.partition("=")
        try:
            found[task] = float(number)
        except ValueError:
            raise InputError(
                f"`--tolerance` must be a task and a number, such as lane=0.005. Found {each!r}."
            ) from None
    return found


def distill(
    model: arguments.Model,
    pruned: arguments.Pruned,
    steps: arguments.Steps = 300,
    rate: arguments.Rate = 1e-4,
    out: arguments.Out = None,
    force: arguments.Force = False,
    as_json: arguments.Json = False,
    debug: arguments.Debug = False,
) -> None:
    """Train a pruned model on its tasks and against the original's features.

    Interrupted, the same command goes on where it was.
    """
    with plain_errors(debug=debug), ExitStack() as stack:
        import taskprune
        from taskprune.calling import call_batch
        from taskprune.commands import run_folder
        from taskprune.commands.entering import enter
        from taskprune.commands.showing import show
        from taskprune.files import write_text
        from taskprune.report.html import report_page
        from taskprune.report.pages import save_page
        from taskprune.rewrite.checkpoint import read_header

        source = enter(model)
        file = run_folder.checkpoint_in(pruned)
        plan, (figures, _) = read_header(file).plan, run_folder.figures(file.parent)
        data, tasks = (source.needed(part, "Distillation") for part in ("data", "tasks"))
        folder = stack.enter_context(
            run_folder.claimed(out or Path("runs") / f"{source.name}-distilled", force=force)
        )
        teacher, student = source.model(), run_folder.pruned_model(pruned, source)
        sizes = {"original": teacher, "pruned": student, "distilled": student}
        named = {name: run_folder.size_of(own) for name, own in sizes.items()}
        metrics = run_folder.measured(source, {"original": teacher, "pruned": student})
        taskprune.distill(
            student,
            teacher=teacher,
            tasks=tasks,
            data=data,
            plan=plan,
            forward=source.forward or call_batch,
            settings=_recipe(source, steps, rate, folder),
        )
        metrics |= run_folder.measured(source, {"distilled": student})
        run_folder.save(folder, source, student, plan, "distill")
        record = {"folder": str(folder), "metrics": metrics}
        write_text(folder / run_folder.REPORT, json.dumps(record, indent=2))
        if figures is not None:  # those of the pruning, and beside them what training brought
            measured = {name: metrics[name] for name in ("distilled",) if name in metrics}
            drawn: Any = {}
            if source.draw is not None:
                before = run_folder.pruned_model(pruned, source)
                drawn = source.pictures(
                    {"original": teacher, "pruned": before, "distilled": student}
                )
            page = report_page(
                figures,
                plan,
                model=type(student).__name__,
                measured=measured,
                pictures=drawn,
            )
            save_page(page, folder / run_folder.PAGE)
        parts: list[Any] = [run_folder.metric_table(metrics, named)] if metrics else []
        parts += _trained_parts(folder, model, page=figures is not None)
        show(parts, record, as_json=as_json)


def compress(  # noqa: PLR0913 - one argument an option
    model: arguments.Model,
    ratio: Annotated[float, typer.Option(help="Fraction of the parameters to remove in all.")],
    rounds: Annotated[int, typer.Option(help="How many times to prune and distil.")] = 4,
    steps: arguments.Steps = 300,
    rate: arguments.Rate = 1e-4,
    out: arguments.Out = None,
    force: arguments.Force = False,
    as_json: arguments.Json = False,
    debug: arguments.Debug = False,
) -> None:
    """Prune and distil in turn, until the target is reached or a task would lose too much.

    Interrupted, the same command goes on where it was.
    """
    with plain_errors(debug=debug), ExitStack() as stack:
        import taskprune
        from taskprune.commands import run_folder
        from taskprune.commands.entering import enter
        from taskprune.commands.showing import show
        from taskprune.files import write_text

        source = enter(model)
        data, tasks = (source.needed(part, "Compression") for part in ("data", "tasks"))
        folder = stack.enter_context(
            run_folder.claimed(out or Path("runs") / f"{source.name}-compressed", force=force)
        )
        result = taskprune.compress(
            source.model(),
            tasks,
            ratio,
            data=data,
            steps=rounds,
            validation=source.validation(),
            forward=source.forward,
            settings=_recipe(source, steps, rate, folder),
        )
        best = result.best
        if best.plan is not None:
            run_folder.save(folder, source, best.model, best.plan, "compress")
        write_text(folder / run_folder.REPORT, result.to_json())
        record = {"folder": str(folder), **json.loads(result.to_json())}
        tail = _trained_parts(folder, model) if best.plan is not None else []
        show([result, *tail], record, as_json=as_json)


def _recipe(source: Any, steps: int, rate: float, folder: Path) -> Any:
    """Return the gentle recipe for what comes out of pruning, resumed from its folder."""
    import taskprune
    from taskprune.calling import call_batch
    from taskprune.commands.run_folder import TRAINING
    from taskprune.distillation import Validation

    held_out = source.validation()
    best = None
    if held_out is not None:
        forward = source.forward or call_batch
        best = Validation(source.tasks(), held_out, every=max(1, steps // 6), forward=forward)
    return taskprune.DistillSettings(
        steps=steps,
        learning_rate=rate,
        frozen_batchnorm=True,
        keep_best=best,
        directory=folder / TRAINING,
        checkpoint_every=max(1, min(500, steps // 10)),
    )


def _trained_parts(folder: Path, model: str, *, page: bool = False) -> list[Any]:
    from rich.text import Text

    from taskprune.commands.run_folder import MODEL, PAGE, PLAN, REPORT
    from taskprune.commands.showing import next_steps

    files = f"{MODEL}, {PLAN}, {REPORT} and {PAGE}" if page else f"{MODEL}, {PLAN} and {REPORT}"
    return [
        Text(f"Wrote {files} to {folder}."),
        next_steps(
            [
                (f"taskprune verify {model} {folder}", "prove that the plan fits the original"),
                (f"taskprune export {model} {folder}", "one file to deploy"),
            ]
        ),
    ]
