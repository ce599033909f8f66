"""The items that W&B records of a study: figures, images, artifacts. A running study or `sync` publishes each once."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lottery.errors import LotteryError
from lottery.record.rows import Row
from lottery.record.run import Run

if TYPE_CHECKING:
    from lottery.config import Config


@dataclass(frozen=True)
class RunInfo:
    """The description of a study for W&B, equal each time the study runs."""

    key: str
    name: str  # for people; unique, since it ends with the key
    group: str
    job: str  # the method, such as "imp"
    tags: list[str]
    config: dict[str, Any]  # without paths of this machine

    @classmethod
    def of(cls, config: Config, key: str, config_yaml: str) -> RunInfo:
        from omegaconf import OmegaConf

        told = publishable(OmegaConf.to_container(OmegaConf.create(config_yaml), resolve=True))
        name = f"{config.name} seed {config.seed} ({key})"
        job = str((told.get("method") or {}).get("_target_", "")).rpartition(".")[2].lower()
        return cls(key, name, config.tracker.group or config.name, job, tags(told, config.tracker.tags), told)


@dataclass(frozen=True)
class Metrics:
    """A row of figures: name -> value."""

    figures: Mapping[str, float]

    @property
    def id(self) -> str:
        """A digest of names and values; 1 and 1.0 are equal."""
        row = {name: float(value) for name, value in sorted(self.figures.items())}
        return hashlib.sha256(json.dumps(row).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Image:
    """A figure: a PNG file, and its sha256."""

    key: str
    path: Path
    digest: str

    @property
    def id(self) -> str:
        return f"{self.key} {self.digest[:16]}"


@dataclass(frozen=True)
class Table:
    """The rows of the study as one table: scalars alone, a column a figure."""

    key: str
    columns: list[str]
    rows: list[list[Any]]

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Table:
        """Return the table of a study's rows, tickets and controls, in their order."""
        flat = [{name: row.get(name) for name in (*PLACE, *SCORES, *SIZES)} | probe_figures(row) for row in rows]
        columns = list(dict.fromkeys(name for row in flat for name in row))
        return cls("rounds", columns, [[row.get(name) for name in columns] for row in flat])

    @property
    def id(self) -> str:
        return table_id(self.key, len(self.rows), len(self.columns))


def table_id(key: str, rows: int, columns: int) -> str:
    """Return the id of a table: W&B's log has its size, and a study's table changes as it grows."""
    return f"{key} {rows} x {columns}"


@dataclass(frozen=True)
class Artifact:
    """A version of an artifact: a mask, or a record of trained weights. The weights themselves stay in the store."""

    name: str
    type: str  # mask, weights
    round: int
    digest: str  # of the mask, or of the state
    facts: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    path: Path | None = field(
        default=None, compare=False, repr=False
    )  # a mask snapshot; None: the artifact has only facts

    @classmethod
    def mask(cls, study: str, key: str, row: Row, path: Path) -> Artifact:
        """Describe a ticket's mask. The masks of a study are versions of one artifact, with a name that W&B allows."""
        name = f"masks-{re.sub(r'[^A-Za-z0-9._-]+', '-', study)[:64]}-{key}"
        return cls(name, "mask", row["round"], row["mask_digest"], {"density": row["density"]}, path)

    @classmethod
    def weights(cls, stage: str, round: int, digest: str, **facts: Any) -> Artifact:
        """Describe the final weights of a training stage."""
        told = {"stage": stage, "digest": digest, "round": round} | facts
        return cls(f"weights-{stage[:16]}", "weights", round, digest, told)

    @classmethod
    def file(cls, type: str, path: Path, digest: str) -> Artifact:
        """Describe a user's file, which no study wrote."""
        return cls(f"{type}-{digest[:16]}", type, 0, digest, {"file": path.name, "digest": digest})

    @property
    def alias(self) -> str:
        return f"round-{self.round:03d}"

    @property
    def server_id(self) -> str:
        """An id that is unique on the server, among the artifacts of all studies."""
        return f"{self.name} {self.round} {self.digest}"

    @property
    def id(self) -> str:
        """An id that is unique in the W&B log of the artifact's study."""
        return f"{self.alias} {self.digest[:16]}"

    def metadata(self) -> dict[str, Any]:
        """Return the metadata of the version. Raises LotteryError where its file is damaged, or holds another mask."""
        if self.path is None:
            return self.facts
        from lottery.ticket import read_metadata

        header = read_metadata(self.path)
        if header["digest"] != self.digest:
            raise LotteryError(f"{self.path}: holds another mask than the table says")
        told = {"digest": self.digest, "parent": header["parent"] or None, "study": header["study"]}
        return {"round": self.round} | self.facts | told


Item = Metrics | Image | Table | Artifact


def round_items(row: Row, curve: list[list[Any]], start: int, folder: Path, mask: Artifact) -> Iterator[Item]:
    """Yield the items of a round or control, in order: training curve, a ticket's search, row, a ticket's mask.

    Where the mask moved in training, its course comes with the search.

    start: step at which the curve begins on the axis of all curves. folder: the run folder.
    """
    yield from map(Metrics, curve_rows(row, curve, start))
    if not row["control"]:
        yield from map(Metrics, search_rows(folder, row["round"]))
        yield from map(Metrics, moving_rows(folder, row))
    yield Metrics(round_row(row))
    if not row["control"]:
        yield mask


class Client(Protocol):
    """A recorder of items: in the W&B log of a running study, or on the server for `sync`."""

    def has(self, item: Any) -> bool:
        """Whether the item is on record."""

    def take(self, item: Any) -> None:
        """Put the item on record."""


def publish(items: Iterable[Item], client: Client) -> int:
    """Record, in order, the items that are not on record yet. Returns their number."""
    new = 0
    for item in items:
        if not client.has(item):
            client.take(item)
            new += 1
    return new


# -- the names of figures ----------------------------------------------------------------------------------------------

SCORES = (
    "train_loss", "train_accuracy", "val_loss", "val_accuracy", "test_loss", "test_accuracy",
    "early_stop_step", "early_stop_test_accuracy",
)  # fmt: skip
SIZES = ("density", "density_weights", "kept", "step_rewind", "steps", "seconds")
PLACE = ("round", "control", "copy")
# The figures that W&B draws by itself. Others begin with MORE: W&B has them, and draws one where it is asked for.
MORE = "more/"
CHARTS = {  # axis -> prefix, and the names below it
    "round": ("round/", {"test_accuracy", "test_loss", "val_accuracy", "train_accuracy", "early_stop_step",
                         "early_stop_test_accuracy", "density"}),
    "curve/total_step": ("curve/", {"train_loss", "val_loss", "val_accuracy", "lr", "total_step", "step", "round"}),
    "search/step": ("search/", {"train_loss", "val_accuracy", "swaps", "magnitude_iou", "step"}),
    "moving/step": ("moving/", {"density", "explored", "step"}),
}  # fmt: skip


def control_of(row: Row) -> str:
    """Return the prefix of a control's keys, such as "control/reinit-0/"; "" for a ticket."""
    return f"control/{row['control']}-{row['copy']}/" if row["control"] else ""


def placed(name: str) -> str:
    """Return the key of a figure such as round/test_accuracy: below MORE where W&B shall not draw it by itself."""
    shown = any(name.startswith(prefix) and name.removeprefix(prefix) in names for prefix, names in CHARTS.values())
    first = re.fullmatch(r"round/control/[^/]+-0/test_accuracy", name)  # the first copy of each control
    return name if shown or first else MORE + name


def round_row(row: Row) -> dict[str, float]:
    """Return the measured figures of a row, for a control its scores, probes and density, by the keys of `placed`.

    A control has its density as round/density, so that its accuracy can be drawn against density as the ticket's is.
    """
    figures = {name: row.get(name) for name in SCORES}
    figures |= probe_figures(row)
    if not row["control"]:  # a control has the layers of its ticket
        figures |= {name: row.get(name) for name in SIZES}
        figures |= {f"density/{layer}": density for layer, density in row["layer_density"].items()}
        figures["collapsed_layers"] = len(row["collapsed_layers"])
        if "removed_units" in row:
            figures |= {"removed_units": len(row["removed_units"]), "units": row["units"]}
    prefix = "round/" + control_of(row)
    named = {prefix + name: value for name, value in figures.items()} | {"round/density": row["density"]}
    return {"round": row["round"]} | {placed(name): value for name, value in named.items() if value is not None}


def probe_figures(row: Row) -> dict[str, float | None]:
    """Return the figures of probes as probe/NAME, or probe/NAME/LAYER for figures of layers, without curves (lists)."""
    found: dict[str, float | None] = {}
    for name, value in row.items():
        if name.startswith("probe/"):
            found |= {f"{name}/{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
    return {name: value for name, value in found.items() if not isinstance(value, list)}


def search_rows(folder: Path, round: int) -> list[dict[str, float]]:
    """Read the search of a round from the run folder: a dictionary search/NAME -> value for each logged step."""
    return [
        {placed(f"search/{name}"): value for name, value in entry.items() if value is not None}
        for entry in Run(folder).search
        if entry["round"] == round
    ]


def moving_rows(folder: Path, row: Row) -> list[dict[str, float]]:
    """Read the course of a round's mask from the run folder: a dictionary moving/NAME -> value for each point."""
    if "probe/explored" not in row:
        return []
    found = []
    for point in Run(folder).details(row["round"])["moving"]:
        layers = {f"density/{name}": value for name, value in point.pop("layer_density").items()}
        found.append({placed(f"moving/{name}"): value for name, value in (point | layers).items() if value is not None})
    return found


def curve_rows(row: Row, curve: list[list[Any]], start: int) -> list[dict[str, float]]:
    """Convert a curve [step, split, loss, accuracy] to one dictionary a step, with `start` + step as the total step.

    An entry of the split "lr" has a learning rate in the place of the loss.
    """
    prefix = "curve/" + control_of(row)
    steps: dict[int, dict[str, float]] = {}
    for step, split, loss, accuracy in curve:
        name = prefix + {"validation": "val"}.get(split, split)
        point = steps.setdefault(
            step, {"curve/total_step": start + step, "curve/step": step, "curve/round": row["round"]}
        )
        named = {name: loss} if split == "lr" else {f"{name}_loss": loss, f"{name}_accuracy": accuracy}
        point |= {placed(key): value for key, value in named.items() if value is not None}
    return [steps[step] for step in sorted(steps)]


def summary(tickets: list[Row]) -> dict[str, float]:
    """Return test figures of a study: its best ticket, and the sparsest ticket as accurate as the dense network."""
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
    """Return the user's tags, then the names of data set, model and method, cut to W&B's limit of 64 characters."""
    nodes = [config.get(group) or {} for group in ("data", "model", "method")]
    names = [node.get("name") or str(node.get("_target_", "")).rpartition(".")[2].lower() for node in nodes]
    return list(dict.fromkeys(tag[:64] for tag in [*own, *names] if tag))


def publishable(value: Any, top: bool = True) -> Any:
    """Return a configuration without `paths`, and with only the last part of any other path on this machine."""
    if isinstance(value, dict):
        return {key: publishable(part, False) for key, part in value.items() if not (top and key == "paths")}
    if isinstance(value, list):
        return [publishable(part, False) for part in value]
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "~")) else value
