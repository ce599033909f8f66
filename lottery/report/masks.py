"""Data of the mask explorer: layer densities, thumbnails of masks, overlap between seeds. Torch-free."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lottery.errors import LotteryError
from lottery.record.masks import PackedMask, check_alike
from lottery.record.rows import Row
from lottery.report.study import Group, ReportedRun, short_words
from lottery.stability.overlap import overlap_by_layer

LOG = logging.getLogger("lottery")

EDGES = (96, 64, 48, 32, 24, 16, 12)  # pixels of a thumbnail's edge; the largest that fits is chosen
ROOM = 1_000_000  # bytes of all thumbnails before base64
LEVELS = 16  # shades of a thumbnail: four bits a pixel
CELLS = 40_000  # cells in all heat maps of a report

# (round, layer) -> seed, IoU and IoU by chance of every other study of the experiment.
Shared = dict[tuple[int, str], list[list[Any]]]


@dataclass(frozen=True)
class Layer:
    """The thumbnail of a layer's mask in one round."""

    shape: tuple[int, ...]
    picture: NDArray[np.uint8]  # shades, 0 to LEVELS - 1
    fullest: float  # the share of weights kept where the thumbnail is brightest


def explorer(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Return the maps of every study, up to CELLS cells in all; warn of the number of studies that are left out."""
    every = [(group, study) for group in groups for study in group.studies]
    cells = np.cumsum([sum(len(row.get("layer_density") or ()) for row in study.tickets) for _, study in every])
    chosen = [each for each, until in zip(every, cells, strict=True) if until <= CELLS]
    if len(chosen) < len(every):
        left = len(every) - len(chosen)
        LOG.warning("the mask explorer leaves out %d studies for which the report has no room", left)
    edge = _edge([study for _, study in chosen])
    maps = []
    for group, words in zip(groups, short_words(groups), strict=True):
        studies = [study for owner, study in chosen if owner is group]
        shared = _overlaps(studies)
        before = f"{words}, " if len(groups) > 1 else ""
        maps += [_map(before + group.name(study), study, shared[study.path], edge) for study in studies]
    return [each for each in maps if each["layers"]]


def _edge(studies: Sequence[ReportedRun]) -> int:
    """Return the largest edge at which all thumbnails fit into ROOM, or the smallest; sizes are of the first masks."""
    shapes: list[tuple[int, int]] = []
    for study in studies:
        for row in study.tickets[:1]:
            if mask := _read(study, row):
                shapes += [_flat(shape) for shape in mask.shapes.values()] * len(study.tickets)
    sizes = {edge: sum(min(edge, rows) * min(edge, columns) for rows, columns in shapes) * 0.5 for edge in EDGES}
    return next((edge for edge, size in sizes.items() if size <= ROOM), EDGES[-1])


def _read(study: ReportedRun, row: dict[str, Any]) -> PackedMask | None:
    """Return a round's mask; warn and return None where the file is missing or damaged."""
    try:
        return study.packed_mask(row)
    except LotteryError as error:
        LOG.warning("%s; its thumbnails are left out", error)
        return None


def _map(words: str, study: ReportedRun, shared: Shared, edge: int) -> dict[str, Any]:
    """Return a study's layers and rounds, and for each layer in each round density, overlaps and thumbnail.

    `sizes`: rows, columns and fullest share of a thumbnail. `sprite`: all thumbnails, each in a cell of edge x edge.
    """
    tickets = [row for row in study.tickets if row.get("layer_density")]
    layers = list(dict.fromkeys(name for row in tickets for name in row["layer_density"]))
    masks = [_read(study, row) for row in tickets]
    places = [
        [thumbnail(mask, name, edge) if mask and name in mask.bits else None for mask in masks] for name in layers
    ]
    return {
        "words": words,
        "seed": study.seed,
        "layers": layers,
        "rounds": [row["round"] for row in tickets],
        "remaining": [100 * row["density"] for row in tickets],
        "density": [[row["layer_density"].get(name) for row in tickets] for name in layers],
        "shapes": [next((layer.shape for layer in line if layer), None) for line in places],
        "shared": [[shared.get((row["round"], name), []) for row in tickets] for name in layers],
        "edge": edge,
        "sizes": [[layer and [*layer.picture.shape, layer.fullest] for layer in line] for line in places],
        "sprite": _sprite(places, edge),
    }


def _flat(shape: Sequence[int]) -> tuple[int, int]:
    """Return rows and columns of a layer's picture: outputs by inputs, or by kernel positions for a single input."""
    if len(shape) < 2:
        return 1, int(np.prod(shape))
    return shape[0], shape[1] if shape[1] > 1 else int(np.prod(shape[1:]))


def thumbnail(mask: PackedMask, name: str, edge: int) -> Layer:
    """Draw a layer's mask as a picture of at most edge x edge pixels: rows are outputs, columns inputs.

    Kernel positions are averaged. A pixel is the share of weights kept in its part, relative to the fullest pixel.
    """
    shape = mask.shapes[name]
    bits = np.unpackbits(mask.bits[name], count=int(np.prod(shape)))
    rows, columns = _flat(shape)
    grid = bits.reshape(rows, columns, -1).mean(axis=2, dtype=np.float32)
    for axis, length in enumerate((rows, columns)):
        if length > edge:
            starts = np.arange(edge) * length // edge
            counts = np.diff(np.append(starts, length)).astype(np.float32)
            grid = np.add.reduceat(grid, starts, axis=axis) / (counts[:, None] if axis == 0 else counts[None, :])
    fullest = float(grid.max())
    shades = np.ceil(grid / fullest * (LEVELS - 1)) if fullest else grid
    return Layer(shape, shades.astype(np.uint8), fullest)


def _sprite(places: Sequence[Sequence[Layer | None]], edge: int) -> str | None:
    """Draw a study's thumbnails into one PNG, as a data URI: a cell of edge x edge for each layer (down) and round."""
    from PIL import Image

    found = [(line, column, layer) for line, of in enumerate(places) for column, layer in enumerate(of) if layer]
    if not found:
        return None
    sheet = np.zeros((len(places) * edge, len(places[0]) * edge), np.uint8)
    for line, column, layer in found:
        rows, width = layer.picture.shape
        sheet[line * edge : line * edge + rows, column * edge : column * edge + width] = layer.picture
    image = Image.fromarray(sheet, mode="P")
    image.putpalette([shade for level in range(LEVELS) for shade in [round(255 * level / (LEVELS - 1))] * 3])
    file = io.BytesIO()
    image.save(file, "PNG", bits=4, optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _overlaps(studies: Sequence[ReportedRun]) -> dict[Path, Shared]:
    """Return, by run folder, the overlaps of each study's masks with those of the experiment's other seeds."""
    found: dict[Path, Shared] = {study.path: {} for study in studies}
    levels: dict[tuple[int, Any], list[tuple[ReportedRun, Row]]] = {}
    for study in studies:
        for row in study.tickets:
            levels.setdefault((row["round"], study.density), []).append((study, row))
    for (number, _), at in levels.items():
        masks = [(study, mask) for study, row in at if len(at) > 1 and (mask := _read(study, row)) is not None]
        for (one, ours), (other, theirs) in combinations(masks, 2):
            check_alike(ours, theirs)
            for name, common in overlap_by_layer(ours.bits, theirs.bits, ours.sizes).items():
                for study, partner in ((one, other), (other, one)):
                    entry = [partner.seed, common.iou, common.iou_chance]
                    found[study.path].setdefault((number, name), []).append(entry)
    return found
