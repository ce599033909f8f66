"""The mask explorer's content: layer densities, thumbnails of masks, overlap between seeds. Torch-free."""

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

from lottery.analysis.masks import PackedMask, check_alike, read_mask
from lottery.analysis.read import Row
from lottery.analysis.report.study import Experiment, Study, labels
from lottery.errors import LotteryError
from lottery.stability.overlap import overlap_by_layer

LOG = logging.getLogger("lottery")

EDGES = (96, 64, 48, 32, 24, 16, 12)  # pixels of a thumbnail at most, the largest that fits
ROOM = 1_000_000  # bytes of all thumbnails before base64
LEVELS = 16  # shades of a thumbnail: four bits a pixel
CELLS = 40_000  # of all heat maps; more are no report but a data set

# Of a round and layer: seed, IoU and IoU by chance of every other study of the experiment.
Shared = dict[tuple[int, str], list[list[Any]]]


@dataclass(frozen=True)
class Layer:
    """A layer of a round: what its thumbnail shows and how it agrees with other seeds."""

    shape: tuple[int, ...]
    picture: NDArray[np.uint8]  # shades, 0 to LEVELS - 1
    fullest: float  # the share of weights kept where the thumbnail is brightest


def explorer(experiments: Sequence[Experiment]) -> list[dict[str, Any]]:
    """For each study of each experiment its maps, as far as there is room: it warns of studies that are left out."""
    chosen, cells = [], 0
    for experiment in experiments:
        for study in experiment.studies:
            cells += sum(len(row.get("layer_density") or ()) for row in study.tickets)
            if cells <= CELLS:
                chosen.append((experiment, study))
    left = sum(len(experiment.studies) for experiment in experiments) - len(chosen)
    if left:
        LOG.warning("the mask explorer leaves out %d studies for which the report has no room", left)
    edge = _edge([study for _, study in chosen])
    maps = []
    for experiment, words in zip(experiments, labels(experiments), strict=True):
        studies = [study for owner, study in chosen if owner is experiment]
        shared = _overlaps(studies)
        maps += [
            _map(words if len(experiments) > 1 else "", experiment, study, shared[study.run], edge) for study in studies
        ]
    return [each for each in maps if each["layers"]]


def _edge(studies: Sequence[Study]) -> int:
    """The largest thumbnails that fit; their sizes are known from the first mask of each study."""
    shapes: list[tuple[int, int]] = []
    for study in studies:
        masks = ((mask, study) for row in study.tickets[:1] if (mask := _read(study, row)))
        shapes += [_flat(shape) for mask, _ in masks for shape in mask.shapes.values()] * len(study.tickets)
    for edge in EDGES:
        if sum(min(edge, rows) * min(edge, columns) for rows, columns in shapes) * 0.5 <= ROOM:
            return edge
    return EDGES[-1]


def _read(study: Study, row: dict[str, Any]) -> PackedMask | None:
    """None, with a warning, where the file is missing or damaged."""
    try:
        return read_mask(study.mask_path(row))
    except LotteryError as error:
        LOG.warning("%s; its thumbnails are left out", error)
        return None


def _map(words: str, experiment: Experiment, study: Study, shared: Shared, edge: int) -> dict[str, Any]:
    """A study: layers, rounds, and of each layer in each round its density, overlaps, and thumbnail: `sizes` are its
    rows, columns and fullest share, `sprite` holds it in a cell of edge x edge.
    """
    tickets = [row for row in study.tickets if row.get("layer_density")]
    layers = list(dict.fromkeys(name for row in tickets for name in row["layer_density"]))
    pictures: dict[tuple[int, int], Layer] = {}
    for column, row in enumerate(tickets):
        if (mask := _read(study, row)) is not None:
            found = [(line, name) for line, name in enumerate(layers) if name in mask.bits]
            pictures |= {(line, column): thumbnail(mask, name, edge) for line, name in found}
    shapes = {line: layer.shape for (line, _), layer in pictures.items()}
    places = [[pictures.get((line, column)) for column in range(len(tickets))] for line in range(len(layers))]
    return {
        "words": f"{words}, {experiment.name(study)}" if words else experiment.name(study),
        "seed": study.seed,
        "layers": layers,
        "rounds": [row["round"] for row in tickets],
        "remaining": [100 * row["density_weights"] for row in tickets],
        "density": [[row["layer_density"].get(name) for row in tickets] for name in layers],
        "shapes": [shapes.get(line) for line in range(len(layers))],
        "shared": [[shared.get((row["round"], name), []) for row in tickets] for name in layers],
        "edge": edge,
        "sizes": [[layer and [*layer.picture.shape, layer.fullest] for layer in line] for line in places],
        "sprite": _sprite(pictures, len(layers), len(tickets), edge) if pictures else None,
    }


def _flat(shape: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of a layer's picture: outputs by inputs; where each output has one input, by its kernel."""
    if len(shape) < 2:
        return 1, int(np.prod(shape))
    return shape[0], shape[1] if shape[1] > 1 else int(np.prod(shape[1:]))


def thumbnail(mask: PackedMask, name: str, edge: int) -> Layer:
    """A layer's mask as a picture of at most edge x edge: rows are outputs, columns inputs, kernel positions averaged;
    a pixel is the share of weights kept of what it covers, relative to the fullest.
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


def _sprite(pictures: dict[tuple[int, int], Layer], lines: int, columns: int, edge: int) -> str:
    """All thumbnails of a study in one PNG, as a data URI: a cell of edge x edge for each layer (down) and round."""
    from PIL import Image

    sheet = np.zeros((lines * edge, columns * edge), np.uint8)
    for (line, column), layer in pictures.items():
        rows, width = layer.picture.shape
        sheet[line * edge : line * edge + rows, column * edge : column * edge + width] = layer.picture
    image = Image.fromarray(sheet, mode="P")
    image.putpalette([shade for level in range(LEVELS) for shade in [round(255 * level / (LEVELS - 1))] * 3])
    file = io.BytesIO()
    image.save(file, "PNG", bits=4, optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _overlaps(studies: Sequence[Study]) -> dict[Path, Shared]:
    """Of each study, by its folder, what its masks share with those of the experiment's other seeds."""
    found: dict[Path, Shared] = {study.run: {} for study in studies}
    levels: dict[tuple[int, Any], list[tuple[Study, Row]]] = {}
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
                    found[study.run].setdefault((number, name), []).append(entry)
    return found
