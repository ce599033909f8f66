"""The LeNet/MNIST table of experiments/lth: tickets against dense, reinit and random mask, paired by seed.

    python experiments/lth/summary.py RUN_FOLDER ... [--out experiments/lth]

Prints the two tables of README.md in Markdown and draws accuracy.png and early_stop.png over the seeds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from lottery.analysis.figures import draw_seeds
from lottery.analysis.read import frame

ROUNDS = {7: "21.1 %", 9: "13.5 %", 15: "3.6 %"}

# Frankle & Carbin 2019, and an independent replication with x/255 inputs (5 seeds, not peer-reviewed); see README.md
PUBLISHED = {
    (7, "stop / dense"): ("0.62", "0.79"),
    (7, "stop / reinit"): ("0.40", "0.52"),
    (7, "test - dense"): ("", ""),
    (7, "test - reinit"): ("+0.5", "+0.39"),
    (9, "test - dense"): ("> +0.3", "+0.21"),
    (15, "test - dense"): ("about 0", "+0.11"),
    (15, "test - reinit"): ("", "about +1"),
}


def wide(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a seed and round: the ticket's figures, its controls' (mean over copies) and the dense network's."""
    rows = rows.assign(kind=rows["control"].fillna("ticket"))
    keys = ["early_stop_step", "early_stop_test_accuracy", "test_accuracy"]
    table = rows.groupby(["seed", "round", "kind"])[keys].mean().unstack("kind")
    dense = table.xs(0, level="round").xs("ticket", axis=1, level="kind")
    for key in keys:
        table[(key, "dense")] = dense[key].reindex(table.index.get_level_values("seed")).to_numpy()
    return table


def comparisons(table: pd.DataFrame) -> dict[tuple[int, str], pd.Series]:
    """For each round of ROUNDS: ratios of early-stop steps, and differences of the test accuracy there (points)."""
    found: dict[tuple[int, str], pd.Series] = {}
    for k in ROUNDS:
        at = table.xs(k, level="round")
        steps, accuracy = at["early_stop_step"], 100 * at["early_stop_test_accuracy"]
        final = 100 * at["test_accuracy"]
        for other in ("dense", "reinit", "random"):
            found[k, f"stop / {other}"] = steps["ticket"] / steps[other]
            found[k, f"test - {other}"] = accuracy["ticket"] - accuracy[other]
            found[k, f"final test - {other}"] = final["ticket"] - final[other]
    return found


def shown(values: pd.Series, ratio: bool) -> str:
    """Median and range over the seeds."""
    form = "{:.2f}" if ratio else "{:+.2f}"
    low, median, high = (form.format(v) for v in (values.min(), values.median(), values.max()))
    return f"{median} ({low} … {high})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    rows = frame(arguments.runs)
    table = wide(rows)
    seeds = table.index.get_level_values("seed").nunique()
    print(f"| density | ticket against | published | replication, n = 5 | here, n = {seeds}: median (min … max) |")
    print("|---|---|---|---|---|")
    for (k, what), values in comparisons(table).items():
        published, replication = PUBLISHED.get((k, what), ("", ""))
        print(f"| {ROUNDS[k]} | {what} | {published} | {replication} | {shown(values, '/' in what)} |")
    print(
        f"\n| round | density | ticket | reinit | random | ticket stops | reinit stops | random stops |\n{'|---' * 8}|"
    )
    density = rows.groupby("round")["density_weights"].first()
    for k, mean in table.groupby(level="round").mean().iterrows():
        accuracy = [f"{100 * mean['early_stop_test_accuracy', kind]:.2f}" for kind in ("ticket", "reinit", "random")]
        steps = [f"{mean['early_stop_step', kind]:,.0f}" for kind in ("ticket", "reinit", "random")]
        cells = [str(k), f"{100 * density[k]:.2f} %", *accuracy, *steps]
        print("| " + " | ".join("-" if cell == "nan" else cell for cell in cells) + " |")
    columns = ["seed", "round", "control", "copy", "density_weights", "kept", "train_accuracy", "val_accuracy"]
    columns += ["test_accuracy", "early_stop_step", "early_stop_test_accuracy", "mask_digest", "weights_digest"]
    rows[columns].to_csv(arguments.out / "rounds.csv", index=False, float_format="%.6g")
    for path in draw_seeds(arguments.runs, arguments.out):
        print(path)


if __name__ == "__main__":
    main()
