"""The table and the figure of experiments/bip: BiP against IMP, one-shot magnitude, SNIP and random masks.

    python experiments/bip/summary.py RUN_FOLDER ... [--out experiments/bip]

Prints the tables of README.md in Markdown and draws cost.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from matplotlib.ticker import FixedLocator, FormatStrFormatter, NullFormatter

from lottery.analysis.read import frame, read_config
from lottery.analysis.statistics import spread
from lottery.analysis.style import DENSE, canvas, percent

DENSITIES = (0.1, 0.0215443, 0.01)
LOOKS = {  # method: colour and marker
    "BiP": ("#0072B2", "o"),
    "BiP, released update": ("#56B4E9", "s"),
    "mask fixed, scaled magnitude": ("#CC79A7", "P"),
    "mask fixed, magnitude": ("#882255", "p"),
    "IMP": ("#D55E00", "D"),
    "one-shot magnitude": ("#E69F00", "v"),
    "SNIP": ("#009E73", "^"),
    "random (ERK)": ("#999999", "X"),
}


def method_of(run: str) -> str:
    method = read_config(Path(run))["method"]
    kind = method["_target_"].rpartition(".")[2]
    if kind == "BiP":
        if method["scores"]["lr"] == 0:
            return {"scaled": "mask fixed, scaled magnitude", "magnitude": "mask fixed, magnitude"}[method["initial"]]
        return "BiP" if method["variant"] == "paper" else "BiP, released update"
    if kind == "IMP":
        return "one-shot magnitude" if method["one_shot"] else "IMP"
    return {"PruningAtInit": "SNIP", "RandomPruning": "random (ERK)"}[kind]


def table_of(runs: list[Path]) -> pd.DataFrame:
    """Test accuracy (%) and batches: a row a method, density and seed.

    Batches are those of all trainings and searches that lead to a round, the dense one included where it is used.
    """
    rows = frame(runs)
    rows["method"] = rows["run"].map({run: method_of(run) for run in rows["run"].unique()})
    rows["test"] = 100 * rows["test_accuracy"]
    dense = rows[rows["round"] == 0].groupby("seed")["test"].first()
    steps = rows[rows["round"] == 0].groupby("seed")["steps"].first()
    rows["nominal"] = rows["density"].map(
        lambda density: next((d for d in DENSITIES if abs(density / d - 1) < 0.01), 0.0)
    )
    found = rows[rows["nominal"] > 0].copy()
    trainings = {"IMP": lambda row: row["round"] + 1, "one-shot magnitude": lambda row: 2}
    spent = found["search_batches"].fillna(0)
    found["batches"] = [
        trainings.get(row["method"], lambda row: 1)(row) * steps[row["seed"]] for _, row in found.iterrows()
    ] + spent.where(~found["method"].str.startswith("mask fixed"), spent / 2)  # whose second batch moves nothing
    table = found.set_index(["method", "nominal", "seed"])[["test", "batches"]].sort_index()
    return table.assign(dense=dense.reindex(table.index.get_level_values("seed")).to_numpy())


def draw(table: pd.DataFrame, path: Path) -> None:
    """A panel a density: mean test error against the batches spent, bars from the lowest to the highest seed."""
    n = table.index.get_level_values("seed").nunique()
    heading = f"LeNet-300-100 on MNIST: cost and accuracy, mean and range of {n} seeds"
    with canvas(path, heading, height=4.0) as figure:
        panels = figure.subplots(1, len(DENSITIES), sharey=True)
        for axes, density in zip(panels, DENSITIES, strict=True):
            for method, (colour, marker) in LOOKS.items():
                at = table.loc[(method, density)]
                errors = 100 - at["test"]
                mean = errors.mean()
                axes.errorbar(
                    at["batches"].iloc[0] / 1000, mean, ([mean - errors.min()], [errors.max() - mean]), color=colour,
                    marker=marker, markersize=6, elinewidth=1, linestyle="none", label=method,
                )  # fmt: skip
            axes.axhline(100 - table["dense"].mean(), color=DENSE, linestyle=(0, (5, 3)), linewidth=1.1, label="dense")
            axes.set_title(f"{percent(density)} % of the weights", fontsize="medium")
            axes.set_xlabel("thousand batches")
            axes.set_xlim(0, None)
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(FixedLocator([1, 2, 3, 5, 10, 20, 50]))
            axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.grid(axis="y")
        panels[0].set_ylabel("test error (%), log scale")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    table = table_of(arguments.runs)
    print(f"dense: {spread(table['dense'].groupby('seed').first())}\n")
    print("| method | batches at 10 % | 10 % | batches at 2.15 % | 2.15 % | batches at 1 % | 1 % |")
    print("|---|---|---|---|---|---|---|")
    for method in LOOKS:
        cells = []
        for density in DENSITIES:
            at = table.loc[(method, density)]
            cells += [f"{at['batches'].iloc[0]:,.0f}", spread(at["test"])]
        print(f"| {method} | {' | '.join(cells)} |")
    print("\n| BiP less | 10 % | 2.15 % | 1 % |\n|---|---|---|---|")
    for method in list(LOOKS)[1:]:
        gaps = [table.loc[("BiP", d), "test"] - table.loc[(method, d), "test"] for d in DENSITIES]
        print(f"| {method} | {' | '.join(spread(gap, '{:+.2f}') for gap in gaps)} |")
    draw(table, arguments.out / "cost.png")


if __name__ == "__main__":
    main()
