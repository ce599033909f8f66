"""`store verify` finds whatever was changed, says which file of which stage, and gives a way out that works."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command_line_tools import Outcome, call, listing
from store_house import SEEDS, TRAININGS, House, flip, reseal
from training_tools import Start

from lottery.inventory import verify
from lottery.inventory.contents import StoredStage
from lottery.inventory.hashing import Hashed, hashed
from lottery.inventory.verify import check_mask, check_stage
from lottery.lease import Lease
from lottery.state import load_state, save_state
from lottery.ticket import Mask

Hooks = list[Callable[[int], object]]


def verified(house: House, *args: str) -> Outcome:
    return call("store", "verify", "--runs", str(house.runs), *args)


def complaints(outcome: Outcome) -> list[str]:
    """The lines about what is wrong."""
    return outcome.out.split("checked ")[0].splitlines()


def test_what_is_as_it_was_written(house: House) -> None:
    before = listing(house.runs)
    outcome = verified(house, "--remove")
    assert (outcome.status, outcome.err) == (0, "")
    size = sum(entry.size for entry in house.contents.entries)
    said = f"checked {len(SEEDS) * TRAININGS} stages ({size / 1000:.1f} kB) and 6 masks: all as it was written\n"
    assert outcome.out == said
    assert listing(house.runs) == before


def edit(path: Path, change: Callable[[dict], object]) -> None:
    """Change a JSON file."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def set_done(folder: Path) -> None:
    edit(folder / "DONE", lambda done: done.update({"state.safetensors": "0" * 64}))


def forget_state(folder: Path) -> None:
    edit(folder / "DONE", lambda done: done.pop("state.safetensors"))


def other_inputs(folder: Path) -> None:
    """All that DONE says is right, but the numbers are another training's."""
    edit(folder / "stage.json", lambda about: about["inputs"]["recipe"]["optim"].update(lr=0.1))
    reseal(folder, "stage.json")


def other_key(folder: Path) -> None:
    edit(folder / "stage.json", lambda about: about.update(key="0" * 64))
    reseal(folder, "stage.json")


def other_state(folder: Path) -> None:
    """As if the bit had flipped before the stage was sealed."""
    state = load_state(folder / "state.safetensors")
    next(iter(state.values())).view(torch.uint8).view(-1)[0] ^= 1
    save_state(state, folder / "state.safetensors")
    reseal(folder, "state.safetensors")


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "DONE altered": (set_done, "state.safetensors: changed since the stage was finished"),
    "DONE cut short": (lambda folder: os.truncate(folder / "DONE", 40), "DONE: not JSON"),
    "DONE no object": (lambda folder: (folder / "DONE").write_text("7"), "DONE: not a JSON object"),
    "DONE forgets a file": (forget_state, "state.safetensors: DONE does not name it"),
    "a bit of a state": (
        lambda folder: flip(folder / "state.safetensors", -3),
        "state.safetensors: changed since the stage was finished",
    ),
    "a bit of a state's header": (
        lambda folder: flip(folder / "state.safetensors", 20),
        "state.safetensors: changed since the stage was finished",
    ),
    "a state cut short": (
        lambda folder: os.truncate(folder / "state.safetensors", 1000),
        "state.safetensors: changed since the stage was finished (cut short, or its header is damaged)",
    ),
    "a state of another training": (other_state, "state.safetensors: holds another state than result.json says ("),
    "a result edited": (
        lambda folder: edit(folder / "result.json", lambda result: result.update(test_accuracy=1.0, kept=3)),
        "result.json: changed since the stage was finished",
    ),
    "a file deleted": (lambda folder: (folder / "state.safetensors").unlink(), "state.safetensors: missing"),
    "the inputs edited": (other_inputs, "stage.json: its inputs are not those that the key stands for"),
    "the key edited": (other_key, "stage.json: its inputs are not those that the key stands for"),
    "no stage.json": (lambda folder: (folder / "stage.json").unlink(), "stage.json: missing or not readable"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_and_named(name: str, house: House) -> None:
    damage, what = DAMAGE[name]
    entry = house.stage(0, "round_002")
    damage(entry.folder)
    outcome = verified(house)
    assert outcome.status == 1
    assert complaints(outcome)[0].startswith(f"train {entry.short}: {what}")
    assert all(line.startswith(f"train {entry.short}: ") for line in complaints(outcome))
    assert ": 1 stage damaged, " in outcome.out
    assert "`verify --remove` removes damaged stages" in outcome.out
    assert len(house.keys) == len(SEEDS) * TRAININGS
    assert verified(house, "--remove").status == 1
    assert len(house.keys) == len(SEEDS) * TRAININGS - 1
    assert entry.key not in house.keys
    assert verified(house).status == 0


def test_what_was_damaged_is_computed_again_to_the_same_bits(house: House, starts: list[Start]) -> None:
    before, table = listing(house.store), (house.folder(0) / "rounds.jsonl").read_bytes()
    damaged = [house.stage(0, name).folder for name in ("round_000", "round_001.reinit-0", "round_002")]
    flip(damaged[0] / "state_00000007.safetensors", -1)
    set_done(damaged[1])
    (damaged[2] / "result.json").unlink()
    assert "removed 3 stages" in verified(house, "--remove").out
    house.study("seed=0").run()
    assert len(starts) == 3
    assert (house.folder(0) / "rounds.jsonl").read_bytes() == table
    assert verified(house).status == 0
    for folder in damaged:
        states = list(folder.glob("*.safetensors"))
        assert states
        for path in states:
            assert path.read_bytes() == before[str(path.relative_to(house.store))]


def test_a_folder_without_done_is_unfinished_work_and_no_damage(house: House) -> None:
    (house.stage(0).folder / "DONE").unlink()
    assert verified(house).status == 0


def test_any_bit_of_any_file_counts(house: House) -> None:
    """A flip anywhere in a finished stage's files is found: none is outside of all digests."""
    entry, chance = house.stage(0, "round_000"), random.Random(0)
    for path in sorted(entry.folder.iterdir()):
        size = path.stat().st_size
        for at in {0, 7, 8, size - 1, *(chance.randrange(size) for _ in range(8))} & set(range(size)):
            whole = path.read_bytes()
            flip(path, at)
            [now] = [found for found in house.contents.entries if found.key == entry.key]
            assert [found.level for found in check_stage(now)].count("damaged") > 0, (path.name, at)
            path.write_bytes(whole)
    assert not check_stage(entry)


def test_a_foreign_file_is_mentioned_and_left_alone(house: House) -> None:
    folder = house.stage(0).folder
    (folder / "notes.txt").write_text("a good one")
    (folder / ".hidden").write_text("x")
    (house.store / "README").write_text("x")
    outcome = verified(house, "--remove")
    assert outcome.status == 0
    assert complaints(outcome) == [f"train {folder.name[:12]}: notes.txt: no result of lottery, it does no harm"]
    assert (folder / "notes.txt").exists()


def test_what_cannot_be_read_is_said_but_not_removed(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A matter of rights, or of a disk that is away for a moment, is no damage."""
    entry = house.stage(0)

    def refused(path: Path) -> Hashed:
        if path == entry.folder / "state.safetensors":
            raise PermissionError(13, "Permission denied", str(path))
        return hashed(path)

    monkeypatch.setattr(verify, "hashed", refused)
    outcome = verified(house, "--remove")
    assert outcome.status == 1
    assert complaints(outcome) == [f"train {entry.short}: state.safetensors: cannot be read: Permission denied"]
    assert entry.key in house.keys


def test_each_file_is_read_once(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    monkeypatch.setattr(verify, "hashed", lambda path: read.append(path) or hashed(path))
    assert verified(house).status == 0
    files = {path for entry in house.contents.entries for path in entry.folder.iterdir() if path.name != "DONE"}
    assert len(read) == len(files)
    assert set(read) == files


# -- unfinished stages ------------------------------------------------------------------------------------------------


@pytest.fixture
def begun(house: House, on_batch: Hooks) -> StoredStage:
    """A dense training that was interrupted after step 7, whose state it has kept."""
    house.interrupted("seed=5", at=12, on_batch=on_batch)
    [entry] = [entry for entry in house.contents.entries if not entry.done]
    return entry


@pytest.mark.parametrize(
    ("damage", "file", "what"),
    [
        (lambda path: os.truncate(path, path.stat().st_size // 2), "checkpoint", "cut short; the training would start"),
        (lambda path: flip(path, -1), "checkpoint", "its content does not match its digest; the training would start"),
        (lambda path: flip(path, path.read_bytes().index(b"step") + 9), "checkpoint", "its content does not match"),
        (lambda path: path.write_bytes(b""), "checkpoint", "cut short; the training would start again"),
        (lambda path: flip(path, -1), "state_00000007", "holds another state than checkpoint.safetensors says"),
        (lambda path: path.unlink(), "optimizer_00000007", "missing"),
    ],
)
def test_an_unfinished_stage(
    damage: Callable[[Path], object], file: str, what: str, house: House, begun: StoredStage, starts: list[Start]
) -> None:
    assert verified(house).status == 0
    damage(begun.folder / f"{file}.safetensors")
    outcome = verified(house)
    assert outcome.status == 1
    [line] = complaints(outcome)
    assert line.startswith(f"train {begun.short}: {file}.safetensors: {what}")
    verified(house, "--remove")
    assert begun.key not in house.keys
    house.study("seed=5").run()
    assert len(starts) == TRAININGS
    assert verified(house).status == 0


def test_a_stage_that_is_being_computed_is_not_removed(house: House, begun: StoredStage) -> None:
    flip(begun.folder / "checkpoint.safetensors", -1)
    with Lease(begun.folder) as lease:
        assert lease.acquire()
        outcome = verified(house, "--remove")
    assert outcome.status == 1
    assert f"kept: train {begun.short}: somebody is at work on it" in outcome.out
    assert begun.key in house.keys


def test_a_stage_that_is_finished_or_removed_while_it_is_looked_at(house: House, begun: StoredStage) -> None:
    house.study("seed=5", "method.rounds=0").run()
    assert not (begun.folder / "checkpoint.safetensors").exists()
    assert check_stage(begun) == []
    flip(begun.folder / "state.safetensors", -1)
    assert [str(found).partition(": ")[2] for found in check_stage(begun)] == [
        "state.safetensors: changed since the stage was finished"
    ]
    shutil.rmtree(begun.folder)
    assert check_stage(begun) == []


@pytest.mark.slow
def test_verify_in_the_middle_of_a_study(house: House, on_batch: Hooks) -> None:
    """A training under way, with its checkpoint and its kept states, is sound at every step."""
    outcomes: list[int] = []
    on_batch.append(lambda step: outcomes.append(verified(house).status) if step % 5 == 4 else None)
    house.study("seed=5", "train.checkpoint_steps=1").run()
    assert len(outcomes) > 20
    assert not any(outcomes)


# -- masks ------------------------------------------------------------------------------------------------------------


def test_any_bit_of_a_mask_counts(house: House) -> None:
    path = house.folder(0) / "masks" / "round_001.safetensors"
    whole, chance = path.read_bytes(), random.Random(0)
    assert check_mask(path) == []
    for at in {0, 7, 8, len(whole) - 1, *(chance.randrange(len(whole)) for _ in range(150))}:
        flip(path, at)
        assert [found.level for found in check_mask(path)] == ["damaged"], at
        path.write_bytes(whole)
    for size in (0, 7, 20, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert len(check_mask(path)) == 1
    path.write_bytes(whole + b"\0")
    assert len(check_mask(path)) == 1


def test_a_damaged_mask_is_written_anew_by_its_study(house: House, starts: list[Start]) -> None:
    path = house.folder(0) / "masks" / "round_002.safetensors"
    digest = Mask.load(path).digest
    flip(path, -1)
    outcome = verified(house, "--remove")
    assert outcome.status == 1
    assert complaints(outcome) == [
        f"{path}: its content does not match its digest; the study, run again, writes it anew"
    ]
    assert "0 stages damaged, 1 thing wrong in all" in outcome.out
    house.study("seed=0").run()
    assert Mask.load(path).digest == digest
    assert not starts
    assert verified(house).status == 0
