"""Where the store is, and where its users' run folders are: the options --store and --runs. Torch-free."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from lottery.arguments import CommandParser
from lottery.errors import ConfigError
from lottery.inventory.needs import read_run

NAME = ".store"  # of a store that lies beside its run folders


def add_options(parser: CommandParser) -> None:
    """--store and --runs."""
    parser.add_argument("--store", metavar="DIR", type=Path, help="the store (paths.store); default: runs/.store")
    parser.add_argument(
        "--runs", metavar="DIR", type=Path, action="append", default=[],
        help="a folder of run folders (paths.runs), or one run folder; also says where the store is; may be repeated",
    )  # fmt: skip


def places(asked: Namespace) -> tuple[Path, list[Path]]:
    """The store, and the folders to search for run folders. Raises ConfigError for one that is not there."""
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
    """The store that goes with these run folders."""
    found = [folder / NAME for folder in runs if (folder / NAME).is_dir()]
    found += [_configured(folder) for folder in runs if (folder / "config.yaml").is_file()]
    if len({path.resolve() for path in found}) > 1:
        raise ConfigError(f"--runs: each of these has a store of its own ({found[0]}, {found[1]}); --store says which")
    return found[0] if found else (runs[0] if runs else Path("runs")) / NAME


def _configured(run: Path) -> Path:
    """The store of one run folder: as its configuration says, seen from here or from where it was run."""
    store = Path(str(read_run(run).config.get("paths", {}).get("store", "")))
    beside = run.resolve().parents[1] / NAME
    return store if store.is_dir() or not beside.is_dir() else beside
