"""Studies that differ in their seeds, as one table and one figure beside their run folders. Torch-free.

The lines are kept in a file, so that a finished sweep answers again without pandas and matplotlib.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lottery import __version__
from lottery.analysis.verdict import MARGIN, Level, network, verdict
from lottery.errors import LotteryError
from lottery.files import Missing, Unreadable, read_bytes, read_text, write_atomic
from lottery.methods.shows import shows
from lottery.printing import Column, table
from lottery.record.names import SEEDS, SEEDS_FOLDER, TABLE

if TYPE_CHECKING:
    import pandas as pd

MOST_ROWS = 40  # of a table on the terminal; a longer one shows the tickets alone
COLUMNS = [Column("round", True), *(Column(title, True) for title in ("network", "density", "n", "test %"))]
COLUMNS += [Column("95 % interval", True), Column("to dense", True), Column("matches", True)]


def over_seeds(runs: Sequence[Path]) -> list[str]:
    """Return the lines on finished studies of one name; [] unless two of them differ in nothing but their seeds.

    runs: their run folders, RUNS/NAME/KEY; RUNS/.seeds/NAME gets seeds.csv, seeds.png and seeds.txt (these lines).
    Raises LotteryError where studies cannot be read or averaged.
    """
    parent, stamp = runs[0].parent, _stamp(runs)
    folder = parent.parent / SEEDS_FOLDER / parent.name
    try:
        *lines, last = read_text(folder / SEEDS["lines"]).splitlines()
        if last == stamp and (folder / SEEDS["table"]).exists() and (folder / SEEDS["figure"]).exists():
            return lines
    except (Unreadable, ValueError):
        pass
    lines = _written(runs, folder)
    if lines:
        write_atomic(folder / SEEDS["lines"], "\n".join([*lines, stamp, ""]).encode())
    return lines


def _stamp(runs: Sequence[Path]) -> str:
    """Return what changes with the studies and their rows."""
    digest = sha256()
    for run in runs:
        try:
            digest.update(run.name.encode() + read_bytes(run / TABLE))
        except Missing:
            digest.update(run.name.encode())
    return f"of lottery {__version__}, studies {digest.hexdigest()}"


def _written(runs: Sequence[Path], folder: Path) -> list[str]:
    """Write the table and the figure, and return the lines; [] where no two studies differ in nothing but seeds."""
    import pandas as pd

    from lottery.figures.density import accuracy
    from lottery.figures.experiments import experiments
    from lottery.record.table import load_runs

    rows = load_runs(runs)
    if rows["test_accuracy"].isna().any() or not all(shows(str(m)).ladder for m in rows["config.method._target_"]):
        return []
    lines, tables, kept = [], [], []
    for each in experiments(rows):
        together = pd.concat([each.dense, each.rows]).drop_duplicates(["run", "round", "control", "copy"])
        if (n := together["run"].nunique()) > 1:
            found = _summary(together)
            words = f" ({each.words})" if each.words else ""
            lines += [f"over {n} seeds{words}", *_lines(found), *_verdict(found), ""]
            tables.append(found.assign(experiment=each.words))
            kept.append(together)
    if not kept:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / SEEDS["table"], pd.concat(tables).to_csv(index=False, float_format="%.10g").encode())
    accuracy(pd.concat(kept), folder / SEEDS["figure"], band="t", vector=False)
    return [*lines, f"{folder / SEEDS['table']}, {folder / SEEDS['figure']}"]


def _summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the statistics of one experiment, a row for each round and control."""
    from lottery.analysis.statistics import BY, matching, summary

    said = matching(rows, MARGIN).rename(columns={"t_low": "difference_low", "t_high": "difference_high"})
    shared = ["difference", "difference_low", "difference_high", "p_holm", "matching", "shown"]
    found = summary(rows).merge(said[[*BY, *shared]], on=list(BY), how="left")
    density = rows.groupby(list(BY), dropna=False)["density"].mean().rename("density")
    return found.merge(density.reset_index(), on=list(BY), how="left")


def _lines(found: pd.DataFrame) -> list[str]:
    rows = found.to_dict("records")
    few = rows if len(rows) <= MOST_ROWS else [row for row in rows if network(row) in ("dense", "ticket")]
    return table(COLUMNS, [_cells(row) for row in few], [""] * len(few), [{}] * len(few))


def _cells(row: dict[str, Any]) -> list[str]:
    interval = f"{100 * row['t_low']:.2f} … {100 * row['t_high']:.2f}" if row["n"] > 1 else ""
    compared = network(row) != "dense"
    return [
        str(row["round"]), network(row), f"{100 * row['density']:.2f}%", str(row["n"]), f"{100 * row['mean']:.2f}",
        interval, f"{100 * row['difference']:+.2f}" if compared else "",
        ("yes" if row["matching"] else "no") if compared else "",
    ]  # fmt: skip


def _verdict(found: pd.DataFrame) -> list[str]:
    levels = [
        Level(
            row["control"] if isinstance(row["control"], str) else None,
            row["density"], row["difference"], row["n"], row["difference_low"], row["difference_high"],
        )
        for row in found.to_dict("records") if network(row) != "dense"
    ]  # fmt: skip
    return [text] if (text := verdict(levels)) else []


def seed_lines(runs: Sequence[Path]) -> list[str]:
    """Return `over_seeds` of the studies of each name, or one line that says why there is no table."""
    lines: list[str] = []
    for folder in dict.fromkeys(run.parent for run in runs):
        here = [run for run in runs if run.parent == folder]
        try:
            lines += over_seeds(here) if len(here) > 1 else []
        except LotteryError as error:
            lines.append(f"no table over seeds of {folder}: {error}")
    return lines
