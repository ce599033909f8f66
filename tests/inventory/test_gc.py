"""`store gc` removes what no run folder needs, and nothing else: a study run again afterwards finds what it found."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from command_line_tools import Outcome, call, command, environment, listing
from store_house import SEEDS, TRAININGS, House
from training_tools import Start

from lottery.inventory import garbage
from lottery.inventory.contents import StoredStage
from lottery.inventory.garbage import Plan, clear, clearing
from lottery.lease import Holder, Lease
from lottery.record.folder import RunFolder

Hooks = list[Callable[[int], object]]
HOUR = 3600.0


def gc(house: House, *args: str) -> Outcome:
    outcome = call("store", "gc", "--runs", str(house.runs), *args)
    assert outcome.status == 0, outcome.err
    return outcome


def rows(folder: Path) -> list[dict[str, Any]]:
    """What a study found, but for how long it took."""
    found = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in ("seconds", "cached")} for row in found]


def aged(folder: Path, seconds: float) -> None:
    """As if nothing in a folder had been written for so long."""
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, (time.time() - seconds,) * 2)


def unfinished(house: House) -> StoredStage:
    [entry] = [entry for entry in house.contents.entries if not entry.done]
    return entry


# -- what is needed stays ---------------------------------------------------------------------------------------------


def test_a_finished_study_finds_everything_again(house: House, starts: list[Start]) -> None:
    before, tables = listing(house.store), {seed: (house.folder(seed) / "rounds.jsonl").read_bytes() for seed in SEEDS}
    assert "removed 0 stages" in gc(house, "--yes", "--older-than", "0").out
    assert listing(house.store).keys() - {".trash"} == before.keys()
    for seed in SEEDS:
        house.study(f"seed={seed}").run()
        assert (house.folder(seed) / "rounds.jsonl").read_bytes() == tables[seed]
    assert not starts


def test_what_a_deleted_run_folder_alone_needed_goes(house: House, starts: list[Start]) -> None:
    gone, table = house.named(1), rows(house.folder(1))
    shutil.rmtree(house.folder(1))
    said = gc(house).out
    assert f"would remove {TRAININGS} stages" in said
    assert house.keys == house.named(0) | gone
    assert f"removed {TRAININGS} stages" in gc(house, "--yes").out
    assert house.keys == house.named(0)
    house.study("seed=0").run()
    assert not starts
    house.study("seed=1").run()
    assert len(starts) == TRAININGS
    assert rows(house.folder(1)) == table


def test_what_two_studies_share_stays_while_one_of_them_does(house: House, starts: list[Start]) -> None:
    shared = house.named(0)
    longer = house.study("seed=0", "method.rounds=3", "controls.random=1")
    longer.run()
    further = len(starts)
    assert further == 2 + 3  # the third round and its reinit; three random controls
    assert len(house.keys) == len(SEEDS) * TRAININGS + further
    shutil.rmtree(house.folder(0))
    assert "removed 0 stages" in gc(house, "--yes").out
    shutil.rmtree(longer.folder.path)
    house.study("seed=0").run()
    assert f"removed {further} stages" in gc(house, "--yes").out
    assert shared <= house.keys
    assert len(starts) == further


@pytest.mark.parametrize("batchnorm", ["rewind", "reset"])
def test_a_stretch_that_no_round_names_stays(batchnorm: str, house: House, starts: list[Start]) -> None:
    """The dense training of seed 0 is there, without the state at step 11: that stretch is a stage of its own.

    With `reset` a ticket starts from a state that is put together of two, which no stage has handed on.
    """
    study = house.study("seed=0", "rewind.to=11it", f"rewind.batchnorm={batchnorm}")
    study.run()
    [stretch] = [entry for entry in house.contents.entries if entry.inputs["until"] == 11]
    for seed in SEEDS:
        shutil.rmtree(house.folder(seed))
    gc(house, "--yes", "--older-than", "0")
    assert stretch.key in house.keys
    starts.clear()
    house.study("seed=0", "rewind.to=11it", f"rewind.batchnorm={batchnorm}").run()
    assert not starts


def test_an_interrupted_study_goes_on_where_it_was(house: House, on_batch: Hooks, starts: list[Start]) -> None:
    """What it has finished, what it has begun, and what it would find: its checkpoint is days old, and it stays."""
    undisturbed = rows(house.folder(1))
    for path in (house.folder(1) / "rounds").iterdir():
        key = json.loads(path.read_text())["stages"]["train"]
        shutil.rmtree(house.store / "train" / key)
    shutil.rmtree(house.folder(1))
    folder = house.interrupted("seed=1", at=25, on_batch=on_batch)
    aged(house.store, 30 * 24 * HOUR)
    assert "removed 0 stages" in gc(house, "--yes").out
    starts.clear()
    house.study("seed=1").run()
    assert starts[0].module.progress.step == 30
    assert len(starts) == TRAININGS
    assert starts[0].rates == [0.05] * (30 - 26)  # the dense training, from its 26th step on
    assert rows(folder) == undisturbed


def test_a_finished_stage_that_the_study_has_not_recorded_yet(house: House, starts: list[Start]) -> None:
    """Killed between the end of a training and the line in rounds.jsonl."""
    folder = house.folder(1)
    lines = (folder / "rounds.jsonl").read_text().splitlines(keepends=True)
    (folder / "rounds.jsonl").write_text(lines[0])
    for name in ("round_001", "round_001.reinit-0", "round_002", "round_002.reinit-0"):
        (folder / "rounds" / f"{name}.json").unlink()
    status = json.loads((folder / "status.json").read_text())
    for state in ("running", "interrupted", "failed", "something new"):
        (folder / "status.json").write_text(json.dumps({**status, "state": state}))
        assert "would remove 0 stages" in gc(house).out
    (folder / "status.json").unlink()
    assert "removed 0 stages" in gc(house, "--yes").out
    house.study("seed=1").run()
    assert not starts
    (folder / "rounds.jsonl").write_text(lines[0])  # and done, says its status
    for name in ("round_001", "round_001.reinit-0", "round_002", "round_002.reinit-0"):
        (folder / "rounds" / f"{name}.json").unlink()
    assert "would remove 0 stages" in gc(house).out  # its manifest knows of more rows
    (folder / "manifest.json").unlink()  # as of an older version
    assert f"would remove {TRAININGS - 1} stages" in gc(house).out


@pytest.mark.parametrize("damage", ["a round's details", "they are gone", "the table"])
def test_a_finished_study_whose_record_is_damaged_keeps_all_that_may_be_its_own(damage: str, house: House) -> None:
    folder = house.folder(1)
    details = folder / "rounds" / "round_001.json"
    if damage == "a round's details":
        details.write_text("{")
    elif damage == "they are gone":
        details.unlink()
    else:
        (folder / "rounds.jsonl").write_text("{\n")
        shutil.rmtree(folder / "rounds")
        (folder / "rounds").mkdir()
    assert "would remove 0 stages" in gc(house).out


def test_other_studies_that_are_unfinished_do_not_keep_everything(house: House, on_batch: Hooks) -> None:
    """An unfinished study keeps what could be its own by network, data, recipe and seeds: no more."""
    shutil.rmtree(house.folder(1))
    house.interrupted("seed=2", at=12, on_batch=on_batch)
    assert f"would remove {TRAININGS} stages" in gc(house).out
    house.interrupted("seed=1", "method.rate=0.3", at=8, on_batch=on_batch)  # it has come to its first ticket
    assert "would remove 0 stages" in gc(house).out


def test_a_run_folder_whose_needs_cannot_be_told_stops_everything(house: House) -> None:
    shutil.rmtree(house.folder(0))
    (house.folder(1) / "status.json").unlink()
    config = house.folder(1) / "config.yaml"
    for text, place in (("- a\n- b", ""), ("a: [b", ", line 2"), (None, "")):
        config.unlink() if text is None else config.write_text(text)
        outcome = call("store", "gc", "--runs", str(house.runs), "--yes")
        assert outcome.status == 1
        assert outcome.line.startswith(f"lottery: {config}{place}: ")
        assert outcome.line.endswith("repair it, or remove the run folder")
    assert len(house.keys) == len(SEEDS) * TRAININGS


def test_a_folder_that_cannot_be_searched_stops_everything(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever's run folders are in it would lose their stages; to `ls` it does not matter."""
    scandir = os.scandir

    def refused(path: Path) -> Any:
        if path == house.folder(1):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    outcome = call("store", "gc", "--runs", str(house.runs), "--yes")
    assert outcome.status == 1
    assert outcome.line == f"lottery: {house.folder(1)}: cannot be searched for run folders: Permission denied"
    assert len(house.keys) == len(SEEDS) * TRAININGS
    assert call("store", "ls", "--runs", str(house.runs)).out.endswith("in no round of 1 run folder\n")


def test_run_folders_are_found_at_any_depth_and_behind_links(house: House, tmp_path: Path) -> None:
    (tmp_path / "archive" / "2024").mkdir(parents=True)
    house.folder(1).rename(tmp_path / "archive" / "2024" / "kept")
    assert f"would remove {TRAININGS} stages" in gc(house).out
    assert "would remove 0 stages" in gc(house, "--runs", str(tmp_path / "archive")).out
    (house.runs / "link").symlink_to(tmp_path / "archive")
    (tmp_path / "archive" / "2024" / "circle").symlink_to(house.runs)
    assert "would remove 0 stages" in gc(house).out


def test_without_a_run_folder_nothing_goes_unless_all_is_said(house: House, tmp_path: Path) -> None:
    store = tmp_path / "shared"
    house.store.rename(store)
    (tmp_path / "empty").mkdir()
    for args, why in (
        ((), "no run folders named"),
        (("--runs", str(tmp_path / "empty")), f"no run folder in {tmp_path / 'empty'}"),
    ):
        outcome = call("store", "gc", "--store", str(store), "--yes", *args)
        assert outcome.status == 2
        assert outcome.line == f"lottery: store gc: {why}; --runs DIR names them, --all goes on without any"
    both = call("store", "gc", "--store", str(store), "--runs", str(tmp_path / "empty"), "--runs", str(house.runs))
    assert "would remove 0 stages" in both.out
    assert (
        f"removed {len(SEEDS) * TRAININGS} stages" in call("store", "gc", "--store", str(store), "--all", "--yes").out
    )
    assert not [path for path in store.rglob("*") if path.is_file()]


# -- who is at work is left alone -------------------------------------------------------------------------------------


@pytest.fixture
def begun(house: House, on_batch: Hooks) -> StoredStage:
    """A stage that somebody has begun, whose run folder is not there."""
    folder = house.interrupted("seed=5", at=12, on_batch=on_batch)
    shutil.rmtree(folder)
    return unfinished(house)


def test_a_young_unfinished_stage_stays_for_a_day(house: House, begun: StoredStage) -> None:
    assert "would remove 0 stages" in gc(house).out
    assert "would remove 1 stage " in gc(house, "--older-than", "0").out
    aged(begun.folder, 23 * HOUR)
    assert "would remove 0 stages" in gc(house).out
    aged(begun.folder, 25 * HOUR)
    assert "would remove 0 stages" in gc(house, "--older-than", "2d").out
    assert "removed 1 stage " in gc(house, "--yes").out
    assert begun.key not in house.keys


def test_a_living_lease_protects_its_stage_and_what_it_may_need(
    house: House, begun: StoredStage, tmp_path: Path
) -> None:
    """The study of a stage that is being computed may be anywhere: all of the same network, data and recipe stays."""
    aged(house.store, 48 * HOUR)
    with Lease(begun.folder) as lease:
        assert lease.acquire()
        aged(begun.folder, 48 * HOUR)  # a clock that jumped: the process is known to live
        assert "would remove 0 stages" in gc(house, "--older-than", "0").out
    assert "would remove 1 stage " in gc(house).out
    dense = house.stage(1, "round_000")
    (tmp_path / "elsewhere").mkdir()
    house.folder(1).rename(tmp_path / "elsewhere" / "run")
    with Lease(house.store / "train" / ("0" * 64)) as lease:
        assert lease.acquire()
        about = json.loads((dense.folder / "stage.json").read_text())
        about["inputs"]["mask"] = "0" * 64  # a further round of the study of seed 1
        (lease.path.parent / "stage.json").write_text(json.dumps(about))
        assert "removed 1 stage " in gc(house, "--yes", "--older-than", "0").out  # the one begun above, given up
    assert len(house.keys) == len(SEEDS) * TRAININGS + 1
    assert f"would remove {TRAININGS + 1} stages" in gc(house, "--older-than", "0").out


def someone_elses(entry: StoredStage, age: float, **changes: Any) -> None:
    """A lease on the stage, touched so long ago."""
    holder = replace(Holder.this_process("study abc"), **changes)
    (entry.folder / ".lease").write_text(json.dumps(asdict(holder)))
    os.utime(entry.folder / ".lease", (time.time() - age,) * 2)


@pytest.mark.parametrize(
    ("age", "holder", "stays"),
    [
        (0.0, {"kernel": "elsewhere"}, True),  # another machine: the touch is all that is known
        (50 * 60.0, {"kernel": "elsewhere"}, True),
        (70 * 60.0, {"kernel": "elsewhere"}, False),
        (0.0, {"pid": 2**22 + 1}, False),  # this machine, and no such process
        (0.0, {"started": "1"}, False),  # the process number is used again
        (70 * 60.0, {}, True),  # this machine, and it runs
    ],
)
def test_whose_lease_counts(age: float, holder: dict[str, Any], stays: bool, house: House, begun: StoredStage) -> None:
    aged(begun.folder, 48 * HOUR)
    someone_elses(begun, age, **holder)
    gc(house, "--yes", "--older-than", "0")
    assert (begun.key in house.keys) is stays


def test_a_stage_that_is_taken_up_at_the_last_moment_stays(house: House, begun: StoredStage) -> None:
    """Planned, and then somebody continues it; or has finished it."""
    lease = Lease(begun.folder)
    assert lease.acquire()
    with lease:
        cleared = clear(house.store, Plan([begun]))
    assert cleared.stages == 0
    assert cleared.kept == [f"train {begun.short}: somebody is at work on it"]
    (begun.folder / "DONE").write_text("{}")
    assert clear(house.store, Plan([begun])).stages == 0
    assert {"stage.json", "DONE"} <= {path.name for path in begun.folder.iterdir()}
    assert not (begun.folder / ".lease").exists()


def test_a_study_that_begins_meanwhile_gets_its_stages_back(house: House) -> None:
    removed = house.contents.entries
    before = listing(house.store)
    with clearing(house.store):
        cleared = clear(house.store, Plan(removed), lambda: {removed[0].key: "study/new"})
    assert cleared.stages == len(removed) - 1
    assert cleared.kept == [f"train {removed[0].short}: needed by study/new, which is new"]
    assert house.keys == {removed[0].key}
    after = listing(removed[0].folder)
    assert after == {name.rpartition("/")[2]: data for name, data in before.items() if f"{removed[0].key}/" in name}


def test_a_stage_that_is_computed_anew_meanwhile_is_not_overwritten(house: House) -> None:
    [entry] = [house.stage(0)]

    def look_again() -> dict[str, str]:
        entry.folder.mkdir()
        (entry.folder / "stage.json").write_text("new")
        return {entry.key: "study/new"}

    assert clear(house.store, Plan([entry]), look_again).stages == 1
    assert listing(entry.folder) == {"stage.json": b"new"}


def test_a_stage_that_cannot_be_put_back_is_not_deleted(house: House) -> None:
    [entry] = [house.stage(0)]
    kind = entry.folder.parent

    def look_again() -> dict[str, str]:
        kind.rename(kind.with_name("elsewhere"))
        kind.write_text("no folder")
        return {entry.key: "study/new"}

    cleared = clear(house.store, Plan([entry]), look_again)
    assert (cleared.stages, cleared.kept) == (0, [])
    [line] = cleared.failed
    place = Path(line.partition("before the next gc move ")[2].partition(" to ")[0])
    assert "needed by study/new, but cannot be put back" in line
    assert {"stage.json", "DONE"} <= {path.name for path in place.iterdir()}


def test_gc_in_the_middle_of_a_study(house: House, on_batch: Hooks, starts: list[Start]) -> None:
    """At every fifth step of every training, with the study's run folder known: nothing of it goes."""
    table = rows(house.folder(1))
    shutil.rmtree(house.folder(1))
    gc(house, "--yes")
    on_batch.append(lambda step: gc(house, "--yes", "--older-than", "0") if step % 5 == 3 else None)
    house.study("seed=1").run()
    assert rows(house.folder(1)) == table
    assert len(starts) == TRAININGS
    assert house.keys == house.named(0) | house.named(1)


def test_gc_by_somebody_who_does_not_know_the_study(house: House, on_batch: Hooks, starts: list[Start]) -> None:
    """A study whose run folder is elsewhere, on the same store, while it trains: its lease keeps its family."""
    for seed in SEEDS:
        shutil.rmtree(house.folder(seed))
    gc(house, "--yes", "--all", "--older-than", "0")
    study = house.study("seed=1")
    study.folder = RunFolder(house.runs.parent / "elsewhere")
    on_batch.append(lambda step: gc(house, "--yes", "--all", "--older-than", "0") if step % 5 == 3 else None)
    study.run()
    assert len(starts) == TRAININGS
    assert len(house.keys) == TRAININGS
    on_batch.clear()
    study.run()
    assert len(starts) == TRAININGS


# -- how it goes ------------------------------------------------------------------------------------------------------


def test_a_dry_run_is_the_default_and_touches_nothing(house: House) -> None:
    shutil.rmtree(house.folder(1))
    aged(house.runs, 2 * HOUR)  # so that no age changes while we look
    before, times = listing(house.runs), {path: path.stat().st_mtime_ns for path in house.runs.rglob("*")}
    assert gc(house).out == gc(house, "--dry-run").out
    said = gc(house).out
    assert listing(house.runs) == before
    assert {path: path.stat().st_mtime_ns for path in house.runs.rglob("*")} == times
    size = sum(entry.size for entry in house.contents.entries if entry.key not in house.named(0))
    assert said.endswith(f"would remove {TRAININGS} stages and 0 leftovers, {size / 1000:.1f} kB; --yes does it\n")
    for entry in house.contents.entries:
        assert (entry.short in said) == (entry.key not in house.named(0))


def test_leftovers_go_when_they_are_old_and_nobody_needs_them(house: House, begun: StoredStage) -> None:
    kept = house.stage(0).folder
    old = [house.store / ".x.tmp", house.store / "train" / ".y.tmp", kept / ".state.tmp", begun.folder / ".z.tmp"]
    young = [path.with_name(f".young{path.name}") for path in old]
    for path in [*old, *young]:
        path.write_bytes(b"1234")
    for path in old:
        os.utime(path, (time.time() - 2 * HOUR,) * 2)
    (kept / "checkpoint.safetensors").write_bytes(b"12345")
    someone_elses(house.stage(0), 0.0, pid=2**22 + 1)
    someone_elses(house.stage(1), 2 * HOUR, kernel="elsewhere")
    someone_elses(begun, 0.0, pid=2**22 + 1)
    (kept.parent / "notes.tmp").write_text("not ours")
    said = gc(house, "--yes").out
    assert "removed 0 stages and 8 leftovers" in said
    assert not any(path.exists() for path in old)
    assert all(path.exists() for path in young)
    assert {path.name for path in kept.iterdir()} == {*house.stage(0).sealed, "DONE", ".young.state.tmp"}
    assert (begun.folder / "checkpoint.safetensors").exists()
    assert not list(house.store.rglob(".lease"))
    assert (kept.parent / "notes.tmp").exists()


def test_a_gc_that_is_cut_short_is_finished_by_the_next(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(house.folder(1))
    original = shutil.rmtree

    def cut_short(path: Path, **options: Any) -> None:
        (next(path.iterdir())).unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(garbage.shutil, "rmtree", cut_short)
    outcome = call("store", "gc", "--runs", str(house.runs), "--yes")
    assert outcome.status == 130
    monkeypatch.setattr(garbage.shutil, "rmtree", original)
    assert house.keys == house.named(0)  # from the first moment on none of them is half there
    assert (
        not list((house.store / ".trash").rglob("DONE")) or len(list((house.store / ".trash").iterdir())) == TRAININGS
    )
    assert f"removed 0 stages and {TRAININGS} leftovers" in gc(house, "--yes").out
    assert not list((house.store / ".trash").iterdir())


def test_two_at_once(house: House) -> None:
    """Real processes on one store: each stage is removed by one of them, and none is missed."""
    shutil.rmtree(house.folder(1))
    (house.store / ".trash").mkdir()
    with Lease(house.store / ".trash", "store gc") as lease:  # so that both are there when it begins
        assert lease.acquire()
        args = command(["store", "gc", "--runs", str(house.runs), "--yes"])
        both = [
            subprocess.Popen(args, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        told = [process.stdout.readline() for process in both if process.stdout]
        assert [line.partition(", process ")[0] for line in told] == ["waiting for store gc"] * 2
        assert len(house.keys) == len(SEEDS) * TRAININGS
    outputs = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    removed = [line for said, _ in outputs for line in said.splitlines() if line.startswith("removed ")]
    assert sorted(int(line.split()[1]) for line in removed) == [0, TRAININGS]
    assert house.keys == house.named(0)


def test_a_stage_that_vanished_meanwhile_is_nobodys_business(house: House, begun: StoredStage) -> None:
    entries = house.contents.entries
    for entry in entries:
        shutil.rmtree(entry.folder)
    cleared = clear(house.store, Plan(entries, {house.store / ".gone.tmp": 0.0}))
    assert (cleared.stages, cleared.leftovers, cleared.kept, cleared.failed) == (0, 0, [], [])
    assert not house.keys


def test_what_cannot_be_removed_is_named(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user's stage, in a folder that is not ours to write."""
    shutil.rmtree(house.folder(1))
    rename = Path.rename

    def refused(path: Path, target: Path) -> Path:
        if path.name in victims:
            raise PermissionError(13, "Permission denied", str(path))
        return rename(path, target)

    victims = sorted(house.keys - house.named(0))[:1]
    monkeypatch.setattr(Path, "rename", refused)
    outcome = call("store", "gc", "--runs", str(house.runs), "--yes")
    assert outcome.status == 1
    assert f"removed {TRAININGS - 1} stages" in outcome.out
    assert outcome.line == f"lottery: train {victims[0][:12]}: cannot be removed: Permission denied"
    assert house.keys == {*house.named(0), *victims}


def test_readers_never_see_half_a_stage(house: House) -> None:
    """While gc removes, a listing shows each stage whole or not at all."""
    seen: list[str] = []
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            seen.extend(entry.defect or ("" if entry.done else "not done") for entry in house.contents.entries)

    reader = threading.Thread(target=look)
    reader.start()
    shutil.rmtree(house.folder(0))
    shutil.rmtree(house.folder(1))
    try:
        gc(house, "--yes", "--all")
    finally:
        over.set()
        reader.join()
    assert not house.keys
    assert set(seen) <= {""}
