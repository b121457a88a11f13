"""What `mkdocs.yml` needs beside its plugins: a page from elsewhere, links that leave `docs/`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
OUTSIDE = re.compile(r"\[([^\]\n]+)\]\(\.\./([^)\s]+)\)")
"""A link to a file of the repository that is no page."""
ROLE = re.compile(r":(?:py:)?(\w+):`~?([^`<]+)`")
"""A role as Sphinx has them, in docstrings."""


def on_files(files: Any, *, config: Any) -> Any:
    """Add the list of changes, which lies where people look for it in a repository."""
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "changelog.md", content=changes))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Name files that are not part of the site in place of links that lead nowhere."""
    return OUTSIDE.sub(lambda link: _named(link[1], link[2]), markdown)


def _named(text: str, path: str) -> str:
    if not (ROOT / path.partition("#")[0]).exists():
        raise FileNotFoundError(f"`{path}` is linked from a page and is not in the repository.")
    return text if path in text else f"{text} (`{path}`)"


class PlainRoles(griffe.Extension):
    """Shows names in docstrings as code: ``:func:`taskprune.prune``` as ``prune``."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of an object that was read."""
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(_plain, obj.docstring.value)


def _plain(role: re.Match[str]) -> str:
    text = role[2] if role[1] == "math" else role[2].rpartition(".")[2]
    return f"`{text}`"
