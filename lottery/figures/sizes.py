"""Figure of the accuracy of tickets at a density against width and depth of the dense network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from lottery.errors import LotteryError
from lottery.figures.axes import accuracy_axis
from lottery.figures.curves import Curve, at_density, common_densities, curves, points
from lottery.figures.experiments import DENSITIES, By, Experiment, check_table, differing, experiments
from lottery.figures.sheet import DASHED, Published, draw_curve, draw_panel, heading, legend, on_panel, paths_of, sheet
from lottery.figures.style import DENSE, HEIGHT, WIDTH, percent
from lottery.figures.words import configs, subject, value_words, words_and_unit

PANELS = 4


def width_depth(
    frame: pd.DataFrame,
    path: str | Path,
    *,
    densities: Sequence[float] = (),
    value: str = "test_accuracy",
    by: By = None,
    band: str = "range",
    published: Published = (),
    title: str | None = None,
) -> list[Path]:
    """Draw accuracy against the size of the network, an axis for each density (Liu et al. 2022, Figs. 1 and 2).

    Tickets and controls of each experiment stand beside the dense networks, as means over seeds.
    densities: kept / prunable; by default those that the most experiments have, at most four.
    by: columns whose values make a curve; by default all in which the studies differ besides their networks.
    published: points {"x": prunable weights of the dense network, "y", "label", "series"}, and "density" for the axis.
    Returns the paths of PNG, SVG and PDF. Raises LotteryError for several data sets, and for a single network.
    """
    check_table(frame, ["prunable", value])
    sizes = size_words(frame)
    if len(sizes) < 2:
        raise LotteryError(
            f"width_depth: one network only ({'; '.join(sizes.values())}): draw accuracy against density"
        )
    models = [name for name in map(str, frame) if name.startswith("config.model.")]
    groups = experiments(frame, by, [*DENSITIES, *models], architectures=True)
    asked = list(densities) or common_densities(groups, PANELS)
    width = WIDTH if len(asked) == 1 else 1.4 + 2.5 * len(asked)
    what = f"{words_and_unit(value)[0]} against the size of the network"
    with sheet(path, heading(frame, title, what), HEIGHT, width, count=len(asked), sharey=True) as panels:
        for axes, density in zip(panels, asked, strict=True):
            draw_sizes(axes, groups, value, density, band, on_panel(published, "density", None, density))
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(FixedLocator(list(sizes)))
            axes.set_xticklabels([words or f"{size:,}" for size, words in sizes.items()])
            axes.xaxis.set_minor_locator(NullLocator())
            if sum(map(len, sizes.values())) > 18:
                axes.tick_params(axis="x", rotation=45)
            axes.set_xlabel("network, by its size")
            axes.label_outer()
        accuracy_axis(panels)
        legend(panels, band)
    return paths_of(path)


def draw_sizes(
    axes: Axes, groups: Sequence[Experiment], value: str, density: float, band: str = "range", published: Published = ()
) -> list[Curve]:
    """Draw accuracy against prunable weights, for the tickets of one density and for the dense networks."""
    dense = pd.concat([group.dense for group in groups]).drop_duplicates(["seed", "prunable", "weights_digest"])
    of_dense = Curve("dense", DENSE, "x", DASHED, points(dense, value, "prunable", band, ["prunable"]))
    found = curves(at_density(groups, density), value, "prunable", band, ["prunable"])
    draw_curve(axes, of_dense, words_and_unit(value)[1])
    draw_panel(axes, value, found, (), published)
    axes.set_title(f"{percent(density)} % of the prunable weights", fontsize="medium")
    return [of_dense, *found]


def size_words(frame: pd.DataFrame) -> dict[int, str]:
    """Map the number of prunable weights to a label: the one option in which networks differ, or else their names."""
    studies = frame.drop_duplicates("run")
    differ = [name for name in differing(studies) if name.startswith("config.model.")]
    if len(differ) == 1:
        words = studies[differ[0]].map(value_words)
    else:
        known = {run: subject(config).rpartition(" on ")[0] for run, config in configs(studies).items()}
        words = studies["run"].map(known).fillna("")
    return dict(sorted(zip(studies["prunable"].astype(int), words, strict=True)))
