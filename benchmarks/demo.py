"""Run the main job as a newcomer would and keep its figures for the pages.

    python benchmarks/demo.py embedded
    python benchmarks/demo.py camvid --data ROOT     # a root in BDD100K's layout

Does what ``taskprune demo`` does with the same defaults, then copies its report to
``results/demo_NAME.json`` and, of generated scenes, its picture to
``docs/images/predictions_NAME.png``.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from protocol import record
from rich.console import Console

from taskprune.driving.demo import DemoSettings, run_demo

IMAGES = Path(__file__).parents[1] / "docs" / "images"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="what to call the results")
    parser.add_argument("--data", type=Path, help="data set in BDD100K's layout")
    parser.add_argument("--out", type=Path, default=None, help="folder of the run")
    args = parser.parse_args()
    out = args.out or Path("runs") / f"demo_{args.name}"
    run_demo(DemoSettings(data=args.data, out=out), Console())
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    record(f"demo_{args.name}", report)
    if args.data is None:
        # Pictures of other people's images are not ours to publish.
        IMAGES.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(out / "predictions.png", IMAGES / f"predictions_{args.name}.png")


if __name__ == "__main__":
    main()
