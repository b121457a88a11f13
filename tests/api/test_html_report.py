"""The page of a run: what it shows, that names cannot break it, and that it stays small."""

from __future__ import annotations

import html as html_text
import json
import math
import re
import shutil
import subprocess
from base64 import b64decode
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from front_nets import batches, two_task_net, two_tasks

import taskprune
from taskprune import PruneResult, PruneSettings
from taskprune.calling.tolerances import BrokenTolerance
from taskprune.cost import LatencyReport
from taskprune.deployment.latency import LatencyComparison
from taskprune.errors import InputError
from taskprune.importance.conflict_report import ConflictLine, ConflictReport
from taskprune.plan import FrozenDecision
from taskprune.plan.decisions import GroupDecision
from taskprune.plan.plan import PruningPlan
from taskprune.report import html
from taskprune.report.by_modality import ModalityLine
from taskprune.report.curve_page import frontier_page, panels
from taskprune.report.curve_picture import Curves
from taskprune.report.html import report_page
from taskprune.report.record import GroupLine, PruneReport, StepLine, TaskLine
from taskprune.report.story import tell
from taskprune.solver.budget import Budget

NASTY = """<script>alert("x")</script>&'"""
VOID = {"meta", "br", "link", "input", "img"}
PIXEL = b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)
"""A PNG file."""


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
    page = made_up(name=NASTY, task=NASTY)[1]
    curves = Curves([80.0], NASTY, {NASTY: (1.0, [0.5])}, {})
    headings, rows = ["budget", NASTY], [["original", NASTY]]
    for each in (
        page,
        frontier_page(curves, model=NASTY, headings=headings, rows=rows, missing=[NASTY]),
    ):
        assert "script" not in Outline(each).tags
        assert NASTY in Outline(each).text
    outline = Outline(page)
    assert f"{NASTY}.py:7" in outline.text


def test_the_page_begins_with_what_each_task_paid(result: PruneResult) -> None:
    later = {"distilled": {"kind": 0.75, "unlabelled": math.nan}, "in int8": {"kind": 0.625}}
    page = Outline(result.to_html(measured=later))
    assert page.text.index("What it cost each task") < page.text.index("Channels by task")
    report = result.report
    assert f"{1 - report.removed('params'):.1%} of the parameters" in page.text
    assert report.compensation is not None
    losses = report.compensation.losses["kind"]
    told = [f"{value:.4g}" for value in (losses.original, losses.sliced, losses.compensated)]
    assert " ".join(["kind", "0.75", "0.625", *told]) in page.text
    assert "nan" not in page.text
    with pytest.raises(InputError, match=r"\{'distilled': \{'lane': 0\.77\}\}"):
        result.to_html(measured={"distilled": 0.75})  # type: ignore[dict-item]


def test_tasks_fight_where_the_map_is_dark() -> None:
    groups = [GroupLine(name, 8, 4, ("a", "b", "c"), 0.5) for name in ("first", "last")]
    lines = [  # most first; the map is in the order of the model
        ConflictLine("last", ("a", "b", "c"), 8, 0.5, (0.5, 0.0, 0.0), 0),
        ConflictLine("first", ("a", "b", "c"), 8, 0.3, (0.1, 0.2, 0.0), 0),
    ]
    pairs = (("a", "b"), ("a", "c"), ("b", "c"))
    conflict = ConflictReport("made up", pairs, (0.3, 0.1, 0.0), tuple(lines))
    told = tell(replace(made_up()[0], groups=tuple(groups), conflict=conflict), {})
    assert told.heat is not None
    assert told.heat.tasks == ("a", "b", "c")
    assert [row.line.group for row in told.heat.rows] == ["first", "last"]
    assert told.heat.rows[0].cells == pytest.approx((0.3, 0.1, 0.2))
    assert told.heat.rows[1].cells == pytest.approx((0.5, 0.5, 0.0))
    assert told.heat.pairs == ((("a", "b"), 0.3), (("a", "c"), 0.1))


def test_curves_are_part_of_a_page_and_a_page_of_their_own() -> None:
    curves = Curves([80.0, 50.0], "parameters", {"lane": (1.0, [0.75, math.nan])}, {"lane": 0.5})
    (panel,) = panels(curves)
    assert [dot.says for dot in panel.dots] == ["100 % left: 1", "80 % left: 0.75"]
    assert panel.base == panel.dots[0].y
    assert panel.band is not None
    assert panel.dots[1].y == pytest.approx((panel.base + panel.band) / 2)  # lower is further down
    report, _ = made_up()
    plan = PruningPlan(
        groups=(GroupDecision("layer0", 64, (), ("lane",)),),
        tensors=(), activations=(), attributes=(), shapes={},
    )  # fmt: skip
    own = frontier_page(curves, model="Net", headings=["budget"], rows=[["original"]], missing=[])
    for page in (own, report_page(report, plan, model="Net", curves=curves)):
        outline = Outline(page)
        assert outline.tags.count("circle") == 2
        assert "80 % left: 0.75" in outline.text


def test_a_notebook_shows_the_page_in_a_frame(result: PruneResult) -> None:
    frame = result._repr_html_()
    assert "<html" not in frame
    assert html_text.unescape(frame.split('srcdoc="')[1].split('"')[0]) == result.to_html()


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
MEASURING = """<script>
const order = () => [...document.querySelectorAll(".group")]
  .sort((a, b) => a.getBoundingClientRect().top - b.getBoundingClientRect().top)
  .map((group) => group.querySelector(".name").textContent);
const found = [order()];
document.getElementById("by-removed").click();
found.push(order());
const wide = document.documentElement.scrollWidth > window.innerWidth;
document.body.textContent = JSON.stringify({ orders: found, wide });
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to open the page in")
def test_a_phone_shows_the_whole_page_and_sorts_it_without_a_script(tmp_path: Path) -> None:
    report, page = made_up(n_groups=9, name="a.module.of.some.depth")
    page = re.sub(r'<meta http-equiv="Content-Security-Policy".*?>', "", page)  # for measuring
    file = tmp_path / "page.html"
    file.write_text(page.replace("</body>", f"{MEASURING}</body>"), encoding="utf-8")
    options = (
        "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
        f"--disable-sync --window-size=500,900 --user-data-dir={tmp_path / 'profile'} --dump-dom"
    )
    done = subprocess.run(
        [str(CHROMIUM), *options.split(), file.as_uri()],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    body = re.search(r"<body>(.*?)</body>", done.stdout, re.DOTALL)
    assert body is not None
    found = json.loads(html_text.unescape(body[1]))
    assert not found["wide"]
    names = [group.name for group in report.groups]
    assert found["orders"] == [names, names[::-1]]


def test_pictures_and_times_become_part_of_the_page(result: PruneResult, tmp_path: Path) -> None:
    picture = tmp_path / "seen.png"
    picture.write_bytes(PIXEL)
    times = {
        "original": LatencyReport(8.0, 7.5, 9.0, 5, {}),
        "pruned": LatencyReport(4.0, 3.5, 4.5, 5, {}),
    }
    page = result.to_html(pictures={NASTY: picture}, latency=times)
    address = re.search(r'<img src="data:image/png;base64,([^"]+)"', page)
    assert address is not None
    assert b64decode(address[1]) == PIXEL
    assert "://" not in page
    text = Outline(page).text
    assert NASTY in text
    assert "pruned 4 ms 3.5 to 4.5 ms 50.0%" in text
    picture.write_text("<svg>")
    for wrong, message in (
        ({"a": picture}, "PNG or JPEG"),
        ({"a": tmp_path / "none.png"}, "cannot be read"),
        ([picture], "files by caption"),
    ):
        with pytest.raises(InputError, match=message):
            result.to_html(pictures=wrong)  # type: ignore[arg-type]


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
