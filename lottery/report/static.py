"""Static figures of a report: PNGs that need no script, small enough to embed. Torch-free."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from lottery.methods.shows import shows
from lottery.record.names import FIGURES
from lottery.report.study import Group

LOG = logging.getLogger("lottery")

ROOM = 1_000_000  # bytes of all figures before base64
COLOURS = 64  # in a figure: a few hues and their blends at edges
SEEDS = ("accuracy", "early_stop", "layers")  # figures that are drawn over all seeds


def pictures(groups: Sequence[Group]) -> dict[str, dict[str, str]]:
    """Map experiment -> figure -> image as a data URI, until the images reach ROOM; warn of experiments left out."""
    found: dict[str, dict[str, str]] = {}
    room = ROOM
    for place, group in enumerate(groups):
        if room <= 0:
            left = len(groups) - place
            LOG.warning("the report has no room for static figures of %d more experiments", left)
            break
        with TemporaryDirectory(prefix="lottery-report-") as folder:
            found[group.words] = {}
            for words, path in _paths(group, Path(folder)):
                data = _small(path)
                if data is not None and len(data) <= room:
                    found[group.words][words] = f"data:image/png;base64,{base64.b64encode(data).decode()}"
                    room -= len(data)
    return found


def _paths(group: Group, folder: Path) -> list[tuple[str, Path]]:
    """Return (words, path) of figures: those in SEEDS drawn anew over all seeds, others from the first study's run."""
    first, several = group.studies[0], len(group.studies) > 1
    own = sorted((first.path / FIGURES).glob("*.png"))
    ladder = shows(str(first.leaves.get("method._target_", ""))).ladder
    drawn = _draw(group, folder) if ladder and (several or not own) else []
    left = [path for path in own if not drawn or path.stem not in SEEDS]
    single = f", {group.name(first)}" if several else ""
    return [(_words(path), path) for path in drawn] + [(_words(path) + single, path) for path in left]


def _draw(group: Group, folder: Path) -> list[Path]:
    """Draw accuracy and early-stop step against density or removed units, as far as measured; return their paths."""
    from lottery.figures.experiments import NothingToDraw  # slow to import
    from lottery.figures.study import ladder
    from lottery.record.frame import frame_of

    frame = frame_of(group.studies)
    drawn = []
    for name, figure in ladder(frame).items():
        with suppress(NothingToDraw):
            drawn += figure(frame, folder / name, vector=False)
    return drawn


def _words(path: Path) -> str:
    return path.stem.replace("_", " ").replace("lmc", "linear mode connectivity")


def _small(path: Path) -> bytes | None:
    """Return a figure with few colours as PNG; warn and return None where the file is no image."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            file = io.BytesIO()
            image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    except (OSError, UnidentifiedImageError) as error:
        LOG.warning("%s: not a figure (%s), and left out", path, error)
        return None
    return file.getvalue()
