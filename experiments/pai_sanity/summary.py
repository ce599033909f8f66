"""The tables and the figure of experiments/pai_sanity: masks at initialisation, and IMP, against their controls.

    python experiments/pai_sanity/summary.py RUN_FOLDER ... [--out experiments/pai_sanity]

Prints the tables of README.md in Markdown and draws arms.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from matplotlib.ticker import FixedLocator, FormatStrFormatter, NullFormatter

from lottery.analysis.read import frame, read_config
from lottery.analysis.statistics import spread
from lottery.analysis.style import CRITERIA, DENSE, canvas, looks, percent

DENSITIES = (0.1, 0.01)
METHODS = ("SNIP", "GraSP", "SynFlow", "magnitude", "IMP")
ARMS = ("ticket", "shuffle", "reinit", "invert")


def method_of(run: str) -> str:
    config = read_config(Path(run))
    if config["method"]["_target_"].endswith("IMP"):
        return "IMP"
    return CRITERIA[config["criterion"]["_target_"].rpartition(".")[2]]


def table_of(runs: list[Path]) -> pd.DataFrame:
    """Test accuracy (%): a row a method, density and seed; a column an arm, and one for the dense network."""
    rows = frame(runs)
    rows["method"] = rows["run"].map({run: method_of(run) for run in rows["run"].unique()})
    rows["arm"] = rows["control"].fillna("ticket")
    rows["test"] = 100 * rows["test_accuracy"]
    dense = rows[rows["round"] == 0].groupby("seed")["test"].first()
    rows["nominal"] = rows["density"].map(
        lambda density: next((d for d in DENSITIES if abs(density / d - 1) < 0.01), 0.0)
    )
    table = rows[rows["nominal"] > 0].pivot_table("test", ["method", "nominal", "seed"], "arm")
    return table.assign(dense=dense.reindex(table.index.get_level_values("seed")).to_numpy())


def draw(table: pd.DataFrame, path: Path) -> None:
    """A panel a density, a group a method, a marker an arm: mean test errors, bars from the lowest to the highest."""
    n = table.index.get_level_values("seed").nunique()
    with canvas(path, f"LeNet-300-100 on MNIST: masks and controls, mean and range of {n} seeds", height=4.4) as figure:
        panels = figure.subplots(1, len(DENSITIES))
        for axes, density in zip(panels, DENSITIES, strict=True):
            for offset, look in enumerate(looks([None, *ARMS[1:]])):
                for x, method in enumerate(METHODS):
                    errors = 100 - table.loc[(method, density), look.control or "ticket"]
                    mean = errors.mean()
                    axes.errorbar(
                        x + 0.17 * (offset - 1.5), mean, ([mean - errors.min()], [errors.max() - mean]),
                        color=look.colour, marker=look.marker, markersize=5, elinewidth=1, linestyle="none",
                        label=look.words if x == 0 else None,
                    )  # fmt: skip
            error = 100 - table["dense"].mean()
            axes.axhline(error, color=DENSE, linestyle=(0, (5, 3)), linewidth=1.1, label="dense")
            axes.set_xticks(range(len(METHODS)), METHODS, rotation=30, ha="right")
            axes.set_title(f"{percent(density)} % of the weights", fontsize="medium")
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(FixedLocator([1, 2, 3, 5, 10, 20, 50, 100]))
            axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.grid(axis="y")
        panels[0].set_ylabel("test error (%), log scale")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize="small")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    table = table_of(arguments.runs)
    print(f"dense: {spread(table['dense'].groupby('seed').first())}\n")
    print("| density | method | original | shuffle | reinit | invert |\n|---|---|---|---|---|---|")
    for density in DENSITIES:
        for method in METHODS:
            at = table.loc[(method, density)]
            print(f"| {percent(density)} % | {method} | {' | '.join(spread(at[arm]) for arm in ARMS)} |")
    print("\n| density | method | shuffle - original | reinit - original | invert - original | original - dense |")
    print("|---|---|---|---|---|---|")
    for density in DENSITIES:
        for method in METHODS:
            at = table.loc[(method, density)]
            gaps = [at[arm] - at["ticket"] for arm in ARMS[1:]] + [at["ticket"] - at["dense"]]
            print(f"| {percent(density)} % | {method} | {' | '.join(spread(gap, '{:+.2f}') for gap in gaps)} |")
    draw(table, arguments.out / "arms.png")


if __name__ == "__main__":
    main()
