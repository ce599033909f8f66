"""The names of the files in a run folder (design, 4.2). No other module of lottery spells them out."""

from __future__ import annotations

import re

CONFIG = "config.yaml"
TABLE = "rounds.jsonl"  # a line a round, control and copy
CURVES = "curves.csv"
SEARCH = "search.csv"
MANIFEST = "manifest.json"
STATUS = "status.json"
STUDY_LOG = "study.log"
REPORT = "report.html"
CSV = "rounds.csv"  # written by tracker=csv
OWN_CODE = "own_code.json"  # the folders of the user's own modules
SENT = "sync.json"  # list of the items that `sync` has sent
# In paths.runs, a folder for each name of studies, with their statistics over seeds; hidden, and no run folder.
SEEDS_FOLDER = ".seeds"
SEEDS = {"table": "seeds.csv", "figure": "seeds.png", "lines": "seeds.txt"}
MASKS, ROUNDS, FIGURES, WANDB = "masks", "rounds", "figures", "wandb"  # folders

CURVE_COLUMNS = ("round", "control", "copy", "step", "split", "loss", "accuracy")
# After the round, and before the histogram of the scores. swaps: weights that entered (and left) the mask, per step
# since the previous entry.
SEARCH_COLUMNS = ("step", "train_loss", "val_loss", "val_accuracy", "swaps", "magnitude_iou", "score_low", "score_high")
KEY = re.compile(r"[0-9a-f]{12}")  # a study's key, which is the name of its run folder


def stem(round: int, control: str | None = None, copy: int = 0) -> str:
    """Return the file stem of a row, such as round_003, or round_003.random-0 for a control."""
    return f"round_{round:03d}" + (f".{control}-{copy}" if control else "")


def details_file(round: int, control: str | None = None, copy: int = 0) -> str:
    """Return the name of the file with a row's origin: stages, digests, versions, seconds."""
    return f"{ROUNDS}/{stem(round, control, copy)}.json"


def mask_file(round: int, control: str | None = None, copy: int = 0, units: bool = False) -> str:
    """Return the name of the snapshot of a row's mask, or of its units. reinit and static have their ticket's."""
    name = stem(round) if control in ("reinit", "static") else stem(round, control, copy)
    return f"{MASKS}/{name}{'.units' if units else ''}.safetensors"


def search_mask_file(step: int) -> str:
    """Return the name of the mask snapshot at one step of a search."""
    return f"{MASKS}/search/step_{step:08d}.safetensors"


def moving_mask_file(round: int, step: int) -> str:
    """Return the name of the mask snapshot at one step of a training whose mask moves."""
    return f"{MASKS}/training/{stem(round)}/step_{step:08d}.safetensors"


def drawn_again(name: str) -> bool:
    """Whether a reader may redraw this file (a figure or the report), so that a changed one is no damage."""
    return name == REPORT or name.startswith(f"{FIGURES}/")
