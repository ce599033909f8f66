"""What the tests of papers share: a sweep file whose studies are over in a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from command_line_tools import QUICK

SMALL = [each for each in QUICK if not each.startswith(("tracker", "method."))]
IMP = {
    "name": "imp",
    "label": "IMP",
    "overrides": ["+exp=imp_rewind", "method.rounds=1", "controls=random", "rewind=init"],
}
FIGURE = {
    "name": "accuracy", "plot": "accuracy", "runs": ["imp"],
    "published": [{"x": 0.5, "y": 0.5, "label": "made up for a test", "series": "random"}],
}  # fmt: skip


def sweep_file(folder: Path, **changes: Any) -> Path:
    """`folder`/tiny/sweep.yaml: two seeds of one pruning, a random mask beside it; 6 trainings of 20 steps."""
    values: dict[str, Any] = {
        "title": "A tiny paper",
        "source": {"authors": "Nobody", "venue": "nowhere"},
        "about": "Two seeds.",
        "runs": [IMP],
        "scales": {
            "smoke": {"cost": "seconds", "overrides": [*SMALL, "seed=0,1"]},
            "small": {"cost": "seconds more", "overrides": [*SMALL, "seed=0,1,2"]},
        },
        "figures": [FIGURE],
    }
    path = folder / "tiny" / "sweep.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump({**values, **changes}, sort_keys=False))
    return path
