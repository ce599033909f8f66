"""`python -m lottery store ls|show|gc|verify`: the options, and what they do. Torch-free: it answers at once."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Callable
from contextlib import nullcontext
from time import time

from lottery.arguments import CommandParser
from lottery.errors import ConfigError, LotteryError, nearest
from lottery.inventory.contents import read_contents
from lottery.inventory.describe import Description, number, size
from lottery.inventory.garbage import Cleared, Plan, clear, clearing, plan, store_clock
from lottery.inventory.listing import ls, show, stage_table
from lottery.inventory.needs import find_runs, needed
from lottery.inventory.places import add_options, places
from lottery.inventory.verify import check_all
from lottery.launch.table import colored

ABOUT = """\
The store of finished and unfinished stages, which studies share.

  ls        every stage: what it is, its state, size and age, and which run folders use it
  show KEY  one stage (the first digits of its key do): inputs, results, files, what it came from, what came from it
  gc        remove what no run folder needs; only says what it would do, unless told --yes
  verify    hash everything again, and say what is damaged

The store is runs/.store unless --store or --runs says otherwise. The run folders are those under --runs, and those
beside a store that is named .store. `python -m lottery store gc --help` (ls, show, verify) says more."""

LS = """\
Every stage of the store. `steps` are where it starts in the schedule (0, or the rewind step) and where it ends, `seed`
is that of the data order, `age` the time since it was last written. The run folder and round that it belongs to stand
at the end of the line.

  done
  running     somebody computes it, and says so every few seconds
  silent      somebody computed it, and has given no sign for a while; another study would take it over
  unfinished  nobody is at it; the study that needs it continues from the step that was saved
  damaged     at first sight; `verify` reads everything"""

SHOW = "One stage: inputs in full, environment, results, files, what it came from, and what came from it."

GC = """\
Remove what no run folder needs. Needed is what the rounds of a run folder came from, what a study that is not finished
may still use, and what these were computed from. Stages that somebody is at work on stay in any case, and so do those
left unfinished less than a day ago (--older-than). Temporary files and leases of the dead go too.

STAGES THAT ONLY RUN FOLDERS ELSEWHERE USE ARE SEEN AS UNNEEDED. If others share the store, name all their folders:

  python -m lottery store gc --store /shared/store --runs ~ann/runs --runs ~bob/runs

A stage that was removed by mistake is computed again when a study needs it."""

VERIFY = """\
Hash every file of every stage, and every mask of the run folders, and compare with the digests on record. Exit status 1
if something is damaged. --remove removes damaged stages; the studies that need them, run again, compute them anew."""

UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
COLORS = {"damaged": "red", "unreadable": "yellow", "note": "dim"}


def store(args: list[str]) -> int:
    """The command. Raises ConfigError for a store, folder or key that is not there."""
    commands: dict[str, Callable[[Namespace], int]] = {"ls": ls, "show": show, "gc": gc, "verify": verify}
    first = args[0] if args else ""
    if first in ("-h", "--help"):
        CommandParser("store ls|show|gc|verify", ABOUT).parse_args(args)
    if first not in commands:
        raise ConfigError.of("store", first, f"ls, show, gc or verify{nearest(first, commands)}")
    return commands[first](parser(first).parse_args(args[1:]))


def parser(command: str) -> CommandParser:
    """The options of `store ls`, `store show` ..."""
    found = CommandParser(f"store {command}", {"ls": LS, "show": SHOW, "gc": GC, "verify": VERIFY}[command])
    if command == "show":
        found.add_argument("key", metavar="KEY", help="its first digits do")
    add_options(found)
    if command == "ls":
        found.add_argument("--json", action="store_true", help="for scripts: everything, as JSON")
    elif command == "gc":
        found.add_argument("--older-than", metavar="TIME", default="1d", help="of what is unfinished: 12h, 7d; 1d")
        found.add_argument("--all", action="store_true", help="go on also where no run folder at all is found")
        found.add_argument("--dry-run", action="store_true", help="only say what would be removed: the default")
        found.add_argument("--yes", action="store_true", help="remove it")
    elif command == "verify":
        found.add_argument("--remove", action="store_true", help="remove damaged stages")
    return found


def gc(asked: Namespace) -> int:
    """Remove what is not needed; without --yes say what that would be."""
    if asked.yes and asked.dry_run:
        raise ConfigError("store gc: either --yes or --dry-run")
    older_than, (root, roots) = seconds(asked.older_than), places(asked)
    with clearing(root, told) if asked.yes else nullcontext():
        contents, now = read_contents(root), store_clock(root) if asked.yes else time()
        contents.producers  # noqa: B018 - reads every result, which takes a while, before the run folders are looked at
        runs = find_runs(roots, strict=True)
        if not runs and not asked.all:
            where = f"no run folder in {' or '.join(map(str, roots))}" if roots else "no run folders named"
            raise ConfigError(f"store gc: {where}; --runs DIR names them, --all goes on without any")
        planned = plan(contents, runs, older_than, now)
        print_plan(planned, Description(contents, runs, now))
        if asked.yes:
            return reported(clear(root, planned, lambda: needed(contents, find_runs(roots, strict=True))))
    more = "; --yes does it" if planned.remove or planned.leftovers else ""
    print(f"would remove {counted(len(planned.remove), len(planned.leftovers), planned.size)}{more}")
    return 0


def told(text: str) -> None:
    """For whom we wait, at once."""
    print(text, flush=True)


def print_plan(planned: Plan, says: Description) -> None:
    """What is to go, and how much stays."""
    for line in stage_table(sorted(planned.remove, key=says.order), says):
        print(line)
    for path in planned.leftovers:
        print(f"left over: {path}")
    if planned.remove or planned.leftovers:
        print()
    print(
        f"{number(len(planned.keep), 'stage')} needed by {number(len(says.runs), 'run folder')} or by somebody at work"
    )


def counted(stage_count: int, leftovers: int, total: int) -> str:
    """Such as `3 stages and 1 leftover, 1.2 MB`."""
    return f"{number(stage_count, 'stage')} and {number(leftovers, 'leftover')}, {size(total)}"


def reported(cleared: Cleared) -> int:
    """Print what was removed. Raises LotteryError where that failed."""
    for line in cleared.kept:
        print(f"kept: {line}")
    print(f"removed {counted(cleared.stages, cleared.leftovers, cleared.size)}")
    if cleared.failed:
        raise LotteryError("; ".join(cleared.failed[:3]) + (", and more" if len(cleared.failed) > 3 else ""))
    return 0


def seconds(text: str) -> float:
    """A time such as 90s, 12h or 7d, in seconds. Raises ConfigError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    if not match or (not match[2] and float(match[1])):
        raise ConfigError.of("--older-than", text, "a time such as 30m, 12h or 7d")
    return float(match[1]) * UNITS[match[2]]


def verify(asked: Namespace) -> int:
    """Hash everything; 1 if something is damaged."""
    root, roots = places(asked)
    entries = read_contents(root).entries
    masks = [path for run in find_runs(roots) for path in sorted((run.folder / "masks").glob("*.safetensors"))]
    wrong, damaged = 0, {}
    for finding in check_all(entries, masks):
        print(colored(str(finding), COLORS[finding.level]))
        wrong += finding.level != "note"
        if finding.level == "damaged" and finding.entry is not None:
            damaged[finding.entry.key] = finding.entry
    verdict = (
        f"{number(len(damaged), 'stage')} damaged, {number(wrong, 'thing')} wrong in all"
        if wrong
        else "all as it was written"
    )
    total = size(sum(entry.size for entry in entries))
    print(f"checked {number(len(entries), 'stage')} ({total}) and {number(len(masks), 'mask')}: {verdict}")
    if damaged and asked.remove:
        with clearing(root, told):
            reported(clear(root, Plan(list(damaged.values()), {}, {}, 0)))
        print("the studies that need what was removed, run again, compute it anew")
    elif damaged:
        print("`verify --remove` removes damaged stages; the studies that need them, run again, compute them anew")
    return 1 if wrong else 0
