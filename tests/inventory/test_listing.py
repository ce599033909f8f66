"""`store ls` and `store show`: what is there, in words; also while others work on it, and remove from it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from command_line_tools import SLOW_IMPORTS, call, environment
from store_house import SEEDS, TRAININGS, House

from lottery.inventory import contents
from lottery.inventory.contents import StoredStage, read_contents
from lottery.lease import Holder, Lease
from lottery.printing import age_text, size_text


def listed(house: House) -> dict[str, dict[str, Any]]:
    """What `ls --json` says: key -> stage."""
    outcome = call("store", "ls", "--runs", str(house.runs), "--json")
    assert outcome.status == 0
    return {stage["key"]: stage for stage in json.loads(outcome.out)}


def lines(house: House) -> list[str]:
    outcome = call("store", "ls", "--runs", str(house.runs), "--all")
    assert outcome.status == 0
    return outcome.out.splitlines()


def line(house: House, entry: StoredStage) -> str:
    [found] = [line for line in lines(house) if line.startswith(entry.short)]
    return found


def test_every_stage_is_described_as_its_study_describes_it(house: House) -> None:
    stages = listed(house)
    assert len(stages) == len(SEEDS) * TRAININGS
    for seed in SEEDS:
        folder = house.folder(seed)
        for path in (folder / "rounds").iterdir():
            number, _, control = path.stem.removeprefix("round_").partition(".")
            stage = stages.pop(json.loads(path.read_text())["stages"]["train"])
            assert stage["state"] == "done"
            assert (stage["step"], stage["steps"]) == ((0, 30) if number == "000" else (7, 23))
            assert stage["density"] == pytest.approx(0.8 ** int(number), abs=0.01)
            assert stage["data"] == "digits (96 images)"
            assert stage["model"] == "convolutional dropout=0.25"
            rounds = [f"round {int(number)} {control.replace('-', ' ')}".rstrip()]
            assert stage["used_by"] == [{"run": str(folder), "rounds": rounds}]
            files = [file for file in Path(stage["folder"]).iterdir()]
            assert stage["bytes"] == sum(file.stat().st_size for file in files)
    assert not stages


def test_the_table_is_in_the_order_of_studies_and_rounds(house: House) -> None:
    table = lines(house)
    expected = [
        f"study/{house.folder(seed).name} round {rest}"
        for seed in sorted(SEEDS, key=lambda seed: house.folder(seed).name)
        for rest in ("0", "1", "1 reinit 0", "2", "2 reinit 0")
    ]
    assert [row.split("  ")[-1] for row in table[1 : 1 + len(expected)]] == expected
    assert table[-1].startswith("train: 10 stages (10 done), ")


def test_the_table_is_limited_to_what_was_written_last(house: House) -> None:
    shown, every = call("store", "ls", "--runs", str(house.runs), "--newest", "3").out.splitlines(), lines(house)
    newest = sorted(listed(house).values(), key=lambda stage: -stage["modified"])[:3]
    assert {text.split()[0] for text in shown[1:4]} == {stage["key"][: len(shown[1].split()[0])] for stage in newest}
    assert shown[4] == f"and {len(listed(house)) - 3} stages written before; --all lists them, --newest N the last N"
    assert shown[5:] == every[-len(shown[5:]) :]  # totals of all
    assert call("store", "ls", "--newest", "0").line.startswith("lottery: --newest: got 0, expected a whole number")


def test_show_says_what_came_from_what(house: House) -> None:
    dense, ticket = house.stage(0, "round_000"), house.stage(0, "round_001")
    said = call("store", "show", dense.key[:8], "--runs", str(house.runs)).out
    assert dense.key in said
    for other in ("round_001", "round_002"):
        assert house.stage(0, other).short in said
    assert house.stage(0, "round_001.reinit-0").short not in said  # starts from weights of its own
    assert house.stage(1, "round_001").short not in said
    for name, digest in json.loads((dense.folder / "DONE").read_text()).items():
        assert name in said
        assert digest in said
    said = call("store", "show", ticket.key.upper(), "--store", str(house.store)).out
    assert f"train {dense.short} at step 7" in said
    assert f"{house.folder(0)}  round 1" in said
    assert "0.05" in said  # the learning rate
    assert f"{ticket.result['test_accuracy']}" in said


def test_a_key_that_is_unknown_or_ambiguous(house: House) -> None:
    key = house.stage(0).key
    wrong = key[:6] + ("0" if key[6] != "0" else "1")
    assert call("store", "show", wrong, "--runs", str(house.runs)).line.endswith(
        f"no stage begins with '{wrong}' (did you mean '{key[:7]}'?)"
    )
    outcome = call("store", "show", "", "--runs", str(house.runs))
    assert outcome.status == 2
    assert "10 stages begin with ''" in outcome.line


def test_the_totals_count_what_no_round_names(house: House) -> None:
    shutil.rmtree(house.folder(1))
    unused = len(house.keys - house.named(0))
    assert f"{unused} stages (" in lines(house)[-1]
    assert lines(house)[-1].endswith("in no round of 1 run folder")


# -- what is not finished ---------------------------------------------------------------------------------------------


def someone_elses(entry: StoredStage, **changes: Any) -> None:
    """A lease on the stage."""
    holder = replace(Holder.this_process("study abc"), **changes)
    (entry.folder / ".lease").write_text(json.dumps(asdict(holder)))


def test_an_interrupted_stage_and_whoever_continues_it(house: House, on_batch: list[Callable[[int], object]]) -> None:
    house.interrupted("seed=5", at=12, on_batch=on_batch)
    [entry] = [entry for entry in house.contents.entries if not entry.done]
    said = listed(house)[entry.key]
    assert (said["state"], said["checkpoint_step"]) == ("unfinished", 13)  # the step under way is finished first
    assert line(house, entry).endswith("saved at step 13")

    with_lease = Lease(entry.folder, "study/abc")
    assert with_lease.acquire()
    with with_lease:
        assert listed(house)[entry.key]["state"] == "running"
        assert f"by study/abc, process {os.getpid()} on " in line(house, entry)
    assert listed(house)[entry.key]["state"] == "unfinished"

    someone_elses(entry, pid=2**22 + 1)  # no such process
    assert listed(house)[entry.key]["state"] == "unfinished"
    someone_elses(entry, kernel="elsewhere", host="node7")
    assert listed(house)[entry.key]["state"] == "running"
    os.utime(entry.folder / ".lease", (time.time() - 900,) * 2)
    assert listed(house)[entry.key]["state"] == "silent"
    assert "process" in line(house, entry)
    assert line(house, entry).endswith("last heard of 15m ago")
    os.utime(entry.folder / ".lease", (time.time() - 7200,) * 2)
    assert listed(house)[entry.key]["state"] == "unfinished"


# -- what is not as it should be --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda folder: (folder / "result.json").unlink(), "result.json: missing"),
        (lambda folder: (folder / "DONE").write_text("{"), "DONE: not JSON"),
        (lambda folder: (folder / "DONE").write_text("{}"), "DONE: does not name result.json"),
        (lambda folder: (folder / "stage.json").write_text("[]"), "stage.json: not a JSON object"),
        (lambda folder: (folder / "stage.json").unlink(), "stage.json: missing"),
    ],
)
def test_damage_that_shows_at_first_sight(house: House, damage: Callable[[Path], object], what: str) -> None:
    entry = house.stage(0)
    damage(entry.folder)
    said = listed(house)[entry.key]
    assert said["state"] == "damaged"
    assert said["note"].startswith(what)
    assert what in line(house, entry)
    assert [stage["state"] for stage in listed(house).values()].count("done") == len(house.keys) - 1


def test_what_is_no_stage_is_left_out_and_counted(house: House) -> None:
    (house.store / "README").write_text("mine")
    (house.store / "train" / "notes").mkdir()
    (house.store / "train" / ("f" * 64)).write_text("a file")
    (house.store / "train" / ("e" * 64)).mkdir()  # what a kill leaves between two system calls
    (house.store / ".hidden").mkdir()
    stages = listed(house)
    assert stages.pop("e" * 64)["state"] == "unfinished"
    assert len(stages) == len(SEEDS) * TRAININGS
    assert lines(house)[-1].startswith("3 other things, which are no stages, such as ")


def test_a_stage_that_vanishes_while_it_is_read(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another gc removes it: before its folder is opened, or between any two of its files."""
    original = contents._object
    for reads in range(3):
        entry, seen = house.contents.entries[0], []

        def read(path: Path, entry: StoredStage = entry, seen: list[Path] = seen, reads: int = reads) -> Any:
            if path.parent == entry.folder:
                seen.append(path)
                if len(seen) > reads:
                    shutil.rmtree(entry.folder, ignore_errors=True)
            return original(path)

        monkeypatch.setattr(contents, "_object", read)
        found = read_contents(house.store)
        monkeypatch.undo()
        assert len(seen) == 2  # stage.json and DONE
        assert (entry.key in {other.key for other in found.entries}) == (reads == 2)
        assert not [other.defect for other in found.entries if other.defect]


def test_a_run_folder_that_is_torn_still_counts_as_a_user(house: House) -> None:
    folder = house.folder(0)
    (folder / "rounds.jsonl").write_text("{torn")
    (folder / "rounds" / "round_002.json").write_text("{")
    (folder / "status.json").unlink()
    assert listed(house)[house.stage(0).key]["used_by"][0]["run"] == str(folder)


# -- the command ------------------------------------------------------------------------------------------------------


def test_it_answers_without_torch(house: House) -> None:
    code = (
        "import sys\nfrom lottery.__main__ import main\n"
        "for args in (['ls'], ['show', sys.argv[1]], ['gc'], ['verify']):\n"
        "    assert main(['store', *args, '--runs', sys.argv[2]]) == 0\n"
        f"heavy = {{'numpy', 'hydra', *{SLOW_IMPORTS}}} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    arguments = [sys.executable, "-c", code, house.stage(0).key, str(house.runs)]
    done = subprocess.run(arguments, env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_store_is_found_by_its_run_folders(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def stages(*args: str) -> set[tuple[str, str]]:
        found = json.loads(call("store", "ls", "--json", *args).out)
        return {(stage["key"], str(Path(stage["folder"]).resolve())) for stage in found if stage["used_by"]}

    everything = {(entry.key, str(entry.folder)) for entry in house.contents.entries}
    assert stages("--runs", str(house.runs)) == everything
    assert stages("--store", str(house.store)) == everything
    assert stages("--runs", str(house.folder(0))) == everything
    monkeypatch.chdir(house.runs.parent)
    assert stages() == everything
    house.folder(1).rename(house.runs.parent / "moved")
    assert stages("--runs", "moved", "--store", "runs/.store") == everything
    assert {key for key, _ in stages()} == house.named(0)


def test_places_that_are_not_there(house: House, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    assert call("store", "ls", "--store", str(nowhere)).line.startswith(f"lottery: no store at {nowhere}; --store DIR")
    assert call("store", "gc", "--runs", str(nowhere)).line == f"lottery: --runs: no folder {nowhere}"
    assert call("store", "ls", "--store", str(house.runs)).line.endswith(f"their store is {house.store}")
    other = House(tmp_path / "other")
    other.store.mkdir(parents=True)
    two = call("store", "ls", "--runs", str(house.runs), "--runs", str(other.runs))
    assert "each of these has a store of its own" in two.line
    assert "--store says which" in two.line
    assert call("store", "ls", "--store", str(other.store)).out == f"{other.store}: no stages\n"
    assert not list(other.store.iterdir())


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ((), "store: got '', expected ls, show, gc or verify"),
        (("verfy",), "store: got 'verfy', expected ls, show, gc or verify (did you mean 'verify'?)"),
        (("gc", "--yes", "--dry-run"), "store gc: either --yes or --dry-run"),
        (("gc", "--older-than", "5"), "--older-than: got '5', expected a time such as 30m, 12h or 7d"),
        (("ls", "--jsn"), "store ls: unrecognized arguments: --jsn; --help says more"),
    ],
)
def test_arguments_that_are_wrong(args: tuple[str, ...], expected: str) -> None:
    outcome = call("store", *args)
    assert outcome.status == 2
    assert outcome.line == f"lottery: {expected}"


def test_sizes_and_ages_in_their_largest_unit() -> None:
    assert [size_text(count) for count in (0, 999, 1000, 1_234_567, 5 * 10**9, 3 * 10**13)] == [
        "0 B", "999 B", "1.0 kB", "1.2 MB", "5.0 GB", "30.0 TB",
    ]  # fmt: skip
    ages = [age_text(seconds) for seconds in (-3, 0, 59, 60, 7200, 86400 * 40)]
    assert ages == ["0s", "0s", "59s", "1m", "2h", "40d"]
