"""How pages are made of templates, and how they become files or a notebook's output."""

from __future__ import annotations

from functools import cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from taskprune.errors import InputError
from taskprune.files.writing import replacing
from taskprune.report.record import cost_name, cost_text

if TYPE_CHECKING:
    from jinja2 import Environment, Template


def template(name: str) -> Template:
    """Return a template of ``taskprune/report/templates``."""
    return _environment().get_template(name)


def save_page(page: str, path: Path) -> None:
    """Write a page to a file, which appears under its name when it is complete.

    Raises:
        InputError: The folder is missing, or the file cannot be written.
    """
    if not path.parent.is_dir():
        raise InputError(
            f"Expected an existing folder to write the report to. There is none at "
            f"`{path.parent}`: make it first, or choose another place than `{path}`."
        )
    try:
        with replacing(path) as temporary:
            temporary.write_text(page, encoding="utf-8")
    except OSError as error:
        raise InputError(f"Could not write the report to `{path}`: {error}.") from error


def in_a_frame(page: str) -> str:
    """Return what shows a page inside of another, neither of whose styles touch the other's."""
    return (
        f'<iframe srcdoc="{escape(page)}" sandbox width="100%" height="600" '
        'style="border:0" title="taskprune"></iframe>'
    )


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("taskprune.report"),
        # Names of modules, tasks and files are the user's, and may hold anything.
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = _percent
    environment.filters["change"] = _change
    environment.filters["width"] = _width
    environment.filters["height"] = _height
    environment.globals["cost_text"] = cost_text
    environment.globals["cost_name"] = cost_name
    return environment


def _percent(fraction: float, digits: int = 1) -> str:
    return f"{fraction:.{digits}%}"


def _change(left: float) -> str:
    """Say how much less is left: ``−32.7%``, with the sign that is as wide as a plus."""
    return f"{left - 1:+.1%}".replace("-", "−")


def _width(fraction: float) -> str:
    return f"width:{_within(fraction)}"


def _height(fraction: float) -> str:
    return f"height:{_within(fraction)}"


def _within(fraction: float) -> str:
    return f"{100 * min(max(fraction, 0), 1):.1f}%"
