"""The command `python -m lottery store ls|show|gc|verify`. Torch-free, so that it starts at once."""

from __future__ import annotations

import re
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from time import time

from lottery.arguments import CommandParser
from lottery.errors import ConfigError, LotteryError, nearest
from lottery.inventory.contents import StoredStage, read_contents
from lottery.inventory.folders import check_run
from lottery.inventory.garbage import Cleared, Plan, clear, clearing, plan, store_clock
from lottery.inventory.listing import Description, ls, print_table, show, size_of
from lottery.inventory.needs import find_users, needed, read_user
from lottery.inventory.verify import Flaw, check_stage
from lottery.printing import colored, count_text, say, size_text
from lottery.record.names import CONFIG
from lottery.record.run import Run

ABOUT = """\
The store of finished and unfinished stages, which studies share.

  ls        the stages written last: what it is, its state, size and age, and which run folders use it
  show KEY  one stage (the first digits of its key do): inputs, results, files, what it came from, what came from it
  gc        remove what no run folder needs; only says what it would do, unless told --yes
  verify    hash everything again, and say what is damaged

The store is runs/.store unless --store or --runs says otherwise. The run folders are those under --runs, and those
beside a store that is named .store. `python -m lottery store gc --help` (ls, show, verify) says more."""

LS = """\
The stages of the store, those written last, or --all. `steps` are where it starts in the schedule (0, or the rewind
step) and where it ends, `seed` is that of the data order, `age` the time since it was last written. The run folder and
round that it belongs to stand at the end of the line.

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
Hash every file of every stage and run folder, and compare with the digests on record. Exit status 1 if something
is damaged. --remove removes damaged stages; the studies that need them, run again, compute them anew."""

NAME = ".store"  # of a store that lies beside its run folders
NEWEST = 20  # stages that `ls` lists
READERS = 4  # stages read at a time: faster on a shared disk than one after the other
UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
COLORS = {"damaged": "red", "unreadable": "yellow", "note": "dim"}


def store(args: list[str]) -> int:
    """Run `store ARGS`. Raises ConfigError for a store, folder or key that does not exist."""
    commands = {"ls": ls, "show": show, "gc": gc, "verify": verify}
    first = args[0] if args else ""
    if first in ("-h", "--help"):
        CommandParser("store ls|show|gc|verify", ABOUT).parse_args(args)
    if first not in commands:
        raise ConfigError.of("store", first, f"ls, show, gc or verify{nearest(first, commands)}")
    asked = parser(first).parse_args(args[1:])
    if first == "ls" and asked.newest < 1:
        raise ConfigError.of("--newest", asked.newest, "a whole number ≥ 1")
    if first == "gc" and asked.yes and asked.dry_run:
        raise ConfigError("store gc: either --yes or --dry-run")
    return commands[first](asked, *places(asked))


def parser(command: str) -> CommandParser:
    """Return the option parser of `store ls`, `store show` ..."""
    found = CommandParser(f"store {command}", {"ls": LS, "show": SHOW, "gc": GC, "verify": VERIFY}[command])
    if command == "show":
        found.add_argument("key", metavar="KEY", help="its first digits do")
    found.add_argument("--store", metavar="DIR", type=Path, help="the store (paths.store); default: runs/.store")
    found.add_argument(
        "--runs", metavar="DIR", type=Path, action="append", default=[],
        help="a folder of run folders (paths.runs), or one run folder; also says where the store is; may be repeated",
    )  # fmt: skip
    if command == "ls":
        number = f"how many stages, those written last; default: {NEWEST}"
        found.add_argument("--newest", metavar="N", type=int, default=NEWEST, help=number)
        found.add_argument("--all", action="store_true", help="every stage")
        found.add_argument("--json", action="store_true", help="for scripts: everything, as JSON")
    elif command == "gc":
        age = "of what is unfinished: 12h, 7d; 1d"
        found.add_argument("--older-than", type=seconds, metavar="TIME", default="1d", help=age)
        found.add_argument("--all", action="store_true", help="go on also where no run folder at all is found")
        found.add_argument("--dry-run", action="store_true", help="only say what would be removed: the default")
        found.add_argument("--yes", action="store_true", help="remove it")
    elif command == "verify":
        found.add_argument("--remove", action="store_true", help="remove damaged stages")
    return found


def seconds(text: str) -> float:
    """Parse a time such as 90s, 12h or 7d into seconds. Raises ConfigError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    if not match or (not match[2] and float(match[1])):
        raise ConfigError.of("--older-than", text, "a time such as 30m, 12h or 7d")
    return float(match[1]) * UNITS[match[2]]


# -- where the store is -----------------------------------------------------------------------------------------------


def places(asked: Namespace) -> tuple[Path, list[Path]]:
    """Return the store, and the folders to search for run folders. Raises ConfigError for one that does not exist."""
    for folder in asked.runs:
        if not folder.is_dir():
            raise ConfigError(f"--runs: no folder {folder}")
    store = asked.store or _store_of(asked.runs)
    if not store.is_dir():
        raise ConfigError(f"no store at {store}; --store DIR names it, or --runs DIR the folder that paths.runs was")
    if store.name != NAME and (store / NAME).is_dir():
        raise ConfigError(f"--store: {store} holds run folders; their store is {store / NAME}")
    beside = [store.parent] if store.resolve().name == NAME else []
    return store, [*asked.runs, *beside]


def _store_of(runs: list[Path]) -> Path:
    """Return the store of these run folders. Raises ConfigError where they have several."""
    found = [folder / NAME for folder in runs if (folder / NAME).is_dir()]
    found += [_configured(folder) for folder in runs if (folder / CONFIG).is_file()]
    if len({path.resolve() for path in found}) > 1:
        raise ConfigError(f"--runs: each of these has a store of its own ({found[0]}, {found[1]}); --store says which")
    return found[0] if found else (runs[0] if runs else Path("runs")) / NAME


def _configured(run: Path) -> Path:
    """Return the store in a run folder's configuration, or where that does not exist, the one beside the folder."""
    paths = read_user(run).config.get("paths")
    store = Path(str(paths.get("store", ""))) if isinstance(paths, dict) else Path()
    beside = run.resolve().parents[1] / NAME
    return store if store.is_dir() or not beside.is_dir() else beside


# -- gc ---------------------------------------------------------------------------------------------------------------


def gc(asked: Namespace, root: Path, roots: Sequence[Path]) -> int:
    """Remove the stages that no run folder needs; without --yes only list them."""
    with clearing(root) if asked.yes else nullcontext():
        contents, now = read_contents(root), store_clock(root) if asked.yes else time()
        contents.producers  # noqa: B018 - reads every result, which takes a while, before the run folders are read
        runs = find_users(roots, strict=True)
        if not runs and not asked.all:
            where = f"no run folder in {' or '.join(map(str, roots))}" if roots else "no run folders named"
            raise ConfigError(f"store gc: {where}; --runs DIR names them, --all goes on without any")
        planned = plan(contents, runs, asked.older_than, now)
        says = Description(contents, runs, now)
        print_table(sorted(planned.remove, key=says.order), says)
        say(*(f"left over: {path}" for path in planned.leftovers))
        if planned.remove or planned.leftovers:
            print()
        kept = count_text(len(contents.entries) - len(planned.remove), "stage")
        print(f"{kept} needed by {count_text(len(runs), 'run folder')} or by somebody at work")
        if asked.yes:
            report(clear(root, planned, lambda: needed(contents, find_users(roots, strict=True))))
            return 0
    more = "; --yes does it" if planned.remove or planned.leftovers else ""
    print(f"would remove {counted(len(planned.remove), len(planned.leftovers), planned.size)}{more}")
    return 0


def counted(stages: int, leftovers: int, total: int) -> str:
    """Format counts and bytes, such as `3 stages and 1 leftover, 1.2 MB`."""
    return f"{count_text(stages, 'stage')} and {count_text(leftovers, 'leftover')}, {size_text(total)}"


def report(cleared: Cleared) -> None:
    """Print counts of what was removed. Raises LotteryError where something could not be removed."""
    say(*(f"kept: {line}" for line in cleared.kept))
    print(f"removed {counted(cleared.stages, cleared.leftovers, cleared.size)}")
    if cleared.failed:
        raise LotteryError("; ".join(cleared.failed[:3]) + (", and more" if len(cleared.failed) > 3 else ""))


# -- verify -----------------------------------------------------------------------------------------------------------


def verify(asked: Namespace, root: Path, roots: Sequence[Path]) -> int:
    """Hash all stages and run folders, and print the flaws. Returns 1 if anything but notes was found."""
    entries, runs = read_contents(root).entries, [run.folder for run in find_users(roots)]
    wrong, damaged = 0, dict[str, StoredStage]()
    for flaw in check_all(entries, runs):
        print(colored(str(flaw), COLORS[flaw.level]))
        wrong += flaw.level != "note"
        if flaw.level == "damaged" and flaw.entry is not None:
            damaged[flaw.entry.key] = flaw.entry
    verdict = f"{count_text(len(damaged), 'stage')} damaged, {count_text(wrong, 'thing')} wrong in all"
    masks = count_text(sum(len(Run(run).mask_files) for run in runs), "mask")
    stages = f"{count_text(len(entries), 'stage')} ({size_of(entries)})"
    print(f"checked {stages} and {masks}: {verdict if wrong else 'all as it was written'}")
    if damaged and asked.remove:
        with clearing(root):
            report(clear(root, Plan(list(damaged.values()))))
        print("the studies that need what was removed, run again, compute it anew")
    elif damaged:
        print("`verify --remove` removes damaged stages; the studies that need them, run again, compute them anew")
    return 1 if wrong else 0


def check_all(entries: Sequence[StoredStage], runs: Sequence[Path]) -> Iterator[Flaw]:
    """Yield the flaws of stages, then of run folders, in order. Shows a progress bar (in bytes) on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    columns, quiet = (BarColumn(), DownloadColumn(), TimeRemainingColumn()), not sys.stderr.isatty()
    with (
        ThreadPoolExecutor(READERS) as pool,
        Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet) as bar,
    ):
        task = bar.add_task("", total=sum(entry.size for entry in entries))
        for entry, found in zip(entries, pool.map(check_stage, entries), strict=True):
            bar.advance(task, entry.size)
            yield from found
        for found in pool.map(check_run, runs):
            yield from found
