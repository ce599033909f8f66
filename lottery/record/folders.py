"""Find run folders. Torch-free."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from lottery.errors import LotteryError
from lottery.record.names import CONFIG, KEY, MASKS, ROUNDS, TABLE

Paths = str | Path | Iterable[str | Path]

MAKE = "`python -m lottery +exp=imp_rewind` makes one in runs"


def find_runs(paths: Paths = "runs") -> list[Path]:
    """Return the run folders at or below `paths` (which may be patterns), each once; those of one path sorted by name.

    Hidden folders (leading dot) are left out. Raises LotteryError for a path without run folders.
    """
    found: dict[str, Path] = {}
    asked = [paths] if isinstance(paths, str | Path) else list(paths)
    if not asked:
        raise LotteryError(f"got no path, expected run folders or folders of them; {MAKE}")
    for path in asked:
        folder = Path(path).expanduser()
        starts = [folder] if folder.exists() else map(Path, sorted(glob.glob(str(folder), recursive=True)))
        here = [run for start in starts for run in runs_below(start)]
        if not here:
            what = "no run folder in it" if folder.is_dir() else "no such run folder"
            raise LotteryError(f"{path}: {what}; {MAKE}")
        for run in here:
            found.setdefault(os.path.realpath(run), run)
    return list(found.values())


def runs_below(folder: Path, strict: bool = True, bare: bool = False) -> Iterator[Path]:
    """Yield the run folders at or below a folder, except for hidden ones and for those inside a run folder.

    strict: raise LotteryError for an unreadable folder instead of skipping it. bare: include folders that have
    neither a configuration nor a table.
    """
    return _below(folder, strict, bare, set())


def _below(folder: Path, strict: bool, bare: bool, seen: set[str]) -> Iterator[Path]:
    """Do the work of `runs_below`. seen: real paths visited so far, since links may lead in circles."""
    real = os.path.realpath(folder)
    if real in seen:
        return
    seen.add(real)
    try:
        with os.scandir(folder) as entries:
            inside = sorted((entry.name, entry.is_dir()) for entry in entries)
    except (FileNotFoundError, NotADirectoryError):  # removed in the meantime, or a file
        return
    except OSError as error:
        if not strict:
            return
        raise LotteryError(f"{folder}: cannot be searched for run folders: {error.strerror}") from error
    names = {name for name, _ in inside}
    if TABLE in names or {CONFIG, MASKS} <= names or (bare and {ROUNDS, MASKS} <= names):
        yield folder
        return
    for name, is_folder in inside:
        if is_folder and not name.startswith("."):
            yield from _below(folder / name, strict, bare, seen)


def keyed_folders(runs: Path) -> Iterator[Path]:
    """Yield every folder `<runs>/<name>/<study key>`, whatever it contains."""
    for name in sorted(path for path in runs.iterdir() if path.name[0] != "." and path.is_dir()):
        with suppress(OSError):
            yield from (name / entry.name for entry in os.scandir(name) if KEY.fullmatch(entry.name))
