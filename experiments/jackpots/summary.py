"""The tables and the figure of experiments/jackpots: short restriction and where the search starts.

    python experiments/jackpots/summary.py RUN_FOLDER ... [--out experiments/jackpots]

Prints the tables of README.md in Markdown and draws convergence.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from matplotlib.ticker import FixedLocator, FormatStrFormatter, NullFormatter

from lottery.analysis.read import frame, read_config
from lottery.analysis.search import read_search
from lottery.analysis.statistics import spread
from lottery.analysis.style import DENSE, canvas, percent

DENSITIES = (0.1, 0.05)
STARTS = {"two_level": "magnitude", "two_level_random": "random"}  # where the mask starts
RESTRICTIONS = ("none", "quartic")
COLOURS = {"magnitude": "#0072B2", "random": "#D55E00"}
STYLES = {"none": "solid", "quartic": "dashed"}


def table_of(runs: list[Path]) -> pd.DataFrame:
    """A row a run: density, start, restriction, seed, and its ticket's row of the table."""
    rows = frame(runs)
    methods = {run: read_config(Path(run))["method"] for run in rows["run"].unique()}
    rows["start"] = rows["run"].map({run: STARTS[method["initial"]] for run, method in methods.items()})
    rows["restriction"] = rows["run"].map({run: method["short_restriction"] for run, method in methods.items()})
    rows["nominal"] = rows["run"].map({run: method["density"] for run, method in methods.items()})
    rows["test"] = 100 * rows["test_accuracy"]
    dense = rows[rows["round"] == 0].groupby("seed")["test"].first()
    found = rows[rows["round"] == 1].copy()
    found["dense"] = found["seed"].map(dense)
    found["dense_val"] = found["seed"].map(rows[rows["round"] == 0].groupby("seed")["val_accuracy"].first())
    found["reaches"] = [first_at(Path(row["run"]), row["dense_val"] - 0.005) for _, row in found.iterrows()]
    return found.set_index(["nominal", "start", "restriction", "seed"]).sort_index()


def first_at(run: Path, accuracy: float) -> float:
    """The first step at which the search's validation accuracy is as high."""
    return next(entry["step"] or 0.0 for entry in read_search(run) if (entry["val_accuracy"] or 0) >= accuracy)


def draw(table: pd.DataFrame, path: Path) -> None:
    """A panel a density: validation error against the step of the search, means of the seeds."""
    n = table.index.get_level_values("seed").nunique()
    heading = f"Jackpots in a trained LeNet-300-100 on MNIST: the search, mean of {n} seeds"
    with canvas(path, heading, height=4.0) as figure:
        panels = figure.subplots(1, len(DENSITIES), sharey=True)
        for axes, density in zip(panels, DENSITIES, strict=True):
            for start, colour in COLOURS.items():
                for restriction, style in STYLES.items():
                    curves = [
                        {entry["step"]: 100 - 100 * (entry["val_accuracy"] or 0) for entry in read_search(Path(run))}
                        for run in table.loc[(density, start, restriction), "run"]
                    ]
                    mean = pd.DataFrame(curves).mean()
                    axes.plot(
                        mean.index,
                        mean,
                        color=colour,
                        linestyle=style,
                        label=f"from {start}, restriction {restriction}",
                    )
            axes.axhline(100 - 100 * table["dense_val"].mean(), color=DENSE, linestyle=(0, (1, 2)), label="dense")
            axes.set_title(f"{percent(density)} % of the weights", fontsize="medium")
            axes.set_xlabel("step of the search")
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(FixedLocator([1, 2, 5, 10, 20, 50, 100]))
            axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.grid(axis="y")
        panels[0].set_ylabel("validation error (%), log scale")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    table = table_of(arguments.runs)
    print(f"dense: {spread(table['dense'].groupby('seed').first())}\n")
    print("| density | mask starts | restriction | test accuracy | step at dense - 0.5 points |\n|---|---|---|---|---|")
    for density in DENSITIES:
        for start in COLOURS:
            for restriction in RESTRICTIONS:
                at = table.loc[(density, start, restriction)]
                cells = f"{spread(at['test'])} | {spread(at['reaches'], '{:.0f}')}"
                print(f"| {percent(density)} % | {start} | {restriction} | {cells} |")
    names = ("magnitude", "snip", "grasp", "random")
    print(f"\n| density | mask starts | restriction | {' | '.join(names)} | chance |\n|{'---|' * (4 + len(names))}")
    for density in DENSITIES:
        for start in COLOURS:
            for restriction in RESTRICTIONS:
                at = table.loc[(density, start, restriction)]
                overlaps = pd.DataFrame(list(at["probe/criteria_iou"])).mean()
                cells = [f"{overlaps[name]:.3f}" for name in names] + [f"{at['probe/criteria_iou_chance'].mean():.3f}"]
                print(f"| {percent(density)} % | {start} | {restriction} | {' | '.join(cells)} |")
    draw(table, arguments.out / "convergence.png")


if __name__ == "__main__":
    main()
