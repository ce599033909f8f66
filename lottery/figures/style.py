"""Look of all figures: size, colours, words, tick labels. Matplotlib is imported where it is used."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any, TypeGuard

from lottery.files import write_atomic
from lottery.methods.shows import shows
from lottery.printing import printable_lines

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
    "pdf.fonttype": 42,  # TrueType, which publishers ask for; Type 3 is the default
}
WIDTH, HEIGHT = 6.4, 4.0  # inches; 960 x 600 pixels


@dataclass(frozen=True)
class Look:
    """Words, colour and marker of a curve."""

    control: str | None
    words: str
    colour: str
    marker: str


# Okabe & Ito's palette: distinct for the colour-blind. A control has one look in all figures.
LOOKS = (
    Look(None, "ticket", "#0072B2", "o"),
    Look("reinit", "random reinit", "#D55E00", "s"),
    Look("random", "random mask", "#009E73", "^"),
    Look("shuffle", "shuffled mask", "#CC79A7", "D"),
    Look("invert", "inverted mask", "#E69F00", "v"),
)
OTHERS = (("#56B4E9", "P"), ("#000000", "X"), ("#F0E442", "*"))  # for user-defined controls, in turn
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
    "airbench": "airbench94",
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


def looks(controls: Iterable[str | None], method: str = "") -> list[Look]:
    """Return the looks of a figure's curves in the order of the legend, the ticket first. method: its `_target_`."""
    given = set(controls)
    known = [look for look in LOOKS if look.control in given]
    if drawn := shows(method).mask:  # the method's own masks are as random as the control's
        words = {None: drawn, "random": f"another {drawn}"}
        known = [replace(look, words=words.get(look.control, look.words)) for look in known]
    others = sorted(str(control) for control in given - {look.control for look in LOOKS})
    return known + [Look(name, name, *OTHERS[index % len(OTHERS)]) for index, name in enumerate(others)]


@contextmanager
def canvas(
    path: Path, heading: str, height: float = HEIGHT, width: float = WIDTH, also: Sequence[Path] = ()
) -> Iterator[Figure]:
    """Yield a figure of `width` x `height` inches, and write it to `path` as PNG at the end, whole or not at all.

    also: further files, in the formats of their suffixes (svg, pdf).
    The user's backend and style are neither used nor changed, so that figures do not depend on them.
    Raises LotteryError where a file cannot be written.
    """
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        lines = [fill(line, round(74 * width / WIDTH)) for line in heading.splitlines()]
        figure.suptitle("\n".join(lines), x=0.01, horizontalalignment="left")
        yield figure
        _write_plainly(figure)
        _save(figure, path, "png")
        if also:
            figure.set_layout_engine("none")  # keep the layout of the PNG
        for further in also:
            _save(figure, further, further.suffix.removeprefix("."))


def _write_plainly(figure: Figure) -> None:
    """Show names literally: a dollar sign starts no formula, and control characters are escaped."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        words = text.get_text()
        shown = printable_lines(words)
        if shown != words or ("$" in words and "\\mathdefault" not in words):  # mathdefault: matplotlib's own label
            text.set(text=shown, parse_math=False)


def _save(figure: Figure, path: Path, kind: str) -> None:
    """Write a figure without its date, so that equal figures give equal files."""
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    data = io.BytesIO()
    figure.savefig(data, format=kind, metadata=dates.get(kind))
    write_atomic(path, data.getvalue())


def finite(value: Any) -> TypeGuard[float]:
    """Whether a value is a number that a figure can show."""
    return value is not None and math.isfinite(value)


def percent(fraction: float) -> str:
    """Format a fraction in per cent, with three significant digits and no exponent: 0.512 -> "51.2", 1 -> "100"."""
    value = 100 * fraction
    if value <= 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(value)))
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def spaced(densities: Iterable[float], character: float) -> list[float]:
    """Return the densities to label on a log axis: the highest, then each whose label has room beside the previous one.

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
    """Describe a study in words: "LeNet-300-100 on MNIST, reset to init, seed 0"."""
    try:
        studied = f"{_model(config.get('model') or {})} on {_data(config.get('data') or {})}"
        parts = [studied, _worded(shows(_named(config.get("method"))).title or "{rewind}", config)]
    except (AttributeError, TypeError, ValueError):  # options of types that lottery's parts do not have
        parts = ["model on data"]
    if seed and config.get("seed") is not None:
        parts.append(f"seed {config['seed']}")
    return ", ".join(filter(None, parts))


def _model(model: dict[str, Any]) -> str:
    """Return the words of MODELS for a model, or its factory's name where it has none."""
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


def group(config: dict[str, Any]) -> str:
    """Name the method in a comparison: "SNIP at init", "IMP, reset to init"; without such words, by its class."""
    said = shows(_named(config.get("method")))
    words = said.group or said.title
    return _worded(words, config).strip(", ") if words else _target(config.get("method"))


def _worded(words: str, config: dict[str, Any]) -> str:
    """Fill in the words of a method (`Shows`): {rewind} and the other fields are replaced by the study's words."""
    method = config.get("method") or {}
    parts: dict[str, Callable[[], str]] = {
        "rewind": lambda: _rewind(config),
        "criterion": lambda: CRITERIA.get(_target(config.get("criterion")), "own criterion"),
        "allocation": lambda: ALLOCATIONS.get(_target(method.get("allocation")), "own allocation"),
        "searched": lambda: _searched(method),
    }
    return re.sub(r"\{(\w+)\}", lambda part: parts[part[1]](), words)


def _searched(method: dict[str, Any]) -> str:
    """Describe the options of a search that differ from the usual ones."""
    pattern, restriction = method.get("pattern", "unstructured"), method.get("short_restriction", "none")
    tune = str((method.get("tune") or {}).get("steps", "0it"))
    words = " by the released update" if method.get("variant") == "repo" else ""
    words += {"unstructured": "", "filter": ", filters", "channel": ", input channels"}.get(pattern, f", {pattern}")
    words += "" if restriction == "none" else f", restriction {restriction}"
    return words + ("" if tune in ("0it", "0ep", "init") else f", tuned for {tune}")


def _named(node: Any) -> str:
    """Return the `_target_` of a node, with its module; "" where it has none."""
    return str((node or {}).get("_target_", ""))


def _target(node: Any) -> str:
    """Return the last name of a node's `_target_`, without its module."""
    return _named(node).rpartition(".")[2]


def _rewind(config: dict[str, Any]) -> str:
    """Describe the rewind policy in the papers' words (Renda et al. 2020 for the two that keep the weights)."""
    rewind = config.get("rewind") or {}
    to = str(rewind.get("to", ""))
    if not to:
        return ""
    if rewind.get("weights") == "keep":
        return "fine-tuned" if rewind.get("schedule") == "keep" else f"learning rate rewound to {to}"
    return "reset to init" if rewind.get("weights") == "reset" or to in ("init", "0it", "0ep") else f"rewound to {to}"
