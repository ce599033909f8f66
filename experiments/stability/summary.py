"""The tables of experiments/stability: distances and barriers of LeNet/MNIST tickets, over seeds.

    python experiments/stability/summary.py RUN_FOLDER ...

Prints the tables of README.md in Markdown. (`python -m lottery paper stabilizing` measures the same at another scale.)
"""

from __future__ import annotations

import sys

from lottery.analysis.statistics import spread
from lottery.record.table import load_runs

PUBLISHED = {  # Frankle et al. 2019 (Stabilizing the LTH), Figs. 3 and 10: LeNet at 10.7 %, k = 0: IMP, random
    "l2_order": ("data order, L2", 20.7, 58.6),
    "l2_pruning": ("pruning, L2", 48.1, 75.7),
    "angle_order": ("data order, angle (°)", 22.7, 49.2),
    "angle_pruning": ("pruning, angle (°)", 53.1, 83.6),
}


def main() -> None:
    rows = load_runs(sys.argv[1:])
    rows = rows[rows["probe/l2_order"].notna()]  # those with copies
    kind = rows["control"].fillna("ticket").mask(rows["density"] == 1, "dense")
    start = rows["step_rewind"].where(rows["config.rewind.to"] != "init", 0)
    by_arm = {
        arm: found.set_index("seed").sort_index()
        for arm, found in rows.groupby(kind + " k=" + start.astype(int).map(str))
    }
    ticket, random = by_arm["ticket k=0"], by_arm["random k=0"]
    print("| | published IMP / random | published ratio | IMP | random | ratio |\n|---|---|---|---|---|---|")
    for name, (words, imp, other) in PUBLISHED.items():
        ours, theirs = ticket[f"probe/{name}"], random[f"probe/{name}"]
        cells = f"{spread(ours, '{:.1f}')} | {spread(theirs, '{:.1f}')} | {spread(theirs / ours)}"
        print(f"| {words} | {imp} / {other} | {other / imp:.2f} | {cells} |")
    print("\n| | density | barrier, test error (points) | test accuracy (%) | n |\n|---|---|---|---|---|")
    for arm, found in by_arm.items():
        barrier, accuracy = 100 * found["probe/lmc_error_test"], 100 * found["test_accuracy"]
        density = f"{100 * found['density'].iloc[0]:.1f} %"
        print(f"| {arm} | {density} | {spread(barrier)} | {spread(accuracy)} | {len(found)} |")


if __name__ == "__main__":
    main()
