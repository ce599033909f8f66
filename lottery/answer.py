"""Answer for a finished study from its run folder alone, where nothing has changed. Torch-free.

Whatever differs, and whatever cannot be told, is left to the study itself, which finds its stages in the store.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from lottery.errors import LotteryError
from lottery.files import Missing, read_bytes, write_atomic
from lottery.lease import DONE, Lease
from lottery.record.manifest import Content, Manifest, read_manifest
from lottery.record.names import CONFIG, FIGURES, REPORT, TABLE, WANDB, details_file, drawn_again, mask_file
from lottery.record.rows import Row, identity
from lottery.saved import parse_saved
from lottery.tracking.terminal import Terminal, closing, line
from lottery.trust import remember

LOG = logging.getLogger("lottery")

ELSEWHERE = ("paths", "trainer")  # groups of the configuration that change nothing in a run folder but its config.yaml


class Changed(Exception):
    """Raised where the study must run: something differs from what is on record."""


def answered(cfg: DictConfig, folder: Path, inputs: str) -> bool:
    """Print the table of a finished study as a run would, drawing figures and report that are missing or altered.

    folder: its run folder, whose status is "done". inputs: `lottery.inputs.inputs_of(cfg)`.
    Returns False, with nothing printed, where the study must run.
    """
    if not inputs or cfg.trainer.devices * cfg.trainer.nodes > 1:  # several processes must all do the same
        return False
    try:
        manifest = checked(cfg, folder, inputs)
        rows = [json.loads(text) for text in read_bytes(folder / TABLE).splitlines()]
        check_stages(Path(cfg.paths.store), folder, rows)
        check_tracker(cfg, folder, rows, manifest)
        remember([cfg.model["_target_"], cfg.data["_target_"]])
    except (Changed, LotteryError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    terminal = Terminal(live=False)
    terminal.show_log(folder, f"{cfg.name}: {folder}")
    for note in manifest.notes:
        LOG.warning(note)
    for row in rows:
        LOG.info(line(row))
    for text in closing(rows, cfg.method["_target_"], folder):
        LOG.info(text)
    terminal.close()
    return True


def checked(cfg: DictConfig, folder: Path, inputs: str) -> Manifest:
    """Return the manifest, all of whose files are as the study wrote them. Drawings that are not are drawn again, and
    a configuration that names other folders or another trainer is replaced. Raises Changed for any other difference.
    """
    manifest, yaml = read_manifest(folder), OmegaConf.to_yaml(cfg, resolve=True)
    if manifest is None or not manifest.complete or manifest.inputs != inputs or not os.access(folder, os.W_OK):
        raise Changed
    spoilt = [name for name, said in manifest.files.items() if content(folder / name) != said]
    if not all(map(drawn_again, spoilt)):
        raise Changed
    if (known := read_bytes(folder / CONFIG).decode()) != yaml:
        if lasting(known) != lasting(yaml):
            raise Changed
        spoilt.append(CONFIG)
    if not spoilt:
        return manifest
    with Lease(folder, f"{folder.parent.name}/{folder.name}") as lease:
        if not lease.acquire():
            raise Changed
        if CONFIG in spoilt:
            write_atomic(folder / CONFIG, yaml.encode())
        draw(folder, spoilt)
        again = {name: Content.of(read_bytes(folder / name)) for name in spoilt}
        manifest = replace(manifest, files={**manifest.files, **again})
        manifest.write(folder)
    return manifest


def content(path: Path) -> Content | None:
    """Return the size and digest of a file, or None where there is none."""
    try:
        return Content.of(read_bytes(path))
    except Missing:
        return None


def lasting(yaml: str) -> dict[str, object]:
    """Return a configuration without the groups in ELSEWHERE."""
    return {name: part for name, part in parse_saved(yaml, CONFIG).items() if name not in ELSEWHERE}


def draw(folder: Path, names: Sequence[str]) -> None:
    """Draw the figures and write the report that are among `names`. Raises Changed where a figure cannot be drawn."""
    figures = {folder / name for name in names if name.startswith(f"{FIGURES}/")}
    if figures:
        from lottery.figures.study import draw_study  # matplotlib and pandas are slow to import

        if not figures <= set(draw_study(folder, only={path.stem for path in figures})):
            raise Changed
    if REPORT in names:
        from lottery.report.command import write_report

        write_report([folder], folder / REPORT, interactive=False)


def check_stages(store: Path, folder: Path, rows: Iterable[Row]) -> None:
    """Raise Changed unless the store has the stages of all rows, from which networks are read later."""
    kinds = [path for path in store.iterdir() if path.is_dir()]
    for row in rows:
        name = details_file(*identity(row))
        for key in json.loads(read_bytes(folder / name))["stages"].values():
            if not any((kind / key / DONE).exists() for kind in kinds):
                raise Changed


def check_tracker(cfg: DictConfig, folder: Path, rows: Sequence[Row], manifest: Manifest) -> None:
    """Write the tracker's CSV file again, or raise Changed unless W&B's record has the finished study."""
    if cfg.tracker.name == "csv":
        from lottery.tracking.trackers import CsvTracker

        tracker = CsvTracker(folder)
        for row in rows:
            tracker.round(row, [], folder)
    elif cfg.tracker.name == "wandb":
        from lottery.tracking.items import Artifact, Image, Item, Metrics, round_row
        from lottery.tracking.wandb_log import recorded

        key = folder.name
        items: list[Item] = [Metrics(round_row(row)) for row in rows]
        tickets = [row for row in rows if row["control"] is None]
        items += [Artifact.mask(cfg.name, key, row, folder / mask_file(*identity(row))) for row in tickets]
        drawn = {folder / name: said for name, said in manifest.files.items() if name.startswith(f"{FIGURES}/")}
        items += [Image(f"figure/{path.stem}", path, said.sha256) for path, said in drawn.items()]
        known = recorded(folder / WANDB, key, cfg.tracker.project, cfg.tracker.entity)
        if not known.finished or not {item.id for item in items} <= known.items:
            raise Changed
