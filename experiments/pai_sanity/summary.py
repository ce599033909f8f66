"""The tables and the figure of experiments/pai_sanity: masks at initialisation, and IMP, against their controls.

    python experiments/pai_sanity/summary.py RUN_FOLDER ... [--out experiments/pai_sanity]

Prints the tables of README.md in Markdown and draws arms.png, since these runs are no paper's sweep.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from matplotlib.ticker import FixedLocator, NullFormatter

from lottery.analysis.claims import named
from lottery.analysis.statistics import spread
from lottery.figures.style import DENSE, canvas, looks, percent
from lottery.record.table import load_runs

DENSITIES = (0.1, 0.01)
METHODS = ("SNIP", "GraSP", "SynFlow", "magnitude", "IMP")
ARMS = ("ticket", "shuffle", "reinit", "invert")


def table_of(runs: list[Path]) -> pd.DataFrame:
    """Test accuracy (%): a row a method, density and seed; a column an arm, and one for the dense network."""
    rows = named(load_runs(runs))
    rows = rows.assign(
        method=rows["method"].str.extract(r"(\w+)", expand=False),  # of "SNIP at init", "IMP, reset to init"
        arm=rows["control"].fillna("ticket"),
        test=100 * rows["test_accuracy"],
        nominal=sum(density * ((rows["density"] / density - 1).abs() < 0.01) for density in DENSITIES),
    )
    dense = rows[rows["round"] == 0].groupby("seed")["test"].first().rename("dense")
    table = rows[rows["nominal"] > 0].pivot_table("test", ["method", "nominal", "seed"], "arm")
    return table.join(dense, on="seed")


def draw(table: pd.DataFrame, path: Path) -> None:
    """A panel a density, a group a method, a marker an arm: mean test errors, bars from the lowest to the highest."""
    n = table.index.get_level_values("seed").nunique()
    with canvas(path, f"LeNet-300-100 on MNIST: masks and controls, mean and range of {n} seeds", height=4.4) as figure:
        panels = figure.subplots(1, len(DENSITIES))
        for axes, density in zip(panels, DENSITIES, strict=True):
            found = (
                (100 - table.xs(density, level="nominal")).groupby("method").agg(["mean", "min", "max"]).loc[[*METHODS]]
            )
            for offset, look in enumerate(looks([None, *ARMS[1:]])):
                error = found[look.control or "ticket"]
                bars = (error["mean"] - error["min"], error["max"] - error["mean"])
                places = [x + 0.17 * (offset - 1.5) for x in range(len(METHODS))]
                axes.errorbar(
                    places, error["mean"], bars, color=look.colour, marker=look.marker, markersize=5, elinewidth=1,
                    linestyle="none", label=look.words,
                )  # fmt: skip
            axes.axhline(100 - table["dense"].mean(), color=DENSE, linestyle=(0, (5, 3)), linewidth=1.1, label="dense")
            axes.set_title(f"{percent(density)} % of the weights", fontsize="medium")
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(FixedLocator([1, 2, 3, 5, 10, 20, 50, 100]))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.set_xticks(range(len(METHODS)), METHODS, rotation=30, ha="right")
            axes.grid(axis="y")
        panels[0].set_ylabel("test error (%), log scale")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize="small")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    table = table_of(arguments.runs)
    print(f"dense: {spread(table['dense'].groupby('seed').first())}")
    gaps = table[[*ARMS[1:]]].sub(table["ticket"], axis=0).assign(dense=table["ticket"] - table["dense"])
    heads = [f"{arm} - original" for arm in ARMS[1:]] + ["original - dense"]
    for columns, form, titles in ((table[[*ARMS]], "{:.2f}", ["original", *ARMS[1:]]), (gaps, "{:+.2f}", heads)):
        print(f"\n| density | method | {' | '.join(titles)} |\n|{'---|' * (2 + len(titles))}")
        for density in DENSITIES:
            for method in METHODS:
                cells = [spread(values, form) for _, values in columns.loc[(method, density)].items()]
                print(f"| {percent(density)} % | {method} | {' | '.join(cells)} |")
    draw(table, arguments.out / "arms.png")


if __name__ == "__main__":
    main()
