"""Draw the figures of one study when it ends, from the table of this study alone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

import pandas as pd

from lottery.errors import Interrupted, cause
from lottery.figures.connectivity import lmc
from lottery.figures.curves import nominal
from lottery.figures.density import accuracy, early_stop
from lottery.figures.experiments import NothingToDraw, measured
from lottery.figures.layers import layers
from lottery.figures.masks import layer_density, overlap
from lottery.figures.moving import moving
from lottery.figures.regimes import regimes
from lottery.figures.rewinding import rewind
from lottery.figures.searches import search
from lottery.lease import LeaseLost
from lottery.methods.shows import shows
from lottery.record.names import FIGURES
from lottery.record.table import NoRound, load_runs

LOG = logging.getLogger("lottery")

Draw = Callable[..., list[Path]]


def _instability(frame: pd.DataFrame, path: Path, vector: bool) -> list[Path]:
    """Draw barrier and accuracy against the rewind point, for every density."""
    densities = set(nominal(frame[frame["round"] > 0]).dropna())
    return rewind(frame, path, densities=sorted(densities - {1.0}, reverse=True) or [1.0], vector=vector)


LADDER: dict[str, Draw] = {
    "accuracy": partial(accuracy, band="trainings"),
    "early_stop": partial(early_stop, band="trainings"),
}
UNITS: dict[str, Draw] = {"layers": partial(layers, band="trainings")}  # for a method that removes units
INSTEAD: dict[str, Draw] = {
    "instability": _instability,
    "regimes": regimes,
}  # for methods without a ladder of densities
ALWAYS: dict[str, Draw] = {
    "layer_density": layer_density,
    "lmc": partial(lmc, between="copies"),
    "lmc_previous": partial(lmc, between="previous"),
    "lmc_path": partial(lmc, between="path"),
    "search": search,
    "moving": moving,
    "mask_overlap": overlap,
}


def ladder(frame: pd.DataFrame) -> dict[str, Draw]:
    """Return the figures, by name, of studies whose rounds go from dense to sparse."""
    return UNITS if measured(frame, ["removed_units"]) else LADDER


def draw_study(run: Path, only: Collection[str] | None = None) -> list[Path]:
    """Draw the figures of a study into `run`/figures, and return their paths. only: their names; default: all.

    They are accuracy.png and early_stop.png (or layers.png, instability.png, regimes.png), and for every method
    layer_density.png, lmc.png (lmc_previous.png, lmc_path.png), search.png, moving.png and mask_overlap.png. A
    figure for which nothing was measured (early stopping without a validation split), or that has nothing to
    compare (masks of which each is part of the one before), is left out. So is one that cannot be drawn: a warning
    says why, and its traceback is in study.log. Raises LotteryError where `run` is no run folder; Interrupted and
    LeaseLost pass through.
    """
    try:
        frame = load_runs([run])
    except NoRound:
        return []
    said = shows(str(frame["config.method._target_"].iloc[0]))
    own = {said.figure: INSTEAD[said.figure]} if said.figure else {}
    drawn = []
    for name, draw in ((ladder(frame) if said.ladder else {}) | own | ALWAYS).items():
        if only is not None and name not in only:
            continue
        path = run / FIGURES / f"{name}.png"
        try:
            draw(frame, path, vector=False)
        except (Interrupted, LeaseLost):
            raise
        except NothingToDraw as error:
            LOG.debug("%s is left out: %s", path.name, error)
        except Exception as error:
            LOG.warning("%s was not drawn: %s", path, cause(error), exc_info=True)
        else:
            drawn.append(path)
    return drawn
