"""The tables and the figures of experiments/random_pruning: random masks against dense networks over widths.

    python experiments/random_pruning/summary.py RUN_FOLDER ... [--out experiments/random_pruning]

Prints the tables of README.md in Markdown and draws widths.png and quality.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FormatStrFormatter, NullLocator

from lottery.analysis.read import frame, read_config
from lottery.analysis.statistics import spread
from lottery.analysis.style import DENSE, canvas, percent

ALLOCATIONS = {
    "erk": ("ERK", "#0072B2", "o"),
    "uniform": ("uniform", "#D55E00", "s"),
    "snip": ("SNIP-ratio", "#009E73", "^"),
}
FIGURES = {  # column of the table: heading, factor, digits
    "probe/nll": ("NLL (nats)", 1, 3),
    "probe/ece": ("ECE (%)", 100, 2),
    "probe/ood_auc_mnist": ("OOD ROC-AUC, MNIST (%)", 100, 1),
    "probe/accuracy_fgsm": ("FGSM accuracy (%)", 100, 1),
    "probe/accuracy_corrupted": ("corrupted accuracy (%)", 100, 1),
    "probe/gradient_norm_start": ("gradient norm at init", 1, 3),
}


def facts(run: str) -> dict[str, Any]:
    """What a study varied: width, allocation, target density."""
    config = read_config(Path(run))
    allocation = config["method"]["allocation"]
    criterion = (allocation.get("criterion") or {}).get("_target_", "").rpartition(".")[2]
    return {
        "hidden": "-".join(map(str, config["model"]["hidden"])),
        "allocation": criterion or allocation["_target_"].rpartition(".")[2],
        "target": config["method"]["density"],
    }


def table_of(runs: list[Path]) -> pd.DataFrame:
    """A row a study: width, weights, allocation, density, seed, its figures, and the dense network's as `dense …`."""
    rows = frame(runs)
    known = {run: facts(run) for run in rows["run"].unique()}
    rows = rows.join(pd.DataFrame([known[run] for run in rows["run"]]))
    rows["test"] = 100 * rows["test_accuracy"]
    measured = ["test", *(name for name in FIGURES if name in rows)]
    dense = rows[rows["round"] == 0].set_index("run")[measured].add_prefix("dense ")
    return rows[rows["round"] == 1].join(dense, on="run").sort_values(["prunable", "target", "seed"])


def draw_widths(table: pd.DataFrame, path: Path) -> None:
    """A panel a density: test error against width, means and ranges over the seeds."""
    n, targets = table["seed"].nunique(), sorted(table["target"].unique(), reverse=True)
    heading = f"Random MLPs on Fashion-MNIST by width, mean and range of {n} seeds"
    with canvas(path, heading) as figure:
        panels = figure.subplots(1, len(targets), sharey=True)
        for axes, target in zip(panels, targets, strict=True):
            at = table[table["target"] == target]
            lines = [("dense test", at[at["allocation"] == "erk"], ("dense", DENSE, "x"))]
            lines += [("test", at[at["allocation"] == name], look) for name, look in ALLOCATIONS.items()]
            for column, chosen, (words, colour, marker) in lines:
                values = (100 - chosen.set_index("prunable")[column]).groupby("prunable")
                axes.plot(values.mean(), color=colour, marker=marker, markersize=5, label=words)
                axes.fill_between(values.min().index, values.min(), values.max(), color=colour, alpha=0.15, linewidth=0)
            width_axis(axes, table)
            axes.set_title(f"{percent(target)} % of the weights", fontsize="medium")
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(FixedLocator([12, 15, 20, 30, 50, 80]))
            axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
            axes.yaxis.set_minor_locator(NullLocator())
        panels[0].set_ylabel("test error (%), log scale")
        panels[0].legend(loc="upper right", fontsize="small")


def draw_quality(table: pd.DataFrame, path: Path) -> None:
    """Calibration, out-of-distribution detection and robustness of ERK masks against width, beside dense networks."""
    chosen, targets = table[table["allocation"] == "erk"], sorted(table["target"].unique(), reverse=True)
    shown = [name for name in ("probe/ece", "probe/ood_auc_mnist", "probe/accuracy_fgsm", "probe/accuracy_corrupted")]
    heading = f"Random MLPs (ERK) on Fashion-MNIST, mean and range of {table['seed'].nunique()} seeds"
    with canvas(path, heading, height=6.0) as figure:
        for axes, name in zip(figure.subplots(2, 2).flat, shown, strict=True):
            label, factor, _ = FIGURES[name]
            lines = [("dense", f"dense {name}", chosen, DENSE, "x")]
            colours = ("#0072B2", "#56B4E9", "#CC79A7")
            lines += [
                (f"{percent(target)} %", name, chosen[chosen["target"] == target], colour, marker)
                for target, colour, marker in zip(targets, colours, "osD", strict=False)
            ]
            for words, column, rows, colour, marker in lines:
                values = (factor * rows.set_index("prunable")[column]).groupby("prunable")
                axes.plot(values.mean(), color=colour, marker=marker, markersize=5, label=words)
                axes.fill_between(values.min().index, values.min(), values.max(), color=colour, alpha=0.15, linewidth=0)
            width_axis(axes, table)
            axes.set_ylabel(label)
        figure.axes[0].legend(fontsize="small")


def width_axis(axes: Axes, table: pd.DataFrame) -> None:
    """Log scale in the weights of the dense network, labelled by the width of the first hidden layer."""
    widths = table.groupby("prunable")["hidden"].first()
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(widths.index)))
    axes.set_xticklabels([hidden.partition("-")[0] for hidden in widths])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("width of the first layer")
    axes.grid(axis="y")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    table = table_of(arguments.runs)
    names = [name for name in ALLOCATIONS if name in set(table["allocation"])]
    print(f"| hidden | weights | density | dense | {' | '.join(ALLOCATIONS[name][0] for name in names)} |")
    print("|---" * (4 + len(names)) + "|")
    for (weights, hidden, target), at in table.groupby(["prunable", "hidden", "target"]):
        cells = [spread(at[at["allocation"] == name]["test"]) for name in names]
        dense = spread(at[at["allocation"] == "erk"]["dense test"])
        print(f"| {hidden} | {weights:,} | {percent(target)} % | {dense} | {' | '.join(cells)} |")
    draw_widths(table, arguments.out / "widths.png")
    figures = [name for name in FIGURES if name in table]
    if not figures:
        return
    print(
        f"\n| hidden | density | {' | '.join(FIGURES[name][0] for name in figures)} |\n{'|---' * (2 + len(figures))}|"
    )
    erk = table[table["allocation"] == "erk"]
    for (_, hidden), width in erk.groupby(["prunable", "hidden"]):
        for words, prefix, at in [("dense", "dense ", width)] + [
            (f"{percent(target)} %", "", rows) for target, rows in width.groupby("target")
        ]:
            means = (FIGURES[name][1] * at[prefix + name].mean() for name in figures)
            cells = (f"{mean:.{FIGURES[name][2]}f}" for mean, name in zip(means, figures, strict=True))
            print(f"| {hidden} | {words} | {' | '.join(cells)} |")
    draw_quality(table, arguments.out / "quality.png")


if __name__ == "__main__":
    main()
