"""Draw two unseen made-up scenes and what the bundled camera-LiDAR net finds in them.

    python benchmarks/fusion_picture.py

Writes ``docs/images/fusion.png``.
"""

from __future__ import annotations

from pathlib import Path

from taskprune.driving.fusion import load_fusion_teacher, scene_batches
from taskprune.driving.fusion.pictures import draw_frames

IMAGES = Path(__file__).parents[1] / "docs" / "images"


def main() -> None:
    net = load_fusion_teacher()
    [batch] = scene_batches("validation", 1)
    draw_frames(net, batch, IMAGES / "fusion.png", grid=net.config.grid)


if __name__ == "__main__":
    main()
