"""The command `python -m lottery status`: a table of studies, from run folders and the scheduler. Torch-free."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from textwrap import shorten

from lottery.arguments import CommandParser
from lottery.errors import ConfigError
from lottery.launch.record import Sweep, all_sweeps, find_sweep
from lottery.launch.studies import STATES, StudyStatus, all_studies, look, newness, studies_of
from lottery.printing import Column, age_text, colored, count_text, flowing, table, terminal_width
from lottery.record.status import duration

ABOUT = """\
What has become of your studies.

With the name of a sweep (a folder of <runs>/.sweeps), or `latest`: its studies, in the order in which they were
submitted. Without: every run folder, newest first, and a line for each sweep.

  queued       waits for the scheduler, for the first time or again
  starting     its job runs, but it has not begun yet, or not yet continued
  running      with round, step, and an estimate of the time left for the whole study
  waiting      another study computes what it needs next
  interrupted  by a signal, with its state saved; the same command continues it
  failed       with the cause; the traceback is in its study.log
  killed       it says that it runs, but its process or its job is gone; the same command continues it
  cancelled    by scancel
  gone         it never began, and SLURM or the local launcher knows it no more: cancelled in the queue, most likely
  done

density and test (accuracy, in percent) are those of the latest finished round.
The exit status is 0 whatever the studies have come to; scripts read --json."""

COLORS = {
    "failed": "red", "killed": "red", "gone": "yellow", "cancelled": "yellow", "interrupted": "yellow",
    "running": "green", "waiting": "cyan", "starting": "cyan", "unknown": "dim",
}  # fmt: skip
COLUMNS = [
    Column("study"), Column("state"), Column("round"), Column("step", right=True, rank=5),
    Column("trained", right=True, rank=3), Column("left", right=True), Column("density", right=True, rank=4),
    Column("test", right=True), Column("job", rank=2), Column("seen", right=True, rank=1),
]  # fmt: skip


def status(args: list[str]) -> int:
    """Run `status ARGS`. Raises ConfigError for a sweep or a folder that does not exist."""
    parser = CommandParser("status", ABOUT)
    parser.add_argument("sweep", nargs="?", metavar="SWEEP", help="its name, or latest; default: everything")
    parser.add_argument("--runs", metavar="DIR", default="runs", help="paths.runs of the studies (default: runs)")
    parser.add_argument("--json", action="store_true", help="for scripts: everything that is known, as JSON")
    asked = parser.parse_args(args)
    runs = Path(asked.runs)
    if not runs.is_dir():
        raise ConfigError(f"status: no folder {runs}; --runs DIR names the folder that paths.runs was")
    found, problems = ([find_sweep(runs, asked.sweep)], []) if asked.sweep else all_sweeps(runs)
    sweeps = [(sweep, studies_of(sweep, runs)) for sweep in found]
    studies = sweeps[0][1] if asked.sweep else all_studies(runs)
    if silent := look([*studies, *chain.from_iterable(its for _, its in sweeps)]):
        problems.append(f"{silent}; shown is what the run folders say")
    if not asked.sweep:
        studies.sort(key=newness, reverse=True)
    if asked.json:
        print(json.dumps(as_json(sweeps, studies, problems), indent=1))
        return 0
    lines = sweep_lines(*sweeps[0]) if asked.sweep else overview(sweeps, studies, runs)
    print("\n".join([*(colored(f"lottery: {problem}", "yellow") for problem in problems), *lines]))
    return 0


def as_json(
    sweeps: Sequence[tuple[Sweep, Sequence[StudyStatus]]], studies: Sequence[StudyStatus], problems: list[str]
) -> dict[str, object]:
    """Return sweeps, studies and problems as a dictionary for scripts; the keys are stable."""
    return {
        "sweeps": [
            {"name": sweep.name, "executor": sweep.executor, "command": sweep.command, "states": counted(its)}
            for sweep, its in sweeps
        ],
        "studies": [study.as_json() for study in studies],
        "problems": problems,
    }


# -- what a person sees ------------------------------------------------------------------------------------------------


def sweep_lines(sweep: Sweep, studies: Sequence[StudyStatus]) -> list[str]:
    """Return the lines on one sweep: the counts by state, its command, and a table of its studies."""
    command = shorten(" ".join(sweep.command), terminal_width() or 10**6, placeholder=" ...")
    head = [*summary(title(sweep), studies), *([colored(command, "dim")] if command else [])]
    return [*head, "", *study_table(studies)]


def overview(
    sweeps: Sequence[tuple[Sweep, Sequence[StudyStatus]]], studies: Sequence[StudyStatus], runs: Path
) -> list[str]:
    """Return a table of all run folders, and lines with the counts by state of each sweep."""
    if not studies and not sweeps:
        return [f"no studies in {runs}"]
    lines = [*study_table(studies), "", *summary(str(runs), studies)]
    return [*lines, *(line for sweep, its in sweeps for line in summary(title(sweep), its))]


def title(sweep: Sweep) -> str:
    return f"{sweep.name}  {sweep.executor}"


def summary(name: str, studies: Sequence[StudyStatus]) -> list[str]:
    """Return counts by state as lines, such as `runs  3 studies: 1 failed, 2 done`."""
    states = [(f"{count} {state}", COLORS.get(state, "")) for state, count in counted(studies).items()]
    return flowing(f"{name}  {count_text(len(studies), 'study', 'studies')}:", states or [("none", "")])


def counted(studies: Sequence[StudyStatus]) -> dict[str, int]:
    """Return the number of studies in each state that occurs, in the order of STATES."""
    found = Counter(study.state for study in studies)
    return {state: found[state] for state in STATES if found[state]}


def study_table(studies: Sequence[StudyStatus]) -> list[str]:
    if not studies:
        return []
    marks = [{1: COLORS.get(study.state, "")} for study in studies]
    return table(COLUMNS, [cells(study) for study in studies], [note(study) for study in studies], marks)


def cells(study: StudyStatus) -> list[str]:
    """Return a study's cells under COLUMNS; "" where unknown. The present round is preferred to the last finished."""
    recorded, row = study.recorded, study.row
    place, step, trained, left, seen = str(row.get("round", "")), "", "", "", ""
    if recorded is not None:
        place = f"{recorded.round} {recorded.control} {recorded.copy}" if recorded.control else str(recorded.round)
        step = f"{recorded.step:,}/{recorded.steps:,}" if recorded.steps else ""
        trained = f"{recorded.trainings_done}/{recorded.trainings}".removesuffix("/0")
        if study.state == "running" and recorded.seconds_left is not None:
            left = duration(recorded.seconds_left)
        seen = f"{age_text(time.time() - recorded.updated)} ago"
    density, test = row.get("density"), row.get("test_accuracy")
    percents = ["" if density is None else f"{100 * density:.2f}%", "" if test is None else f"{100 * test:.2f}"]
    return [study.label, study.state, place, step, trained, left, *percents, study.job, seen]


def note(study: StudyStatus) -> str:
    """Return the text beside the columns."""
    parts = [study.detail.removeprefix("interrupted ").removeprefix("waiting ")]
    if study.restarts and study.state != "done":
        parts.append("requeued" + {1: "", 2: " twice"}.get(study.restarts, f" {study.restarts} times"))
    if study.state == "failed" and study.recorded is None and study.planned is not None and study.planned.log:
        parts.append(f"see {study.planned.log}")
    return "; ".join(part for part in parts if part)
