"""What a study's configuration, rows and curves are called in a tracking service; the round is an axis, not a key."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lottery.tracking.folder import Row

SCORES = (
    "train_loss", "train_accuracy", "val_loss", "val_accuracy", "test_loss", "test_accuracy",
    "early_stop_step", "early_stop_test_accuracy",
)  # fmt: skip
SIZES = ("density", "density_weights", "kept", "step_rewind", "steps", "seconds")


def control_of(row: Row) -> str:
    """The part of a key that tells a control's figures from its ticket's: "control/reinit-0/", or nothing."""
    return f"control/{row['control']}-{row['copy']}/" if row["control"] else ""


def round_row(row: Row) -> dict[str, float]:
    """A row's figures: round/NAME of a ticket; of a control its scores, since its layers are as dense as the ticket's.

    What was not measured (None) is left out.
    """
    figures = {name: row.get(name) for name in SCORES}
    figures |= probe_figures(row)
    if not row["control"]:
        figures |= {name: row.get(name) for name in SIZES}
        figures |= {f"density/{layer}": density for layer, density in row["layer_density"].items()}
        figures["collapsed_layers"] = len(row["collapsed_layers"])
        if "removed_units" in row:
            figures |= {"removed_units": len(row["removed_units"]), "units": row["units"]}
    prefix = "round/" + control_of(row)
    return {"round": row["round"]} | {prefix + name: value for name, value in figures.items() if value is not None}


def probe_figures(row: Row) -> dict[str, float | None]:
    """What the probes measured: probe/NAME, or probe/NAME/LAYER where there is a figure for each layer; no curves."""
    found: dict[str, float | None] = {}
    for name, value in row.items():
        if name.startswith("probe/"):
            found |= {f"{name}/{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
    return {name: value for name, value in found.items() if not isinstance(value, list)}


def search_rows(path: Path, round: int) -> list[dict[str, float]]:
    """The entries that a run folder's `search.csv` has of this round: search/NAME, its axis search/step."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        entries = [entry for entry in csv.DictReader(file) if int(entry["round"]) == round]
    return [{f"search/{name}": float(value) for name, value in entry.items() if value} for entry in entries]


def curve_rows(row: Row, curve: list[list[Any]], start: int) -> list[dict[str, float]]:
    """A training curve [step, split, loss, accuracy], one entry a step; its place on the axis counts from `start`."""
    prefix = "curve/" + control_of(row)
    steps: dict[int, dict[str, float]] = {}
    for step, split, loss, accuracy in curve:
        name = prefix + {"validation": "val"}.get(split, split)
        point = steps.setdefault(
            step, {"curve/total_step": start + step, "curve/step": step, "curve/round": row["round"]}
        )
        point |= {k: v for k, v in ((f"{name}_loss", loss), (f"{name}_accuracy", accuracy)) if v is not None}
    return [steps[step] for step in sorted(steps)]


def summary(tickets: list[Row]) -> dict[str, float]:
    """On the test set: the best ticket, and the density of the sparsest that is as accurate as the dense network."""
    scored = [row for row in tickets if row["test_accuracy"] is not None]
    if not scored:
        return {}
    best = max(scored, key=lambda row: row["test_accuracy"])
    figures = {"best_test_accuracy": best["test_accuracy"], "best_test_accuracy_round": best["round"]}
    dense = next((row["test_accuracy"] for row in scored if row["round"] == 0), None)
    if dense is not None:
        figures["sparsest_matching_density"] = min(row["density"] for row in scored if row["test_accuracy"] >= dense)
    return figures


def tags(config: dict[str, Any], own: list[str]) -> list[str]:
    """The user's own tags, then the names of data set, model and method; at most 64 characters each, as W&B wants."""
    nodes = [config.get(group) or {} for group in ("data", "model", "method")]
    names = [node.get("name") or str(node.get("_target_", "")).rpartition(".")[2].lower() for node in nodes]
    return list(dict.fromkeys(tag[:64] for tag in [*own, *names] if tag))


def publishable(value: Any, top: bool = True) -> Any:
    """A configuration without `paths`, and with only the last part of any other path of this machine."""
    if isinstance(value, dict):
        return {key: publishable(part, False) for key, part in value.items() if not (top and key == "paths")}
    if isinstance(value, list):
        return [publishable(part, False) for part in value]
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "~")) else value


def artifact_name(name: str, key: str) -> str:
    """The study's artifact, in the characters that W&B allows."""
    return f"masks-{re.sub(r'[^A-Za-z0-9._-]+', '-', name)[:64]}-{key}"
