"""The tables of experiments/stability: distances and barriers of LeNet/MNIST tickets, over seeds.

    python experiments/stability/summary.py RUN_FOLDER ...

Prints the tables of README.md in Markdown.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from lottery.analysis.read import frame, read_config
from lottery.analysis.statistics import spread

PUBLISHED = {  # Frankle et al. 2019 (Stabilizing the LTH), Figs. 3 and 10: LeNet at 10.7 %, k = 0: IMP, random
    "l2_order": (20.7, 58.6),
    "l2_pruning": (48.1, 75.7),
    "angle_order": (22.7, 49.2),
    "angle_pruning": (53.1, 83.6),
}
WORDS = {
    "l2_order": "data order, L2",
    "l2_pruning": "pruning, L2",
    "angle_order": "data order, angle (°)",
    "angle_pruning": "pruning, angle (°)",
}


def arm(row: pd.Series, rewound: bool) -> str:
    """What a row is: "dense k=0", "ticket k=1000", "random k=0"."""
    kind = row["control"] or "ticket" if isinstance(row["control"], str) else "ticket"
    if row["density"] == 1:
        kind = "dense"
    return f"{kind} k={row['step_rewind'] if rewound else 0}"


def table_of(runs: list[Path]) -> pd.DataFrame:
    """The rows that have copies, each with what it is."""
    rows = frame(runs)
    rewound = {run: read_config(Path(run))["rewind"]["to"] != "init" for run in rows["run"].unique()}
    rows = rows[rows["probe/l2_order"].notna()].copy()
    rows["arm"] = [arm(row, rewound[row["run"]]) for _, row in rows.iterrows()]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    rows = table_of(parser.parse_args().runs)
    by_arm = {name: found.set_index("seed").sort_index() for name, found in rows.groupby("arm")}
    ticket, random = by_arm["ticket k=0"], by_arm["random k=0"]
    print("| | published IMP / random | published ratio | IMP | random | ratio |\n|---|---|---|---|---|---|")
    for name, (imp, other) in PUBLISHED.items():
        ours, theirs = ticket[f"probe/{name}"], random[f"probe/{name}"]
        print(
            f"| {WORDS[name]} | {imp} / {other} | {other / imp:.2f} | {spread(ours, '{:.1f}')} "
            f"| {spread(theirs, '{:.1f}')} | {spread(theirs / ours)} |"
        )
    print("\n| | density | barrier, test error (points) | test accuracy (%) | n |\n|---|---|---|---|---|")
    for name, found in by_arm.items():
        barrier, accuracy = 100 * found["probe/lmc_error_test"], 100 * found["test_accuracy"]
        density = f"{100 * found['density'].iloc[0]:.1f} %"
        print(f"| {name} | {density} | {spread(barrier)} | {spread(accuracy)} | {len(found)} |")


if __name__ == "__main__":
    main()
