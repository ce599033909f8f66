"""How a figure looks: size, colours, words, tick labels. Matplotlib is imported where it is used."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from lottery.errors import LotteryError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = {
    "figure.dpi": 150,
    "savefig.dpi": 150,
    "font.size": 10,
    "figure.titlesize": 10.5,
    "figure.constrained_layout.h_pad": 0.07,
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#444444",
    "axes.formatter.useoffset": False,
    "axes.axisbelow": True,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.title_fontsize": 9,
    "legend.frameon": False,
    "legend.borderaxespad": 0.3,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.7,
    "svg.hashsalt": "lottery",
}
WIDTH, HEIGHT = 6.4, 4.0  # inches; 960 x 600 pixels


@dataclass(frozen=True)
class Look:
    """Words, colour and marker of a curve."""

    control: str | None
    words: str
    colour: str
    marker: str


# Okabe & Ito's palette: distinct for the colour-blind. A control looks the same in every figure, whichever others are
# there.
LOOKS = (
    Look(None, "ticket", "#0072B2", "o"),
    Look("reinit", "random reinit", "#D55E00", "s"),
    Look("random", "random mask", "#009E73", "^"),
    Look("shuffle", "shuffled mask", "#CC79A7", "D"),
    Look("invert", "inverted mask", "#E69F00", "v"),
)
OTHERS = (("#56B4E9", "P"), ("#000000", "X"), ("#F0E442", "*"))  # controls of somebody's own, in turn
DENSE = "#555555"
EMPTY = "#BBBBBB"

MODELS = {
    "lenet_300_100": "LeNet-300-100",
    "mlp": "MLP {hidden}",
    "conv": "Conv-{pairs}",
    "resnet": "ResNet-{depth}",
    "resnet18": "ResNet-18",
    "vgg": "VGG-{depth}",
    "wide_resnet": "WRN-{depth}-{widen}",
    "from_timm": "{name}",
    "from_torchvision": "{name}",
}
DATA = {
    "mnist": "MNIST",
    "mnist1d": "MNIST-1D",
    "fashion_mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "imagenet": "ImageNet",
}


CRITERIA = {
    "magnitude": "magnitude",
    "random": "random",
    "snip": "SNIP",
    "grasp": "GraSP",
    "synflow": "SynFlow",
    "lamp": "LAMP",
    "snip_signed": "signed SNIP",  # of layers
    "kl": "KL",
    "hrank": "HRank",
    "pls": "PLS",
}
ALLOCATIONS = {
    "uniform": "uniform",
    "uniform_plus": "uniform+",
    "erdos_renyi": "ER",
    "erk": "ERK",
    "erk_plus": "ERK+",
    "balanced": "balanced",
    "from_criterion": "densities from a criterion",
    "from_mask": "densities from a mask",
}


SEARCHES = {  # methods that search for masks by scores
    "BiP": "BiP",
    "Jackpot": "jackpot",
    "EdgePopup": "edge-popup",
}


def looks(controls: Iterable[str | None]) -> list[Look]:
    """How the curves of a figure look, in the order of the legend: the ticket first."""
    given = set(controls)
    known = [look for look in LOOKS if look.control in given]
    others = sorted(str(control) for control in given - {look.control for look in LOOKS})
    return known + [Look(name, name, *OTHERS[index % len(OTHERS)]) for index, name in enumerate(others)]


@contextmanager
def canvas(
    path: Path, heading: str, height: float = HEIGHT, width: float = WIDTH, also: Sequence[Path] = ()
) -> Iterator[Figure]:
    """A figure to draw on, `width` x `height` inches, written to `path` as PNG at the end: whole or not at all. `also`:
    further files, of the kinds that their names end in (svg, pdf).

    Neither the user's backend nor their style is touched or used, so that a figure looks the same everywhere.
    Raises LotteryError where the file cannot be written.
    """
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(fill(heading, round(74 * width / WIDTH)), x=0.01, horizontalalignment="left")
        yield figure
        _save(figure, path, "png")
        if also:
            figure.set_layout_engine("none")  # it stays as it is, and is not laid out again
        for further in also:
            _save(figure, further, further.suffix.removeprefix("."))


def _save(figure: Figure, path: Path, kind: str) -> None:
    """As lottery.files.write_atomic, which needs torch to be imported. Equal figures give equal files."""
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(temporary, format=kind, metadata=dates.get(kind))
        temporary.replace(path)
    except OSError as error:
        raise LotteryError(f"cannot write the figure {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # it is there only where something went wrong
            temporary.unlink()


def percent(fraction: float) -> str:
    """0.512 -> "51.2", 1 -> "100", 0.0000012 -> "0.00012": three significant digits, never an exponent."""
    value = 100 * fraction
    if value <= 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(value)))
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def spaced(densities: Iterable[float], character: float) -> list[float]:
    """The densities to label on a log axis: the highest, then each whose label has room beside the one before.

    `character` is the width of a label's character as a fraction of the axis.
    """
    ordered = sorted(set(densities), reverse=True)
    span = math.log(ordered[0] / ordered[-1])
    chosen = ordered[:1]
    for density in ordered[1:]:
        # short labels get the room of "51.2", so that "100" and "80" stand no closer than the others
        lengths = [max(4, len(percent(value))) for value in (chosen[-1], density)]
        if math.log(chosen[-1] / density) >= span * character * (1.4 + sum(lengths) / 2):
            chosen.append(density)
    return chosen


def title(config: dict[str, Any], seed: bool = True) -> str:
    """What was studied: "LeNet-300-100 on MNIST, reset to init, seed 0"."""
    parts = [f"{_model(config.get('model') or {})} on {_data(config.get('data') or {})}", _method(config)]
    if seed and config.get("seed") is not None:
        parts.append(f"seed {config['seed']}")
    return ", ".join(part for part in parts if part)


def _model(model: dict[str, Any]) -> str:
    """A model that is not in the table is called as its factory is."""
    factory = _target(model) or "model"
    words = dict(model, hidden="-".join(map(str, model.get("hidden") or [])), pairs=2 * (model.get("blocks") or 0))
    try:
        return MODELS.get(factory, factory).format(**words).strip()
    except (KeyError, IndexError, ValueError):
        return factory


def _data(data: dict[str, Any]) -> str:
    name = str(data.get("name") or "data")
    limit = data.get("limit")
    return DATA.get(name, name) + (f" ({limit:,} images)" if limit else "")


def _method(config: dict[str, Any]) -> str:
    """How its masks were found, in a few words; of iterative pruning, where its tickets start from."""
    method = config.get("method") or {}
    kind = _target(method)
    if kind == "RandomPruning":
        return f"random, {ALLOCATIONS.get(_target(method.get('allocation')), 'own allocation')}"
    if kind in SEARCHES:
        return SEARCHES[kind] + _searched(method)
    if kind == "Regimes":
        return "three regimes"
    if kind == "Instability":
        return "IMP from several rewind points"
    if kind == "PruningAtInit":
        return f"{CRITERIA.get(_target(config.get('criterion')), 'own criterion')} at init"
    return _rewind(config)


def _searched(method: dict[str, Any]) -> str:
    """What is not the usual in a search."""
    pattern, restriction = method.get("pattern", "unstructured"), method.get("short_restriction", "none")
    tune = str((method.get("tune") or {}).get("steps", "0it"))
    words = " by the released update" if method.get("variant") == "repo" else ""
    words += {"unstructured": "", "filter": ", filters", "channel": ", input channels"}.get(pattern, f", {pattern}")
    words += "" if restriction == "none" else f", restriction {restriction}"
    return words + ("" if tune in ("0it", "0ep", "init") else f", tuned for {tune}")


def _target(node: Any) -> str:
    """The name of what a node's `_target_` names."""
    return str((node or {}).get("_target_", "")).rpartition(".")[2]


def _rewind(config: dict[str, Any]) -> str:
    """The rewind policy in the papers' words (Renda et al. 2020 for the two that keep the weights)."""
    rewind = config.get("rewind") or {}
    to = str(rewind.get("to", ""))
    if not to:
        return ""
    if rewind.get("weights") == "keep":
        return "fine-tuned" if rewind.get("schedule") == "keep" else f"learning rate rewound to {to}"
    return "reset to init" if rewind.get("weights") == "reset" or to in ("init", "0it", "0ep") else f"rewound to {to}"
