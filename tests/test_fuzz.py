"""1,000 seeded inputs, 250 to compose and 750 to read: whatever is wrong with one of them is one of our errors.

The seeds make a failure come back: the message of a failing test names the input.
"""

from __future__ import annotations

import copy
import io
import json
import logging
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from hashlib import sha256
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line_tools import QUICK, call, run_folder
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lottery.analysis.compare import entry_table, group_lines, method_lines, pair_table
from lottery.analysis.comparison import chosen, measured
from lottery.compose import checked, composed, groups, loaded
from lottery.errors import ConfigError, LotteryError
from lottery.explain import described, keys
from lottery.export.write import Facts
from lottery.inventory.command import store
from lottery.launch.record import Outcome, Sweep, SweepStudy, all_sweeps
from lottery.launch.status import overview
from lottery.launch.studies import all_studies, look, studies_of
from lottery.overrides import as_written
from lottery.record.table import curves, load_runs
from lottery.report.markup import Html
from lottery.report.page import page
from lottery.report.study import grouped, read_studies
from lottery.tracking import sending
from lottery.tracking.lineage import makers_under
from lottery.tracking.sync import runs_in

LOADER, DUMPER = (getattr(yaml, f"CSafe{kind}", getattr(yaml, f"Safe{kind}")) for kind in ("Loader", "Dumper"))

# Values that some key or place does not expect.
ODD: list[Any] = [
    None, True, -1, 0, 1.5, 10**30, "x", "${oc.env:HOME}", "\x1b[31m", [], [None], [[1]], {}, {"a": 1},
    {"1": {"2": []}},     float("nan"), float("inf"), "", "a" * 300, [[[[[1]]]]], "\ud800", "1e3", "~", "$\\frac$",
]  # fmt: skip
OVERRIDES = [
    "null", "true", "-1", "0", "1.5", "1" + 30 * "0", "x", "[]", "[null]", "[[1]]", "{}", "{a:1}", "{1:2}", "nan",
    "inf", "''", "a" * 300, "[nan]", "[-1]", "1e3", "~", "'~nobody/x'", "'\x1b'", "'\\${x}'", "???", "${seed}",
    "${x.y}", "1,2", "[1", "a b", "'\ud800'", "5ep", "[5ep]", "1it", "99999999999999999999it", "{_target_:x}",
    "{_target_:os.getcwd}",
]  # fmt: skip


def one_line(error: Exception) -> None:
    """A message for people: one line, printable when it is shown, not what Python says."""
    assert isinstance(error, LotteryError), repr(error)
    assert str(error).strip()


# -- composing --------------------------------------------------------------------------------------------------------


def override(rng: random.Random, known: list[str]) -> str:
    """An override that is probably wrong."""
    key = rng.choice(known)
    if rng.random() < 0.1:
        key = rng.choice([key[:-1], f"{key}.x", f"{key}/x", key.upper(), "", f"{key}@x", "1"])
    return rng.choice(["", "", "", "+", "++", "~"]) + key + "=" + rng.choice(OVERRIDES)


@pytest.mark.slow
def test_whatever_is_composed_wrong_is_one_line() -> None:
    """Hydra takes a fraction of a second; so most inputs are set in a configuration that it has composed before."""
    rng, base, options = random.Random(1), composed(["+exp=imp_rewind"]), groups()
    known = [*keys(base), *options]
    for number in range(250):
        given = [override(rng, known) for _ in range(rng.choice([1, 1, 2]))]
        try:
            composed(given) if number < 40 else set_in(base, given)
        except ConfigError as error:
            one_line(error)
        except Exception as error:
            pytest.fail(f"{given}: {error!r}")


def set_in(base: DictConfig, given: list[str]) -> None:
    """As a sweep sets single keys; ConfigError where that is wrong."""
    cfg = copy.deepcopy(base)
    try:
        for each in OverridesParser.create().parse_overrides([each.lstrip("+~") for each in as_written(given)]):
            OmegaConf.update(cfg, each.key_or_group, each.value(), merge=True)
    except OmegaConfBaseException as error:
        raise ConfigError(described(error, lambda: base, groups())) from error
    except Exception:  # left to Hydra
        return
    checked(cfg)


# -- reading ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two run folders, their store, a sweep, what W&B was told, and an export's facts."""
    folder = tmp_path_factory.mktemp("house")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("LOTTERY_DATA", raising=False)
        assert call(*QUICK, "controls.reinit=1", "probes=light", "method.rounds=2").status == 0
    run, runs = run_folder(folder), folder / "runs"
    (run / "manifest.json").unlink(missing_ok=True)  # else all that is altered is known by its digest
    shutil.copytree(run, run.with_name("other"))
    for name in (run / "figures").iterdir():
        name.unlink()
    sweep = Sweep(
        runs / ".sweeps/2026-01-01_00-00-00", "local", ["a"], [SweepStudy("seed=0", [], f"study/{run.name}", "1")]
    )
    sweep.write()
    sweep.end(0, Outcome(1, "cause"))
    (run / "sync.json").write_text(json.dumps({"/lottery": {"made": ["a"], "used": ["b"]}}))
    log = f"offline-run-20260101_000000-{run.name}"
    (run / "wandb" / log).mkdir(parents=True)
    remembered = {log: {"size": 3, "entity": "", "project": "lottery", "items": ["x"], "exit": 0}}
    (run / "wandb" / "recorded.json").write_text(json.dumps(remembered))
    facts = {"format": "lottery-network/1", "model": {"_target_": "x"}, "shape": [1, 4], "classes": 3, "digests": {}}
    facts |= {"layers": {"fc": {"outputs": [2, 1], "inputs": [2, 1]}}, "removed_units": ["a"]}
    (run / "network.json").write_text(json.dumps(facts))
    return folder


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a nested value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def altered(rng: random.Random, value: Any) -> Any:
    """The value with one part of it gone or odd."""
    *above, last = rng.choice(list(places(value))) or (None,)
    if last is None:
        return rng.choice(ODD)
    node = value
    for key in above:
        node = node[key]
    if rng.random() < 0.25:
        del node[last]
    else:
        node[last] = rng.choice(ODD)
    return value


def broken(rng: random.Random, data: bytes) -> bytes:
    """The bytes cut short, flipped, or with something in between."""
    at = rng.randrange(len(data) or 1)
    between = rng.choice(
        [b"\x00", b"\x1b[2J", b"*a", b"&a ", b"${x}", b"\xe2\x80\xae", b"[" * 2000, b"{" * 2000, b"9" * 5000]
    )
    flipped = bytes([data[at] ^ 1 << rng.randrange(8)]) if data else b""
    return rng.choice(
        [data[:at], data[:at] + flipped + data[at + 1 :], b"", b"\xff\xfe" + data, data[:at] + between + data[at:]]
    )


def damaged(rng: random.Random, path: Path, data: bytes) -> bytes:
    """A file as somebody may have left it; often well-formed, with a value that is none."""
    if rng.random() < 0.35 or path.suffix == ".csv":
        return broken(rng, data)
    if path.suffix == ".safetensors":
        return damaged_tensors(rng, data)
    if path.suffix == ".yaml":
        value = altered(rng, yaml.load(data, LOADER))
        return broken(rng, data) if "\\ud800" in repr(value) else yaml.dump(value, Dumper=DUMPER).encode()
    lines = [json.loads(line) for line in data.splitlines()] if path.suffix == ".jsonl" else [json.loads(data)]
    place = rng.randrange(len(lines))
    lines[place] = altered(rng, lines[place])
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def damaged_tensors(rng: random.Random, data: bytes) -> bytes:
    """A damaged header; that of a mask also with digests that fit it."""
    length = int.from_bytes(data[:8], "little")
    header, bits = json.loads(data[8 : 8 + length]), data[8 + length :]
    said = header.get("__metadata__", {})
    if "shapes" in said and rng.random() < 0.6:
        said["shapes"] = json.dumps(altered(rng, json.loads(said["shapes"])))
        said["digest"] = sha256(said["shapes"].encode() + bits).hexdigest()
        said.pop("checksum")
        said["checksum"] = sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    else:
        header = altered(rng, header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bits


def read_load(run: Path) -> None:
    load_runs(run.parent)
    curves(run.parent)


def read_report(run: Path) -> None:
    studies = read_studies(run)
    page(grouped(studies), studies, None, Html("")).encode()


def read_compare(run: Path) -> None:
    entries = chosen([run, run.with_name("other")], None)
    pairs = [measured(one, other) for one, other in combinations(entries, 2)]
    _ = [*entry_table(entries), *pair_table(pairs), *method_lines(entries), *group_lines(pairs)]


def read_status(run: Path) -> None:
    runs = run.parents[1]
    studies, (found, _) = all_studies(runs), all_sweeps(runs)
    sweeps = [(sweep, studies_of(sweep, runs)) for sweep in found]
    look([*studies, *(study for _, its in sweeps for study in its)])
    overview(sweeps, studies, runs)


def read_sync(run: Path) -> None:
    for study in runs_in(run):
        sending.Upload.of(study, makers_under(run.parents[1]), None, None).left()


def read_store(run: Path) -> None:
    root = ["--store", str(run.parents[1] / ".store")]
    for command in (["ls"], ["verify"], ["gc", "--all", "--older-than", "0"]):
        store([*command, *root])
    for kind in sorted((run.parents[1] / ".store").iterdir()):
        store(["show", sorted(kind.iterdir())[0].name, *root])


def read_config(run: Path) -> None:
    loaded(run / "config.yaml")


def read_facts(run: Path) -> None:
    Facts.read(run / "network.json")


Reader = Callable[[Path], None]
# name of a file or of its folder: who reads it, and how often it is damaged
READERS: dict[str, tuple[tuple[Reader, ...], int]] = {
    "rounds.jsonl": ((read_load, read_compare, read_status, read_sync), 200),
    "config.yaml": ((read_load, read_compare, read_sync), 120),
    "masks": ((read_compare,), 120),
    "rounds": ((read_compare, read_sync), 60),
    "status.json": ((read_status, read_load), 30),
    "sweep.json": ((read_status,), 30),
    "outcomes": ((read_status,), 10),
    "sync.json": ((read_sync,), 30),
    "recorded.json": ((read_sync,), 20),
    "curves.csv": ((read_load,), 20),
    "network.json": ((read_facts,), 20),
    ".store": ((read_store,), 60),
    "": ((read_report,), 10),
    "again": ((read_config,), 20),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_whatever_is_read_damaged_is_one_line(name: str, house: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    rng, run, (readers, count) = random.Random(name), run_folder_of(house), READERS[name]
    files = sorted(path for path in house.rglob("*") if path.is_file() and belongs(path.relative_to(house), name))
    for number in range(count):
        path, reader = rng.choice(files), rng.choice(readers)
        before = path.read_bytes()
        path.write_bytes(damaged(rng, path, before))
        try:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                reader(run)
        except LotteryError as error:
            one_line(error)
        except Exception as error:
            pytest.fail(f"{name} {number}: {reader.__name__} of {path.name}, {path.read_bytes()[:200]!r}: {error!r}")
        finally:
            path.write_bytes(before)


def run_folder_of(house: Path) -> Path:
    return next(path for path in (house / "runs" / "study").iterdir() if path.name != "other")


def belongs(path: Path, name: str) -> bool:
    """Whether a file is one of those that a line of READERS damages."""
    if "other" in path.parts or path.suffix not in (".json", ".jsonl", ".yaml", ".csv", ".safetensors", ""):
        return False
    if name == ".store":
        return ".store" in path.parts and path.name != ".lease"
    if ".store" in path.parts:
        return False
    if name == "again":
        return path.name == "config.yaml"
    return (
        path.name == name
        or path.parent.name == name
        or (name == "" and path.parts[-2] != ".sweeps" and path.suffix != "")
    )
