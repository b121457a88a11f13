"""The page of a run: what it shows, that names cannot break it, and that it stays small."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from front_nets import batches, two_task_net, two_tasks

import taskprune
from taskprune import PruneResult, PruneSettings
from taskprune.calling.tolerances import BrokenTolerance
from taskprune.deployment.latency import LatencyComparison
from taskprune.errors import InputError
from taskprune.importance.conflict_report import ConflictLine, ConflictReport
from taskprune.plan import FrozenDecision
from taskprune.plan.decisions import GroupDecision
from taskprune.plan.plan import PruningPlan
from taskprune.report import html
from taskprune.report.by_modality import ModalityLine
from taskprune.report.html import report_page
from taskprune.report.record import GroupLine, PruneReport, StepLine, TaskLine
from taskprune.solver.budget import Budget

NASTY = """<script>alert("x")</script>&'"""
VOID = {"meta", "br", "link"}


class Outline(HTMLParser):
    """Checks that elements nest, and keeps their names, classes and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.classes: list[str] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.classes.append(dict(attrs).get("class") or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def result() -> PruneResult:
    return taskprune.prune(two_task_net(), two_tasks(), 0.4, data=batches(2))


def made_up(n_groups: int = 1, name: str = "layer", task: str = "lane") -> tuple[PruneReport, str]:
    """Return a report with every section, and its page."""
    tasks = (task, "other")
    lines = [GroupLine(f"{name}{n}", 64, 64 - n % 50, tasks, 0.5) for n in range(n_groups)]
    plan = PruningPlan(
        groups=tuple(
            GroupDecision(g.name, 64, tuple(range(64 - g.n_kept)), tasks, made_by=(g.name,) * 99)
            for g in lines
        ),
        tensors=(),
        activations=(),
        attributes=(),
        shapes={},
    )
    frozen = FrozenDecision(name, 3, (), "literal", name, "aten.view", name, f"{name}.py:7")
    report = PruneReport(
        budget=str(Budget(params=0.5)),
        criterion=name,
        calibration_batches=2,
        costs={"params": (1000, 500), "latency_ns": (4_000_000, 3_000_000)},
        tasks=tuple(TaskLine(t, 0, n_groups, 64, 1, 0.25) for t in tasks),
        groups=tuple(lines),
        frozen=(frozen,) * n_groups,
        untraced=(name,) * n_groups,
        verification=None,
        notes=(name,) * n_groups,
        conflict=ConflictReport(
            name,
            (tasks,),
            (0.125,),
            tuple(ConflictLine(g.name, tasks, 64, 0.5, (0.5,), 0) for g in lines),
        ),
        metrics={task: 10.0},
        tolerances={task: 0.75},
        steps=(
            StepLine(1, {"params": 800, "latency_ns": 3_500_000}, {task: 9.5}, undone=False),
            StepLine(2, {"params": 500, "latency_ns": 3_000_000}, {task: 2.5}, undone=True),
        ),
        broken=(BrokenTolerance(task, 2, 10.0, 2.5, 0.75),),
        latency=LatencyComparison((4.0, 3.0), (4.5, 3.25)),
        modalities=(ModalityLine(name, 2, 128, 32, (4000, 3000)),),
    )
    return report, report_page(report, plan, model=name)


def test_the_page_shows_what_the_run_did(result: PruneResult) -> None:
    page = Outline(result.to_html())
    report = result.report
    before, after = report.costs["params"]
    for words in (
        "TwoTaskNet",
        report.budget,
        report.criterion,
        f"{after:,}",
        f"of {before:,} before",
        "Where tasks fight",
        "inputs and outputs of the model",
        str(report.verification),
    ):
        assert words in page.text
    for line in report.tasks:
        assert f"{line.dropped} of {line.channels}" in page.text
        assert f"{line.importance_removed:.2%}" in page.text
    for group in report.groups:
        assert f"{group.name} {group.n_kept} of {group.n_channels} kept" in page.text
    assert page.classes.count("group") == len(report.groups)


def test_each_group_says_why_in_the_words_of_the_plan(result: PruneResult) -> None:
    text = Outline(result.to_html()).text
    assert "Whose importance" in text
    for group in result.report.groups:
        told = [line.strip() for line in str(result.plan.explain(group.name)).splitlines()]
        score = next(line for line in told if line.startswith(("highest score", "all stay")))
        assert score in text


def test_steps_that_were_undone_are_shown_and_their_metrics_are_not_the_results() -> None:
    report, page = made_up()
    outline = Outline(page)
    assert outline.classes.count("undone") == 1
    assert f"Stopped at step 2, which was undone: {report.broken[0]}" in outline.text
    assert "10 → 9.5" in outline.text
    assert "0.75" in outline.text
    assert "latency, measured" in outline.text
    assert "32 of 128" in outline.text
    assert "3,000 of 4,000" in outline.text
    assert "3.25 ms" in outline.text


def test_names_cannot_break_the_page() -> None:
    _, page = made_up(name=NASTY, task=NASTY)
    outline = Outline(page)
    assert "script" not in outline.tags
    assert NASTY in outline.text
    assert f"{NASTY}.py:7" in outline.text


def test_the_page_needs_nothing_else(result: PruneResult) -> None:
    for page in (result.to_html(), made_up()[1]):
        assert "://" not in page
        assert not re.search(r"\b(src|href|@import|url)\b\s*[=(]", page)
        assert not {"script", "link", "img", "iframe"} & set(Outline(page).tags)


def test_a_large_model_makes_a_page_that_a_browser_takes() -> None:
    report, page = made_up(n_groups=2000)
    assert len(page) < 2_000_000
    outline = Outline(page)
    assert outline.classes.count("group") == html.GROUP_ROWS
    assert f"{len(report.groups) - html.GROUP_ROWS:,} more are in" in outline.text
    assert "result.report.to_json()" in outline.text
    most = max(report.groups, key=lambda group: group.n_channels - group.n_kept)
    assert most.name in outline.text


def test_criteria_that_know_no_tasks_and_runs_without_steps_have_their_page() -> None:
    net, inputs = two_task_net(), (batches(1)[0][0],)
    found = taskprune.prune(
        net,
        None,
        0.3,
        example_inputs=inputs,
        importance="magnitude",
        settings=PruneSettings(verify=False),
    )
    text = Outline(found.to_html()).text
    assert "was not compared" in text
    for absent in ("private", "Steps", "Where tasks fight", "Whose importance"):
        assert absent not in text


def test_the_page_is_written_whole_or_not_at_all(result: PruneResult, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    result.save_html(str(path))
    assert path.read_text(encoding="utf-8") == result.to_html()
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(InputError, match="existing folder"):
        result.save_html(tmp_path / "missing" / "report.html")
    with pytest.raises(InputError, match="is a folder"):
        result.save_html(tmp_path)


def test_steps_keep_the_tolerances_of_watched_tasks() -> None:
    class Constant:
        def reset(self) -> None:
            """Nothing is kept."""

        def update(self, outputs: object, batch: object, /) -> None:
            """Nothing is looked at."""

        def compute(self) -> float:
            return 1.0

    tasks = two_tasks()
    tasks["kind"] = replace(tasks["kind"], metric=Constant(), tolerance=0.5)
    found = taskprune.prune(
        two_task_net(),
        tasks,
        0.3,
        data=batches(1),
        validation=batches(1),
        settings=PruneSettings(steps=1),
    )
    assert found.report.tolerances == {"kind": 0.5}
    assert "1 → 1" in Outline(found.to_html()).text
