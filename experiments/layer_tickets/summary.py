"""The table and the figure of experiments/layer_tickets: accuracy against the number of removed blocks.

    python experiments/layer_tickets/summary.py RUN_FOLDER ... [--out experiments/layer_tickets]

Prints the tables of README.md in Markdown and draws accuracy.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from lottery.analysis.read import frame, read_config
from lottery.analysis.statistics import spread
from lottery.analysis.style import DENSE, canvas

LOOKS = {  # criterion: what it is called, colour and marker
    "snip": ("SNIP", "#0072B2", "o"),
    "snip_signed": ("SNIP, signed", "#56B4E9", "s"),
    "grasp": ("GraSP (Hessian)", "#D55E00", "D"),
    "random": ("random", "#999999", "X"),
    "kl": ("KL, after training", "#009E73", "^"),
}


def table_of(runs: list[Path]) -> pd.DataFrame:
    """Test accuracy (%), and its difference from the dense network of the same seed, by criterion, count and seed."""
    rows = frame(runs)
    rows = rows[rows["control"].isna()]
    names = {run: read_config(Path(run))["method"]["criterion"]["_target_"].rpartition(".")[2] for run in rows["run"]}
    rows["criterion"] = rows["run"].map(names)
    rows["removed"] = rows["removed_units"].map(len)
    rows["test"] = 100 * rows["test_accuracy"]
    dense = rows[rows["round"] == 0].groupby("seed")["test"].first()
    rows["gain"] = rows["test"] - rows["seed"].map(dense)
    return rows.set_index(["criterion", "removed", "seed"])[["test", "gain", "removed_units"]].sort_index()


def draw(table: pd.DataFrame, path: Path) -> None:
    """Accuracy less the dense network's against the number of removed blocks: the mean, bars from lowest to highest."""
    n = table.index.get_level_values("seed").nunique()
    counts = sorted({count for count in table.index.get_level_values("removed") if count})
    with canvas(path, f"ResNet-20 on CIFAR-10: removed blocks and accuracy, mean and range of {n} seeds") as figure:
        axes = figure.subplots()
        for shift, (criterion, (label, colour, marker)) in enumerate(LOOKS.items()):
            means, lows, highs = [], [], []
            for count in counts:
                gains = table.loc[(criterion, count), "gain"]
                means.append(gains.mean())
                lows.append(gains.mean() - gains.min())
                highs.append(gains.max() - gains.mean())
            places = [count + 0.06 * (shift - 2) for count in counts]
            axes.errorbar(places, means, (lows, highs), color=colour, marker=marker, elinewidth=1, label=label)
        axes.axhline(0, color=DENSE, linestyle=(0, (5, 3)), linewidth=1.1, label="dense")
        axes.set_xticks(counts)
        axes.set_xlabel("removed blocks, of 7 that can be")
        axes.set_ylabel("test accuracy less dense (points)")
        axes.grid(axis="y")
        figure.legend(loc="outside lower center", ncols=3, fontsize="small")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    table = table_of(arguments.runs)
    counts = sorted({count for count in table.index.get_level_values("removed") if count})
    dense = table.xs(0, level="removed")["test"].groupby("seed").first()
    print(f"dense: {spread(dense, '{:.2f}')}\n")
    print("| criterion | " + " | ".join(f"{count} removed" for count in counts) + " |")
    print("|---" * (len(counts) + 1) + "|")
    for criterion, (label, _, _) in LOOKS.items():
        print(
            f"| {label} | "
            + " | ".join(spread(table.loc[(criterion, count), "gain"], "{:+.2f}") for count in counts)
            + " |"
        )
    print(f"\nwhich {counts[-1]} leave, seed by seed:")
    for criterion, (label, _, _) in LOOKS.items():
        firsts = table.loc[(criterion, counts[-1]), "removed_units"]
        print(f"- {label}: " + "; ".join(", ".join(units) for units in firsts))
    draw(table, arguments.out / "accuracy.png")


if __name__ == "__main__":
    main()
