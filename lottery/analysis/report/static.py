"""The static figures of a report: PNGs that need no script, small enough to embed. Torch-free."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from lottery.analysis.report.study import Experiment

LOG = logging.getLogger("lottery")

ROOM = 1_000_000  # bytes of all figures before base64
COLOURS = 64  # of a figure: a few hues and their edges
NO_LADDER = (
    "Instability",
    "Regimes",
)  # methods whose rounds are no ladder of densities: they have figures of their own
SEEDS = ("accuracy", "early_stop")  # figures that are drawn over all seeds


@dataclass(frozen=True)
class Picture:
    """A figure as a data URI; `words` say what it shows."""

    words: str
    uri: str


def pictures(experiments: Sequence[Experiment]) -> dict[str, list[Picture]]:
    """The figures of each experiment, by its words, as far as there is room."""
    found: dict[str, list[Picture]] = {}
    room = ROOM
    for place, experiment in enumerate(experiments):
        if room <= 0:
            left = len(experiments) - place
            LOG.warning("the report has no room for static figures of %d more experiments", left)
            break
        with TemporaryDirectory(prefix="lottery-report-") as folder:
            found[experiment.words] = []
            for words, path in _paths(experiment, Path(folder)):
                data = _small(path)
                if data is not None and len(data) <= room:
                    uri = f"data:image/png;base64,{base64.b64encode(data).decode()}"
                    found[experiment.words].append(Picture(words, uri))
                    room -= len(data)
    return found


def _paths(experiment: Experiment, folder: Path) -> list[tuple[str, Path]]:
    """Drawn now over all seeds what depends on the seed; the others as the first study left them."""
    first = experiment.studies[0]
    own = sorted((first.run / "figures").glob("*.png"))
    drawn: list[Path] = []
    several = len(experiment.studies) > 1
    if experiment.method not in NO_LADDER and (several or not own):
        drawn = _draw(experiment, folder)
    left = [path for path in own if not drawn or path.stem not in SEEDS]
    single = f", {experiment.name(first)}" if several else ""
    return [(_words(path), path) for path in drawn] + [(_words(path) + single, path) for path in left]


def _draw(experiment: Experiment, folder: Path) -> list[Path]:
    """As `draw_seeds`, but from rows that were read leniently, and over the densities of one-shot methods too."""
    from lottery.analysis.figures import _draw_curves  # matplotlib is slow to import
    from lottery.analysis.style import title

    rows = [row | {"round": row["level"]} for row in experiment.rows]
    heading = title(experiment.studies[0].config, seed=False)
    return _draw_curves(rows, heading, folder, bars=len(experiment.studies) > 1)


def _words(path: Path) -> str:
    return path.stem.replace("_", " ").replace("lmc", "linear mode connectivity")


def _small(path: Path) -> bytes | None:
    """The figure with few colours; None where it is no image."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            file = io.BytesIO()
            image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    except (OSError, UnidentifiedImageError) as error:
        LOG.warning("%s: not a figure (%s), and left out", path, error)
        return None
    return file.getvalue()
