"""Draw the rooms of the package and what they import, from the code: ``python docs/draw_rooms.py``.

A box is a room, as wide as it has lines of code; it stands above all that it imports. An arrow
that follows from two others is left out. Writes ``docs/images/rooms.svg``; a test holds its rooms
and arrows against the code.
"""

from __future__ import annotations

import ast
from pathlib import Path

import networkx as nx

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "taskprune"
PICTURE = ROOT / "docs" / "images" / "rooms.svg"
WIDTH, FLOOR_HEIGHT, BOX_HEIGHT, MARGIN = 1000, 92, 46, 24
STYLE = """
    text { font: 14px system-ui, sans-serif; fill: #1f2933; text-anchor: middle; }
    .lines { font-size: 11px; fill: #52606d; }
    rect { fill: #eef2f7; stroke: #7b8794; rx: 6; }
    path { stroke: #9aa5b1; fill: none; marker-end: url(#head); }
    @media (prefers-color-scheme: dark) {
      text { fill: #e4e7eb; } .lines { fill: #9aa5b1; }
      rect { fill: #243447; stroke: #7b8794; } path { stroke: #616e7c; }
    }
"""


def rooms() -> nx.DiGraph[str]:
    """Return the rooms with their lines, and an edge from each to what it imports."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.parent == PACKAGE:
            continue
        here = path.relative_to(PACKAGE).parts[0]
        text = path.read_text(encoding="utf-8")
        lines = graph.nodes.get(here, {}).get("lines", 0) + len(text.splitlines())
        graph.add_node(here, lines=lines)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("taskprune."):
                there = str(node.module).split(".")[1]
                if there not in (here, "errors", "version"):
                    graph.add_edge(here, there)
    return graph


def places(graph: nx.DiGraph[str]) -> dict[str, tuple[float, float, float]]:
    """Return the left edge, top edge and width of each box."""
    floors = [sorted(floor) for floor in nx.topological_generations(graph.reverse())]
    found: dict[str, tuple[float, float, float]] = {}
    for number, floor in enumerate(floors):
        widths = [max(96.0, graph.nodes[name]["lines"] ** 0.5 * 2.2) for name in floor]
        gap = (WIDTH - sum(widths)) / (len(floor) + 1)
        top = MARGIN + (len(floors) - 1 - number) * FLOOR_HEIGHT
        left = gap
        for name, width in zip(floor, widths, strict=True):
            found[name] = (left, top, width)
            left += width + gap
    return found


def picture() -> str:
    """Return the drawing as SVG text."""
    graph = rooms()
    boxes = places(graph)
    height = max(top for _, top, _ in boxes.values()) + BOX_HEIGHT + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        "<title>Rooms of the package; an arrow points to what a room imports</title>",
        f"<style>{STYLE}</style>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0,0 L8,4 L0,8" style="marker-end: none"/>'
        "</marker></defs>",
    ]
    for here, there in sorted(nx.transitive_reduction(graph).edges):
        left, top, width = boxes[here]
        to_left, to_top, to_width = boxes[there]
        x, y = left + width / 2, top + BOX_HEIGHT
        to_x, to_y = to_left + to_width / 2, to_top
        bend = (to_y - y) / 2
        parts.append(
            f'<path id="{here}-{there}" d="M{x:.0f},{y:.0f} C{x:.0f},{y + bend:.0f} '
            f'{to_x:.0f},{to_y - bend:.0f} {to_x:.0f},{to_y:.0f}"/>'
        )
    for name, (left, top, width) in sorted(boxes.items()):
        middle, lines = left + width / 2, round(graph.nodes[name]["lines"], -2)
        parts += [
            f'<rect x="{left:.0f}" y="{top:.0f}" width="{width:.0f}" height="{BOX_HEIGHT}"/>',
            f'<text x="{middle:.0f}" y="{top + 20:.0f}">{name}</text>',
            f'<text class="lines" x="{middle:.0f}" y="{top + 36:.0f}">{lines:,} lines</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
