"""`python -m lottery status [SWEEP]`: a table of studies, from their run folders and the scheduler. Torch-free."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import shorten

from lottery.arguments import CommandParser
from lottery.errors import ConfigError
from lottery.launch.studies import Study, Sweep, all_studies, all_sweeps, find_sweep, judge
from lottery.launch.table import Column, colored, flowing, table, terminal_width
from lottery.launch.verdict import STATES
from lottery.tracking.status import duration

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
TIMES = ("", "", " twice")

# A column of the table, and what it shows of a study.
COLUMNS: list[tuple[Column, Callable[[Study], str]]] = [
    (Column("study"), lambda study: study.label),
    (Column("state"), lambda study: study.state),
    (Column("round"), lambda study: position(study)),
    (Column("step", right=True, rank=5), lambda study: steps(study)),
    (Column("trained", right=True, rank=3), lambda study: trainings(study)),
    (Column("left", right=True), lambda study: left(study)),
    (Column("density", right=True, rank=4), lambda study: percent(study, "density", "%")),
    (Column("test", right=True), lambda study: percent(study, "test_accuracy", "")),
    (Column("job", rank=2), lambda study: study.job),
    (Column("seen", right=True, rank=1), lambda study: seen(study)),
]


def status(args: list[str]) -> int:
    """The command. Raises ConfigError for a sweep or a folder that is not there."""
    parser = CommandParser("status", ABOUT)
    parser.add_argument("sweep", nargs="?", metavar="SWEEP", help="its name, or latest; default: everything")
    parser.add_argument("--runs", metavar="DIR", default="runs", help="paths.runs of the studies (default: runs)")
    parser.add_argument("--json", action="store_true", help="for scripts: everything that is known, as JSON")
    asked = parser.parse_args(args)
    runs = Path(asked.runs)
    if not runs.is_dir():
        raise ConfigError(f"status: no folder {runs}; --runs DIR names the folder that paths.runs was")
    problems: list[str] = []
    if asked.sweep:
        sweeps = [find_sweep(runs, asked.sweep)]
        studies = sweeps[0].studies
    else:
        studies = all_studies(runs)
        sweeps, problems = all_sweeps(runs)
    if silent := looked_at(sweeps, studies):
        problems.append(f"{silent}; shown is what the run folders say")
    if asked.json:
        print(json.dumps(as_json(sweeps, studies, problems), indent=1))
        return 0
    lines = sweep_lines(sweeps[0]) if asked.sweep else overview(sweeps, studies, runs)
    print("\n".join([*(colored(f"lottery: {problem}", "yellow") for problem in problems), *lines]))
    return 0


def looked_at(sweeps: Sequence[Sweep], studies: Sequence[Study]) -> str:
    """Read and judge every study once, also where several sweeps and the list have it; why SLURM did not answer."""
    read = {study.folder: study for study in studies if study.recorded is not None}
    every = {id(study): study for study in [*studies, *(study for sweep in sweeps for study in sweep.studies)]}
    for study in every.values():
        known = read.get(study.folder)
        if known is None:
            study.read()
        else:
            study.recorded, study.row = known.recorded, known.row
    return judge(every.values())


def as_json(sweeps: Sequence[Sweep], studies: Sequence[Study], problems: list[str]) -> dict[str, object]:
    return {
        "sweeps": [
            {"name": sweep.name, "executor": sweep.executor, "command": sweep.command, "states": counted(sweep.studies)}
            for sweep in sweeps
        ],
        "studies": [study.as_json() for study in studies],
        "problems": problems,
    }


# -- what a person sees ------------------------------------------------------------------------------------------------


def sweep_lines(sweep: Sweep) -> list[str]:
    """One sweep: what it is, and its studies."""
    command = shorten(" ".join(sweep.command), terminal_width() or 10**6, placeholder=" ...")
    return [
        *summary(title(sweep), sweep.studies),
        *([colored(command, "dim")] if command else []),
        "",
        *study_table(sweep.studies),
    ]


def overview(sweeps: Sequence[Sweep], studies: Sequence[Study], runs: Path) -> list[str]:
    """Every run folder, and a line for each sweep."""
    if not studies and not sweeps:
        return [f"no studies in {runs}"]
    lines = [*study_table(studies), "", *summary(str(runs), studies)]
    return [*lines, *(line for sweep in sweeps for line in summary(title(sweep), sweep.studies))]


def title(sweep: Sweep) -> str:
    return f"{sweep.name}  {sweep.executor}"


def summary(name: str, studies: Sequence[Study]) -> list[str]:
    """Such as `runs  3 studies: 1 failed, 2 done`."""
    states = [(f"{number} {state}", COLORS.get(state, "")) for state, number in counted(studies).items()]
    studies_ = "1 study" if len(studies) == 1 else f"{len(studies):,} studies"
    return flowing(f"{name}  {studies_}:", states or [("none", "")])


def counted(studies: Sequence[Study]) -> dict[str, int]:
    found = Counter(study.state for study in studies)
    return {state: found[state] for state in STATES if found[state]}


def study_table(studies: Sequence[Study]) -> list[str]:
    if not studies:
        return []
    rows = [[show(study) for _, show in COLUMNS] for study in studies]
    marks = [{1: COLORS.get(study.state, "")} for study in studies]
    return table([column for column, _ in COLUMNS], rows, [note(study) for study in studies], marks)


def note(study: Study) -> str:
    """What there is to say beside the columns."""
    parts = [study.detail.removeprefix("interrupted ").removeprefix("waiting ")]
    if study.restarts and study.state != "done":
        times = TIMES[study.restarts] if study.restarts < len(TIMES) else f" {study.restarts} times"
        parts.append(f"requeued{times}")
    if study.state == "failed" and study.recorded is None and study.planned is not None and study.planned.log:
        parts.append(f"see {study.planned.log}")
    return "; ".join(part for part in parts if part)


def position(study: Study) -> str:
    """The round, with the control: of a study that is done the last, else the one under way."""
    recorded = study.recorded
    if recorded is None:
        return str(study.row["round"]) if study.row else ""
    return f"{recorded.round} {recorded.control} {recorded.copy}" if recorded.control else str(recorded.round)


def steps(study: Study) -> str:
    recorded = study.recorded
    return f"{recorded.step:,}/{recorded.steps:,}" if recorded is not None and recorded.steps else ""


def trainings(study: Study) -> str:
    """How many trainings are finished, of how many."""
    recorded = study.recorded
    if recorded is None:
        return ""
    return f"{recorded.trainings_done}/{recorded.trainings}" if recorded.trainings else str(recorded.trainings_done)


def left(study: Study) -> str:
    recorded = study.recorded
    if study.state != "running" or recorded is None or recorded.seconds_left is None:
        return ""
    return duration(recorded.seconds_left)


def percent(study: Study, name: str, sign: str) -> str:
    value = study.row.get(name)
    return f"{100 * value:.2f}{sign}" if isinstance(value, int | float) else ""


def seen(study: Study) -> str:
    """How long ago the study was last heard of, in its largest unit."""
    if study.recorded is None:
        return ""
    seconds = max(0, time.time() - study.recorded.updated)
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f}{unit} ago"
    return f"{seconds:.0f}s ago"
