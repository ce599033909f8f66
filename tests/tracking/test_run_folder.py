"""The run folder is rebuilt from the stages, byte for byte; what was altered is noticed by everybody who reads it."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from signal import SIGINT
from typing import Any

import pytest
from command_line_tools import call
from omegaconf import DictConfig
from training_tools import SMALL, TINY

from lottery import lease
from lottery.compose import checked, composed
from lottery.errors import Interrupted, LotteryError
from lottery.files import read_json
from lottery.inventory.folders import check_run
from lottery.lease import Holder, Lease, LeaseLost
from lottery.record.files import Files
from lottery.record.folder import RunFolder
from lottery.record.manifest import read_manifest
from lottery.record.names import MANIFEST
from lottery.record.run import Run
from lottery.record.table import curves, load_runs
from lottery.report.charts import training_curves
from lottery.report.study import grouped, read_studies
from lottery.signals import StopFlag
from lottery.study import Study
from lottery.ticket import Mask, read_metadata

LOG = logging.getLogger("lottery")

COMMON = [option for option in SMALL if not option.startswith("method.")]
STUDIES = {
    "imp": ("method.rounds=2", "controls.reinit=1", "controls.random=1"),
    "bip": ("method=bip", "method.steps=10it", "method.snapshots=5it", "method.density=0.3"),
}
LAYERS = ("method=layers", "model=resnet20", "model.depth=14", "model.width=4", "method.remove=[1]",
          "layer_criterion=l1",
          "rewind.to=2it", "train.steps=6it", "train.eval_every=3it")  # fmt: skip
CHANGING = (MANIFEST, "status.json", "study.log", "report.html", ".lease")


def configured(runs: Path, *overrides: str) -> DictConfig:
    cfg = composed([*COMMON, f"paths.runs={runs}", *overrides])
    if not any(option.startswith("model=") for option in overrides):
        cfg.model = TINY
    return checked(cfg)


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[DictConfig, Path]]:
    """Finished studies: configuration and run folder. Not to be changed."""
    found = {}
    for name, overrides in STUDIES.items():
        cfg = configured(tmp_path_factory.mktemp(name), *overrides)
        study = Study(cfg)
        study.run()
        found[name] = cfg, study.folder.path
    return found


@pytest.fixture
def copy(studies: dict[str, tuple[DictConfig, Path]], tmp_path: Path) -> Callable[[str], tuple[DictConfig, Path]]:
    """Copies of a study's run folder, over the same store."""

    def make(name: str) -> tuple[DictConfig, Path]:
        cfg, run = studies[name]
        store = cfg.paths.store
        cfg = deepcopy(cfg)
        cfg.paths.runs, cfg.paths.store = str(tmp_path / "runs"), str(store)
        folder = tmp_path / "runs" / run.parent.name / run.name
        shutil.copytree(run, folder)
        return cfg, folder

    return make


class Said(logging.Handler):
    """What is logged while this listens. (A study's terminal takes it from the root logger, where caplog listens.)"""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def __enter__(self) -> list[str]:
        LOG.addHandler(self)
        return self.lines

    def __exit__(self, *_: object) -> None:
        LOG.removeHandler(self)


@pytest.fixture
def said() -> Iterator[list[str]]:
    """The warnings so far."""
    with Said() as lines:
        yield lines


def content(run: Path) -> dict[str, Any]:
    """What a run folder holds: bytes, and of masks what they say, as safetensors writes a header in any order."""
    found: dict[str, Any] = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if path.is_file() and name not in (*CHANGING, "config.yaml"):
            mask = path.suffix == ".safetensors"
            found[name] = (Mask.load(path).digest, read_metadata(path)) if mask else path.read_bytes()
    return found


def damage(path: Path) -> None:
    """Change a letter in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def uncached(run: Path) -> list[dict[str, Any]]:
    """The rows, but for whether a training was needed: a row that is written again needs none."""
    return [json.loads(line) | {"cached": None} for line in (run / "rounds.jsonl").read_text().splitlines()]


def derived(run: Path) -> list[Path]:
    return [run / "curves.csv", *sorted((run / "rounds").iterdir()), *sorted((run / "masks").rglob("*.safetensors")),
            *([run / "search.csv"] if (run / "search.csv").exists() else [])]  # fmt: skip


# -- everything is rebuilt ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_every_file_is_rebuilt_when_it_is_missing_or_damaged(
    name: str, copy: Callable[..., Any], undrawn: None, said: list[str]
) -> None:
    """One after the other, each deleted, then damaged; the study says which."""
    cfg, run = copy(name)
    before = content(run)
    for path in derived(run):
        for spoil, word in ((Path.unlink, "missing"), (damage, "altered")):
            spoil(path)
            assert [str(finding.where) for finding in check_run(run)] == [str(path)]
            Study(cfg).run()
            assert content(run) == before, (path, word)
            assert f"{path} was {word}" in "\n".join(said)
            assert check_run(run) == []


def test_all_at_once_with_its_figures_and_report(copy: Callable[..., Any]) -> None:
    cfg, run = copy("imp")
    before, pages = content(run), (run / "report.html").stat().st_size
    for name in ("masks", "rounds", "figures"):
        shutil.rmtree(run / name)
    for name in ("curves.csv", "report.html"):
        (run / name).unlink()
    assert Study(cfg).run()
    assert content(run) == before
    assert abs((run / "report.html").stat().st_size - pages) < 100
    assert check_run(run) == []


def test_an_altered_row_is_written_again_and_the_curves_stay_whole(
    copy: Callable[..., Any], undrawn: None, said: list[str]
) -> None:
    """Any row, in its figures or in its time."""
    cfg, run = copy("imp")
    before = {**content(run), "rounds.jsonl": None}
    rows = (run / "rounds.jsonl").read_text().splitlines(keepends=True)
    whole = uncached(run)
    assert len(rows) == len(whole) == 7
    for number, key in ((0, "test_accuracy"), (3, "density"), (6, "seconds")):
        altered = json.loads(rows[number]) | {key: 0.123}
        (run / "rounds.jsonl").write_text("".join([*rows[:number], json.dumps(altered) + "\n", *rows[number + 1 :]]))
        Study(cfg).run()
        assert {**content(run), "rounds.jsonl": None} == before
        assert uncached(run) == whole
        assert "on record had other figures" in "\n".join(said)
        rows = (run / "rounds.jsonl").read_text().splitlines(keepends=True)
        assert check_run(run) == []


def test_a_second_run_changes_no_byte_and_says_nothing(
    copy: Callable[..., Any], undrawn: None, said: list[str]
) -> None:
    cfg, run = copy("bip")
    before = {path: (path.stat().st_ino, path.read_bytes()) for path in derived(run)}
    Study(cfg).run()
    assert {path: (path.stat().st_ino, path.read_bytes()) for path in derived(run)} == before
    assert "again" not in "\n".join(said)


def test_a_folder_of_an_older_version_gets_a_manifest(copy: Callable[..., Any], undrawn: None) -> None:
    cfg, run = copy("imp")
    (run / MANIFEST).unlink()
    before = content(run)
    assert [finding.level for finding in check_run(run)] == ["note"]
    assert len(load_runs(run)) == 7
    Study(cfg).run()
    assert content(run) == before
    manifest = read_manifest(run)
    assert manifest
    assert manifest.complete
    assert {"rounds.jsonl", "curves.csv", "config.yaml", "masks/round_001.safetensors"} <= manifest.files.keys()


def test_the_units_of_a_layer_ticket_are_rebuilt(tmp_path: Path, undrawn: None) -> None:
    cfg = configured(tmp_path, *LAYERS)
    study = Study(cfg)
    study.run()
    before = content(study.folder.path)
    for name in ("round_001", "round_001.units"):
        (study.folder.path / "masks" / f"{name}.safetensors").unlink()
    Study(cfg).run()
    assert content(study.folder.path) == before


# -- alterations are noticed -------------------------------------------------------------------------------------------


def set_figure(run: Path) -> Path:
    path = run / "rounds.jsonl"
    path.write_text(path.read_text().replace('"test_accuracy": ', '"test_accuracy": 1', 1))
    return path


def set_option(old: str, new: str) -> Callable[[Path], Path]:
    def alter(run: Path) -> Path:
        path = run / "config.yaml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        return path

    return alter


def swap_masks(run: Path) -> Path:
    shutil.copy(run / "masks/round_001.safetensors", run / "masks/round_002.safetensors")
    return run / "masks/round_002.safetensors"


def damaged(name: str) -> Callable[[Path], Path]:
    def alter(run: Path) -> Path:
        damage(run / name)
        return run / name

    return alter


def more_rows(run: Path) -> Path:
    """A row of a round that the study does not have."""
    path = run / "rounds.jsonl"
    row = json.loads(path.read_text().splitlines()[-1])
    with path.open("a") as file:
        file.write(json.dumps({**row, "round": 7}) + "\n")
    return path


READERS: dict[str, Callable[[Path], object]] = {
    "load_runs": load_runs,
    "rows": lambda run: Run(run).rows,
    "config": lambda run: Run(run).config,
    "curves": curves,
    "details": lambda run: Run(run).details(2),
    "report": lambda run: lines("report", str(run), "-o", str(run.parent / "out.html"), "--static"),
    "compare": lambda run: lines("compare", str(run), str(run.parent / "other"), "--out", str(run.parent / "out")),
    "export": lambda run: lines("export", str(run), "--round", "2", "--out", str(run.parent / "out")),
    "verify": lambda run: lines("store", "verify", "--runs", str(run.parents[1])),
    "charts": lambda run: charts(run),
}
TABLE = {"load_runs", "rows", "curves", "report", "compare", "export", "verify", "charts"}
CONFIG = {"load_runs", "config", "curves", "report", "compare", "export", "verify", "charts"}
ALTERATIONS: dict[str, tuple[Callable[[Path], Path], set[str]]] = {
    "figure": (set_figure, TABLE),
    "row": (more_rows, TABLE),
    "rate": (set_option("lr: 0.05", "lr: 0.5"), CONFIG),
    "seed": (set_option("seed: 0", "seed: 1"), CONFIG),
    "mask": (swap_masks, {"report", "compare", "export", "verify"}),
    "curves": (damaged("curves.csv"), {"curves", "charts", "verify"}),
    "details": (damaged("rounds/round_002.json"), {"details", "compare", "export", "verify"}),
}


def lines(*args: str) -> None:
    """Run a command; what it says becomes an error, whether it refuses or warns."""
    with Said() as said:
        outcome = call(*args)
    if outcome.status or said:
        raise LotteryError(" ".join([*said, outcome.err, outcome.out if args[0] == "store" else ""]))


def charts(run: Path) -> None:
    """The training curves of an interactive report."""
    with Said() as said:
        training_curves(grouped(read_studies(run)))
    if said:
        raise LotteryError(" ".join(said))


@pytest.fixture
def pair(copy: Callable[..., Any], studies: dict[str, tuple[DictConfig, Path]]) -> Path:
    """A run folder, its store, and beside it another of the same network to compare it with."""
    cfg, run = copy("imp")
    (run.parents[1] / ".store").symlink_to(cfg.paths.store)
    shutil.copytree(studies["imp"][1], run.parent / "other")
    return run


@pytest.mark.parametrize("what", ALTERATIONS)
def test_every_reader_says_which_file_was_altered(what: str, pair: Path) -> None:
    """With the remedy. Readers that do not use the file go on."""
    alter, concerned = ALTERATIONS[what]
    path = alter(pair)
    for name, read in READERS.items():
        if name not in concerned:
            if name not in ("compare", "export"):  # which need more than is here
                read(pair)
            continue
        with pytest.raises(LotteryError) as caught:
            read(pair)
        assert str(path) in str(caught.value), name
        assert "again" in str(caught.value), name


def test_what_is_whole_is_read_by_all(pair: Path) -> None:
    for name, read in READERS.items():
        if name != "export":  # needs packages
            read(pair)


def test_paths_may_be_changed_and_a_folder_renamed(copy: Callable[..., Any]) -> None:
    """Where a study moves to is no part of its key."""
    _, run = copy("imp")
    set_option("runs: ", "runs: /elsewhere")(run)
    moved = run.rename(run.with_name("my_best"))
    assert len(load_runs(moved)) == len(Run(moved).rows) == 7
    assert Run(moved).config["paths"]["runs"].startswith("/elsewhere")


def test_an_altered_configuration_is_not_run_as_the_studys(copy: Callable[..., Any]) -> None:
    _, run = copy("imp")
    set_option("lr: 0.05", "lr: 0.5")(run)
    outcome = call("--config", str(run / "config.yaml"))
    assert outcome.status == 2
    assert f"not the configuration of study {run.name}" in outcome.line


def test_an_interrupted_study_is_no_alteration(
    copy: Callable[..., Any], undrawn: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the files of a round and the manifest: what is listed is there, what is not yet is no flaw."""
    cfg, run = copy("imp")
    whole, listed = content(run), read_json(run / MANIFEST)
    shutil.rmtree(run)
    calls, write = iter(range(100)), Files.write

    def killed(record: Files, complete: bool = False) -> None:
        if next(calls) == 3:  # that of the third row
            raise KeyboardInterrupt
        write(record, complete)

    monkeypatch.setattr(Files, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        Study(cfg).run()
    monkeypatch.setattr(Files, "write", write)
    assert (run / "rounds.jsonl").read_bytes().count(b"\n") == 3
    assert check_run(run) == []
    assert len(Run(run).rows) == 3
    Study(cfg).run()
    assert content(run).keys() == {name for name in whole if not name.startswith("figures/")}
    assert read_json(run / MANIFEST)["files"]["curves.csv"] == listed["files"]["curves.csv"]


# -- one table ---------------------------------------------------------------------------------------------------------


def doubled(run: Path) -> bytes:
    """The folder as an older version may have left it: no manifest, every row twice. Returns the rows as they were."""
    path = run / "rounds.jsonl"
    data = path.read_bytes()
    (run / MANIFEST).unlink()
    path.write_bytes(data + data)
    return data


def test_a_doubled_table_counts_once_and_is_repaired(copy: Callable[..., Any], undrawn: None, said: list[str]) -> None:
    cfg, run = copy("imp")
    data = doubled(run)
    assert len(load_runs(run)) == len(Run(run).rows) == 7
    assert "7 rows are there twice, and count once" in "\n".join(said)
    assert any("7 rows are there more than once" in finding.what for finding in check_run(run))
    Study(cfg).run()
    assert (run / "rounds.jsonl").read_bytes() == data
    assert check_run(run) == []


def test_rows_that_are_there_twice_with_different_figures_are_refused(copy: Callable[..., Any]) -> None:
    _, run = copy("imp")
    data = doubled(run)
    (run / "rounds.jsonl").write_bytes(data + data.replace(b'"test_accuracy": ', b'"test_accuracy": 1', 1))
    for read in (load_runs, lambda run: Run(run).rows):
        with pytest.raises(LotteryError, match="round 0 is there twice, with different figures"):
            read(run)


def test_nothing_is_written_before_the_lease_is_held(tmp_path: Path) -> None:
    """Whoever takes the folder over removes the temporary files in it: one of ours would be gone before its rename."""
    folder, stop = RunFolder(tmp_path / "imp" / "0123"), StopFlag()

    def waiting(line: str) -> None:
        stop.signum = SIGINT

    with Lease(folder.path) as other:
        assert other.acquire()
        with pytest.raises(Interrupted):
            folder.open("a: 1\n", stop, waiting)
        assert [path.name for path in folder.path.rglob("*") if path.is_file()] == [lease.NAME]
    folder.open("a: 1\n", StopFlag(), waiting)
    assert (folder.path / "config.yaml").read_text() == "a: 1\n"
    folder.close()


ELSEWHERE = replace(Holder.this_process("another/study"), id="x", host="node7", kernel="another")


@pytest.mark.parametrize("when", ["before the row", "within it"])
def test_who_slept_while_another_finished_the_study_adds_no_row(
    when: str, copy: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, undrawn: None
) -> None:
    """Suspended after the last look at the lease; meanwhile the other has written all rows."""
    cfg, run = copy("imp")
    data = (run / "rounds.jsonl").read_bytes()
    shutil.rmtree(run)
    append = RunFolder._append

    def taken(folder: RunFolder, lines: bytes) -> None:
        if folder.rows:
            (run / "rounds.jsonl").write_bytes(data)
            (run / lease.NAME).write_text(json.dumps(asdict(ELSEWHERE)))
        append(folder, lines)

    def overtaken(folder: RunFolder, *args: Any) -> Any:
        if folder.rows:
            (run / "rounds.jsonl").write_bytes(data)
        return add(folder, *args)

    add = RunFolder.add
    if when == "before the row":
        monkeypatch.setattr(RunFolder, "add", overtaken)
        Study(cfg).run()
    else:
        monkeypatch.setattr(RunFolder, "_append", taken)
        with pytest.raises(LeaseLost):
            Study(cfg).run()
    assert uncached(run) == [json.loads(line) | {"cached": None} for line in data.splitlines()]
