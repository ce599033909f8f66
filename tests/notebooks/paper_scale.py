"""Run folders of a paper's largest scale without its trainings: its configurations, with the rows of small real runs.

What a notebook does with them is drawing and arithmetic, which does not depend on who trained.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lottery.config import digest
from lottery.papers import load
from lottery.papers.studies import PlannedStudy, studies

INSTEAD = {  # the block of the smallest scale that stands in for one of the largest, where none has its name
    "lth": {"conv2": "lenet", "conv4": "lenet", "conv6": "lenet"},
    "lmc": {"resnet20": "lenet"},
    "jackpots": dict.fromkeys(("resnet32", "resnet32_long", "vgg19", "vgg19_long"), "lenet"),
    "rewinding": {
        "lr_all": "lr", "one_shot_weights": "weights", "one_shot_lr": "lr", "one_shot_finetune": "finetune"
    },
    "random_pruning": {"resnet_widths": "widths", "resnet_depths": "depths", "resnet_ratios": "ratios"},
    "bip": {
        "resnet20": "bip", "resnet20_repo": "bip_repo", "resnet20_imp": "imp", "resnet20_one_shot": "one_shot",
        "resnet18": "bip", "resnet18_imp": "imp",
    },
    "layer_tickets": {"table4_resnet56": "table4"},
    "dynamic": {"wrn_random": "random", "wrn_set": "set", "wrn_rigl": "rigl", "wrn_gmp": "gmp"},
}  # fmt: skip


def make(name: str, small: Path, folder: Path) -> int:
    """Write the run folders of the scale `paper`, two seeds, into `folder`; how many. `small`: those of `smoke`."""
    paper, by_block = load(name), dict[str, list[PlannedStudy]]()
    for study in studies(paper, "smoke", [f"paths.runs={small}"]):
        for block in study.blocks:
            by_block.setdefault(block, []).append(study)
    used, asked = Counter[str](), studies(paper, "paper", [f"paths.runs={folder}", "seed=0,1"])
    for study in asked:
        source = _instead(name, study.blocks[0])
        there = by_block[source]
        _write(study, there[used[source] % len(there)].folder)
        used[source] += 1
    return len(asked)


def _instead(name: str, block: str) -> str:
    if name == "stabilizing":
        return "lenet_rewound" if block.endswith("rewound") else "lenet"
    return INSTEAD[name].get(block, block)


def _write(study: PlannedStudy, source: Path) -> None:
    shutil.copytree(source, study.folder, ignore=shutil.ignore_patterns("manifest.json"))
    OmegaConf.save(study.config, study.folder / "config.yaml", resolve=True)
    rows = [json.loads(line) for line in (source / "rounds.jsonl").read_text().splitlines()]
    lines = [json.dumps(row | _changes(study.config, row)) + "\n" for row in rows]
    (study.folder / "rounds.jsonl").write_text("".join(lines))


def _changes(config: DictConfig, row: dict[str, Any]) -> dict[str, Any]:
    """What the configuration says of a row: where it was rewound to, its density, and whose training it is."""
    whole: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    training = {key: part for key, part in whole.items() if key not in ("probes", "paths", "name", "controls")}
    changes = {"weights_digest": digest([training, row["round"], row["control"], row["copy"]])}
    if row["round"] > 0 and config.rewind.to != "init" and not config.method._target_.endswith("Instability"):
        changes |= {"step_rewind": int(config.rewind.to.rstrip("itep"))}
    if row["round"] > 0 and config.method.get("density"):
        changes |= dict.fromkeys(("density", "density_weights"), float(config.method.density))
    return changes
