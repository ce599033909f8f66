"""`python -m lottery sync`: what is sent, in which order, once, and again from where it failed.

Against a remote that refuses what W&B would, and with W&B's own client against a server on loopback.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from command_line_tools import call, listing
from wandb_server import Server, serving

from lottery import lease
from lottery.config import Config, Tracker
from lottery.errors import LotteryError
from lottery.record.names import SENT
from lottery.tracking.items import Artifact
from lottery.tracking.lineage import TrackedRun, makers_under
from lottery.tracking.remote import Kind, Remote
from lottery.tracking.sending import Upload
from lottery.tracking.sync import send
from lottery.tracking.trackers import make_tracker

MAKER, TAKER = "aaaaaaaaaaaa", "bbbbbbbbbbbb"
CONFIG = {"name": "imp", "seed": 3, "model": {"weights": None}, "data": {}, "method": {"allocation": None}}
CONFIG |= {"tracker": {"name": "wandb", "project": "lottery", "entity": None}}


class Down(LotteryError):
    """The connection is gone."""


class FakeRemote:
    """A project. It takes nothing twice, no child before its parent, and no input that nobody made."""

    def __init__(self, masks_arrive: bool = True) -> None:
        self.masks_arrive = masks_arrive  # False: `wandb sync` loses artifacts without a word
        self.calls = 1_000_000  # how many more are answered
        self.segments: dict[str, list[str]] = {}
        self.made: dict[str, list[Artifact]] = {}
        self.inputs: dict[str, list[Artifact]] = {}
        self.connected = 0

    def connect(self, project: str, entity: str | None) -> FakeRemote:
        assert (project, entity) == ("lottery", None)
        self.connected += 1
        return self

    def _answer(self) -> None:
        if self.calls == 0:
            raise Down("no answer")
        self.calls -= 1

    def reach(self) -> None:
        self._answer()

    def upload(self, segments: Sequence[Path]) -> None:
        self._answer()
        for path in segments:
            key, name = path.stem.removeprefix("run-"), path.parent.name
            assert name not in self.segments.setdefault(key, []), "sent twice: its rows would be there twice"
            assert all(name > other for other in self.segments[key]), "a later segment came first"
            self.segments[key].append(name)
            if self.masks_arrive:
                study = TrackedRun(path.parents[2])
                self.made[key] = [study.checked_mask(row) for row in study.tickets]

    def has_run(self, key: str) -> bool:
        self._answer()
        return key in self.segments

    def ids(self, key: str, kind: Kind) -> set[str]:
        self._answer()
        assert key in self.segments
        found = self.made if kind == "made" else self.inputs
        return {artifact.server_id for artifact in found.get(key, [])}

    def add(self, key: str, kind: Kind, artifact: Artifact, exit_code: int) -> None:
        self._answer()
        assert key in self.segments
        (self._make if kind == "made" else self._use)(key, artifact)

    def _make(self, key: str, artifact: Artifact) -> None:
        made = self.made.setdefault(key, [])
        assert artifact not in made, "uploaded twice"
        parent = artifact.metadata().get("parent")
        assert parent is None or parent in {other.digest for other in made}, "a child before its parent"
        made.append(artifact)

    def _use(self, key: str, artifact: Artifact) -> None:
        assert "file" in artifact.facts or any(artifact in made for made in self.made.values()), "nobody made it"
        assert artifact not in self.inputs.setdefault(key, [])
        self.inputs[key].append(artifact)

    @property
    def state(self) -> Any:
        return self.segments, {key: set(made) for key, made in self.made.items()}, self.inputs


@pytest.fixture
def make(study: Any, tmp_path: Path) -> Callable[..., Path]:
    """A run folder with a row a round and one control, its trainings its own or (`cached`) somebody else's."""

    def make(
        key: str,
        rounds: int,
        cached: int = 0,
        name: str = "imp",
        segments: int = 1,
        mask: Path | None = None,
        **model: Any,
    ) -> Path:
        folder = tmp_path / "all" / name / key
        (folder / "rounds").mkdir(parents=True)
        config = CONFIG | {"name": name, "model": {"weights": None} | model}
        config |= {"method": {"allocation": {"path": str(mask)}}} if mask else {}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        rows = [(index, control) for index in range(rounds) for control in ((None, "reinit") if index else (None,))]
        with (folder / "rounds.jsonl").open("w") as table:
            for index, control in rows:
                row = study.row(index, control, cached=index < cached)
                stem = f"round_{index:03d}" + (".reinit-0" if control else "")
                stage = f"{index:02d}{'r' if control else 't'}".ljust(64, "0")
                digests = {"trained": f"w{stem}", "start": "s", "mask": row["mask_digest"]}
                details = {"stages": {"train": stage}, "digests": digests}
                (folder / "rounds" / f"{stem}.json").write_text(json.dumps(details))
                table.write(json.dumps(row) + "\n")
        for index in range(rounds):
            parent = study.masks[index - 1].digest if index else None
            study.masks[index].save(
                folder / f"masks/round_{index:03d}.safetensors", round=index, study=key, parent=parent
            )
        for index in range(segments):
            place = folder / "wandb" / f"offline-run-20260101_00000{index}-{key}"
            place.mkdir(parents=True)
            (place / f"run-{key}.wandb").write_bytes(b"rows")
        return folder

    return make


def jobs(*folders: Path) -> list[Upload]:
    makers = makers_under(folders[0].parents[1])
    return [Upload.of(TrackedRun(folder), makers, None, None) for folder in folders]


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def pair(make: Callable[..., Path]) -> tuple[Path, Path]:
    """A study of two rounds, and one of three in two segments, which took from it what it had."""
    return make(MAKER, 2), make(TAKER, 3, cached=2, name="imp long", segments=2)


def names(artifacts: Sequence[Artifact]) -> list[tuple[str, int]]:
    return [(artifact.name, artifact.round) for artifact in artifacts]


def stage(index: int, kind: str = "t") -> str:
    return f"weights-{f'{index:02d}{kind}'.ljust(16, '0')}"


@pytest.mark.parametrize("masks_arrive", [True, False])
def test_all_is_sent_once_and_an_input_after_its_maker(
    pair: tuple[Path, Path], told: list[str], masks_arrive: bool
) -> None:
    remote = FakeRemote(masks_arrive)
    assert send(jobs(*reversed(pair)), remote.connect, told.append) == 0
    assert {key: len(segments) for key, segments in remote.segments.items()} == {MAKER: 1, TAKER: 2}
    shared = [stage(0), stage(1), stage(1, "r")]
    masks = {(f"masks-imp-{MAKER}", k) for k in range(2)}
    assert set(names(remote.made[MAKER])) == masks | {(name, k) for name, k in zip(shared, (0, 1, 1), strict=True)}
    assert names(remote.made[TAKER]) == [(f"masks-imp-long-{TAKER}", k) for k in range(3)]
    inputs = [(stage(0), 0), (f"masks-imp-{MAKER}", 1), (stage(1), 1), (stage(1, "r"), 1)]
    assert names(remote.inputs[TAKER]) == inputs
    assert MAKER not in remote.inputs
    maker, taker = pair
    assert told == [f"{taker}: 2 segments, 3 masks, 4 inputs sent", f"{maker}: 1 segment, 2 masks sent"]

    told.clear()
    remote.calls = 0
    assert send(jobs(*pair), remote.connect, told.append) == 0
    assert told == [f"{maker}: nothing sent", f"{taker}: nothing sent"]


@pytest.mark.parametrize("masks_arrive", [True, False])
def test_whenever_the_connection_breaks_the_next_call_goes_on(
    pair: tuple[Path, Path], told: list[str], masks_arrive: bool
) -> None:
    """The remote asserts that nothing comes twice, or before its parent."""
    whole, broken = FakeRemote(masks_arrive), FakeRemote(masks_arrive)
    send(jobs(*pair), whole.connect, told.append)
    for folder in pair:
        (folder / SENT).unlink()
    failures = 0
    for answered in range(1, 100):
        broken.calls = answered % 7 + 1
        try:
            send(jobs(*pair), broken.connect, told.append)
            break
        except Down:
            failures += 1
    assert failures > 3
    assert broken.state == whole.state


def test_a_lost_memory_is_made_up_for_by_what_the_server_has(pair: tuple[Path, Path], told: list[str]) -> None:
    """Of artifacts and inputs; of the logs W&B's own marks tell."""
    remote = FakeRemote()
    send(jobs(*pair), remote.connect, told.append)
    before = str(remote.state)
    for folder in pair:
        (folder / SENT).unlink()
        for log in folder.glob("wandb/*/*.wandb"):
            Path(f"{log}.synced").touch()
    assert send(jobs(*pair), remote.connect, told.append) == 0
    assert str(remote.state) == before


def test_another_project_gets_everything_again(pair: tuple[Path, Path], told: list[str]) -> None:
    maker, _ = pair
    send(jobs(maker), FakeRemote().connect, told.append)
    for log in maker.glob("wandb/*/*.wandb"):
        Path(f"{log}.synced").touch()
    (elsewhere,) = [Upload.of(TrackedRun(maker), {}, "another", None)]
    assert elsewhere.left() == {"segment": 1, "mask": 2}
    assert jobs(maker)[0].left() == {}


def test_inputs_wait_until_their_maker_was_sent(pair: tuple[Path, Path], told: list[str]) -> None:
    maker, taker = pair
    remote = FakeRemote()
    assert send(jobs(taker), remote.connect, told.append) == 0
    assert TAKER not in remote.inputs
    assert [f"what it took from {maker}; sync that first" in line for line in told] == [True, False]
    assert send(jobs(maker), remote.connect, told.append) == 0
    assert send(jobs(taker), remote.connect, told.append) == 0
    assert len(remote.inputs[TAKER]) == 4


def test_a_training_that_nobody_else_claims_is_the_studys_own(make: Callable[..., Path], told: list[str]) -> None:
    """A study that was killed finds its own trainings in the store when it goes on."""
    remote = FakeRemote()
    send(jobs(make(MAKER, 3, cached=3)), remote.connect, told.append)
    assert remote.inputs == {}


def test_a_file_of_start_weights_is_an_input(make: Callable[..., Path], told: list[str], tmp_path: Path) -> None:
    own = tmp_path / "own.pth"
    own.write_bytes(b"weights")
    remote = FakeRemote()
    send(jobs(make(MAKER, 1, weights=str(own))), remote.connect, told.append)
    (used,) = remote.inputs[MAKER]
    assert used.metadata()["file"] == "own.pth"
    assert str(tmp_path) not in json.dumps(used.metadata())


def test_start_weights_from_the_store_are_those_that_a_study_trained(
    make: Callable[..., Path], told: list[str], tmp_path: Path
) -> None:
    stored = tmp_path / "store" / "train" / "00t".ljust(64, "0") / "state.safetensors"
    stored.parent.mkdir(parents=True)
    stored.write_bytes(b"state")
    remote = FakeRemote()
    send(jobs(make(MAKER, 1), make(TAKER, 1, name="b", weights=str(stored))), remote.connect, told.append)
    assert names(remote.inputs[TAKER]) == [(stage(0), 0)]


def test_the_mask_that_gave_the_layer_densities_is_an_input(
    make: Callable[..., Path], told: list[str], tmp_path: Path
) -> None:
    """Of the study in whose folder it lies; or by itself, copied elsewhere."""
    maker = make(MAKER, 2)
    theirs = maker / "masks" / "round_001.safetensors"
    remote = FakeRemote()
    send(jobs(maker, make(TAKER, 1, name="b", mask=theirs)), remote.connect, told.append)
    (used,) = remote.inputs[TAKER]
    assert (used.type, used.round) == ("mask", 1)
    assert used in remote.made[MAKER]
    copied = tmp_path / "elsewhere" / "own.safetensors"
    copied.parent.mkdir()
    copied.write_bytes(theirs.read_bytes())
    alone = FakeRemote()
    send(jobs(make("c" * 12, 1, name="c", mask=copied)), alone.connect, told.append)
    (used,) = alone.inputs["c" * 12]
    assert used.metadata() == {"file": "own.safetensors", "digest": used.digest}


def test_a_damaged_mask_is_not_sent_nor_anything_of_its_study(make: Callable[..., Path], told: list[str]) -> None:
    folder = make(MAKER, 3)
    path = folder / "masks/round_001.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x55")
    remote = FakeRemote()
    with pytest.raises(LotteryError, match=r"round_001\.safetensors"):
        send(jobs(folder), remote.connect, told.append)
    assert remote.segments == {}
    assert not (folder / SENT).exists()


def test_a_study_that_runs_is_left_alone_and_the_others_are_sent(
    pair: tuple[Path, Path], told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.05)
    maker, taker = pair
    remote = FakeRemote()
    with lease.Lease(maker, "the study") as held:
        assert held.acquire()
        assert send(jobs(maker, taker), remote.connect, told.append) == 1
    assert set(remote.segments) == {TAKER}
    assert any(f"{maker}: not sent, it is run by the study" in line for line in told)
    assert not (taker / lease.NAME).exists()


def test_a_study_that_was_killed_is_sent(pair: tuple[Path, Path], told: list[str]) -> None:
    maker, _ = pair
    held = lease.Lease(maker, "the study")
    gone = json.dumps({**vars(held.holder), "pid": 2**22 + 1, "started": "1"})
    (maker / lease.NAME).write_text(gone)
    assert send(jobs(maker), FakeRemote().connect, told.append) == 0


# -- the command -------------------------------------------------------------------------------------------------------


def test_not_logged_in_is_one_line_and_changes_nothing(pair: tuple[Path, Path], home: Path) -> None:
    before = listing(pair[0].parents[1])
    outcome = call("sync", *map(str, pair))
    assert outcome.status == 1
    assert "not logged in" in outcome.line
    assert "wandb login" in outcome.line
    assert listing(pair[0].parents[1]) == before


def test_a_dry_run_says_what_would_be_sent_and_needs_no_login(
    pair: tuple[Path, Path], make: Callable[..., Path], home: Path
) -> None:
    untracked = make("c" * 12, 1, segments=0)
    before = listing(untracked.parents[1])
    outcome = call("sync", "--dry-run", str(untracked.parent), str(pair[1]))
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out.splitlines() == [
        f"{pair[0]}: 1 segment, 2 masks to send",
        f"{untracked}: nothing to send, it was not tracked with W&B",
        f"{pair[1]}: 2 segments, 3 masks, 4 inputs to send",
    ]
    assert listing(untracked.parents[1]) == before


@pytest.mark.parametrize("args", [(), ("nowhere",), ("--nonsense", ".")])
def test_wrong_arguments_are_one_line(args: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = call("sync", *args)
    assert outcome.status == 2
    assert "sync" in outcome.line or "run folder" in outcome.line


# -- W&B's own client --------------------------------------------------------------------------------------------------


@pytest.fixture
def server(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        yield server


def tracked(folder: Path, study: Any, *parts: range, mode: str = "offline") -> None:
    """What W&B records of a study when it runs in these parts."""
    study.folder = folder
    config = Config(name=folder.parent.name, seed=3, tracker=Tracker(mode=mode))
    for part in parts:
        if part is not parts[0]:
            time.sleep(1.1)  # W&B names a segment's folder by the second
        tracker = make_tracker(config, folder.name, folder)
        tracker.start((folder / "config.yaml").read_text())
        for index in range(part.stop):
            tracker.round(study.row(index), study.curve(index), study.mask_path(index))
        tracker.close("finished" if part is parts[-1] else "failed")


@pytest.mark.slow
def test_the_real_client_sends_two_studies_and_their_lineage(
    make: Callable[..., Path], study: Any, server: Server, home: Path
) -> None:
    maker, taker = make(MAKER, 2, segments=0), make(TAKER, 3, cached=2, name="long", segments=0)
    tracked(maker, study, range(2))
    tracked(taker, study, range(1), range(3))
    assert len(list(taker.glob("wandb/offline-run-*"))) == 2

    server.refused = {"CreateArtifact"}  # `wandb sync` says nothing of that
    failed = call("sync", str(maker), str(taker))
    assert failed.status == 1
    assert "masks-imp" in failed.line
    assert [len(server.rows[key]) for key in (MAKER,)] == [9]
    assert server.artifacts == []

    server.refused = set()
    assert call("sync", str(maker), str(taker)).status == 0
    assert server.unknown == []
    rounds = {key: [row["round"] for row in rows if "round" in row] for key, rows in server.rows.items()}
    assert rounds == {MAKER: [0, 1], TAKER: [0, 1, 2]}
    for rows in server.rows.values():
        steps = [row["_step"] for row in rows]
        assert steps == sorted(set(steps)), "segments follow one another"
    assert server.exits == {MAKER: 0, TAKER: 0}
    by = {version.id: version for version in server.artifacts}
    assert all(version.committed for version in by.values())
    made = {(version.run, version.collection) for version in by.values() if "rounds" not in version.collection}
    weights = {(MAKER, name) for name in (stage(0), stage(1), stage(1, "r"))}
    assert made == {(MAKER, f"masks-imp-{MAKER}"), (TAKER, f"masks-long-{TAKER}")} | weights
    digests = [json.loads(by[id].metadata)["digest"] for by_run, id in server.inputs if by_run == TAKER]
    assert digests == ["wround_000", study.masks[1].digest, "wround_001", "wround_001.reinit-0"]
    masks = {path.name for path in maker.glob("masks/*")}
    assert masks == {Path(name).name for name in server.files if "/artifact/" in name and "round_" in name} - {
        "round_002.safetensors"
    }

    changes = server.changes()
    again = call("sync", str(maker), str(taker))
    assert (again.status, server.changes()) == (0, changes)
    assert again.out.splitlines() == [f"{maker}: nothing sent", f"{taker}: nothing sent"]
    assert list(home.rglob("*")) == []


@pytest.mark.slow
def test_an_online_study_that_continues_sends_only_what_is_new(
    make: Callable[..., Path], study: Any, server: Server, home: Path
) -> None:
    folder = make(TAKER, 3, segments=0)
    tracked(folder, study, range(1), range(3), mode="online")
    assert server.unknown == []
    rows = server.rows[TAKER]
    assert [row["round"] for row in rows if "round" in row] == [0, 1, 2]
    steps = [row["_step"] for row in rows]
    assert steps == sorted(set(steps))
    assert server.exits == {TAKER: 0}
    masks = [sorted(version.aliases) for version in server.artifacts if version.collection.startswith("masks-")]
    assert masks == [["round-000"], ["round-001"], ["latest", "round-002"]]
    outcome = call("sync", str(folder))
    assert (outcome.status, outcome.out) == (0, f"{folder}: nothing sent\n")
    assert call("sync", "--dry-run", str(folder)).out == f"{folder}: nothing to send\n", "seen to be there"
    assert len(server.artifacts) == 4  # three masks and the table of rounds


def test_a_server_out_of_reach_is_one_line(
    pair: tuple[Path, Path], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr("lottery.tracking.remote.API_SECONDS", 2)
    outcome = call("sync", str(pair[0]))
    assert outcome.status == 1
    assert "cannot reach the server" in outcome.line
    assert not (pair[0] / SENT).exists()


def test_a_mask_file_of_the_users_own_is_recorded_as_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody made it, so the server does not have it: as with start weights of their own."""
    used: list[Artifact] = []
    remote, artifact = Remote("project", "somebody"), Artifact.file("mask", tmp_path / "mine.safetensors", "0" * 64)
    monkeypatch.setattr(remote, "_resumed", lambda key, code: nullcontext(SimpleNamespace(use_artifact=used.append)))
    monkeypatch.setattr("lottery.tracking.wandb.package", lambda artifact: artifact)
    remote.add("0123456789ab", "used", artifact, 0)
    assert used == [artifact]
