"""The picture of the rooms shows the code as it is."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def drawn(picture: str) -> tuple[set[str], set[str]]:
    """Return the rooms and arrows of a picture; how large its boxes are may be out of date."""
    rooms = re.findall(r'<text x="[\d.]+" y="[\d.]+">(\w+)</text>', picture)
    return set(rooms), set(re.findall(r'<path id="(\w+-\w+)"', picture))


def test_rooms_and_arrows_are_those_of_the_code() -> None:
    now = drawn(runpy.run_path(str(DOCS / "draw_rooms.py"))["picture"]())
    assert len(now[0]) > 10
    committed = drawn((DOCS / "images" / "rooms.svg").read_text())
    assert committed == now, "run `python docs/draw_rooms.py`"
