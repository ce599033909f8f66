"""The W&B tracker against W&B itself, offline: what it records, and that no failure of W&B reaches the study."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from recording import RecordingSink, Service

from lottery.config import Config, Tracker
from lottery.tracking.items import Metrics, curve_rows, publishable, round_row, summary, tags
from lottery.tracking.mirror import Mirror
from lottery.tracking.trackers import make_tracker
from lottery.tracking.wandb import logged_in, run_mode
from lottery.tracking.wandb_log import contents

KEY = "0123456789ab"
CONFIG_YAML = """\
name: imp
seed: 3
data: {_target_: lottery.data.sources.mnist1d, name: mnist1d, folder: /home/somebody/images}
model: {_target_: lottery.models.mlp.mlp, hidden: [100, 100]}
method: {_target_: lottery.methods.imp.IMP, rounds: 2}
paths: {runs: /home/somebody/runs, data: data, store: runs/.store}
"""
Warnings = Callable[[], list[str]]


def tracker_of(study: Any, **options: Any) -> Mirror:
    config = Config(name="imp", seed=3, tracker=Tracker(name="wandb", **options))
    tracker = make_tracker(config, KEY, study.folder)
    assert isinstance(tracker, Mirror)
    return tracker


def play(study: Any, tracker: Mirror, rounds: range) -> None:
    """Hand over these rounds, each but the dense one followed by two reinit controls."""
    for index in rounds:
        tracker.round(study.row(index), study.curve(index), study.mask_path(index))
        for copy in range(2 if index else 0):
            tracker.round(study.row(index, "reinit", copy), study.curve(index), study.mask_path(index))


def segments(study: Any) -> list[Path]:
    """The records of each time the study ran, oldest first."""
    return sorted((study.folder / "wandb").glob(f"offline-run-*-{KEY}/run-{KEY}.wandb"))


def records(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """What W&B wrote, read by its own tool."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [(record["type"], record.get(record["type"], {})) for record in map(json.loads, lines)]


def of(kind: str, found: list[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    return [record for name, record in found if name == kind]


def history(found: list[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """The logged rows, without W&B's own columns."""
    return [{k: v for k, v in row["item"].items() if not k.startswith("_")} for row in of("history", found)]


def services() -> list[int]:
    """The wandb-core processes that this process started."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
        except OSError:
            continue
        if fields["Name"] == "wandb-core" and int(fields["PPid"]) == os.getpid() and "Z" not in fields["State"]:
            found.append(int(fields["Pid"]))
    return found


linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")


# -- what is recorded --------------------------------------------------------------------------------------------------


@pytest.fixture
def finished(study: Any, home: Path, capfd: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """A whole study, offline; where it left traces."""
    import pytorch_lightning
    import wandb  # noqa: F401

    environment, exit_of = dict(os.environ), sys.exit
    from PIL import Image

    capfd.readouterr()
    tracker = tracker_of(study, tags=["paper"])
    tracker.start(CONFIG_YAML)
    play(study, tracker, range(3))
    figure = study.folder / "accuracy.png"
    Image.new("RGB", (4, 4)).save(figure)
    tracker.figure(figure)
    tracker.close("finished")
    assert pytorch_lightning
    return {
        "printed": capfd.readouterr(),
        "environment": environment == dict(os.environ) and sys.exit is exit_of,
        "home": list(home.rglob("*")),
        "records": records(segments(study)[0]),
    }


def test_a_study_is_one_run_and_leaves_no_trace_elsewhere(study: Any, finished: dict[str, Any]) -> None:
    assert finished["printed"] == ("", "")
    assert finished["environment"]
    assert finished["home"] == []
    assert len(segments(study)) == 1
    assert services() == []
    (run,) = of("run", finished["records"])
    assert run["run_id"] == KEY
    assert run["run_group"] == "imp"
    assert run["project"] == "lottery"
    assert run["resume"] is True
    assert KEY in run["display_name"]
    assert set(run["tags"]) == {"paper", "mnist1d", "mlp", "imp"}
    assert of("exit", finished["records"])[0].get("exit_code", 0) == 0

    config: dict[str, Any] = {}
    for record in [*of("config", finished["records"])]:
        config |= record["update"]
    assert "paths" not in config
    assert config["method"]["rounds"] == 2
    assert config["model"]["hidden"] == [100, 100]
    assert "somebody" not in json.dumps(config)

    axes = {m["glob_name"]: m["step_metric"] for m in of("metric", finished["records"]) if "glob_name" in m}
    expected = {"round/*": "round", "curve/*": "curve/total_step", "search/*": "search/step", "moving/*": "moving/step"}
    assert axes == expected | {f"more/{figures}": axis for figures, axis in expected.items()}
    hidden = [m for m in of("metric", finished["records"]) if m.get("options", {}).get("hidden")]
    names = {m.get("glob_name") or m["name"] for m in hidden}
    assert names == {*(f"more/{figures}" for figures in expected), *expected.values(), "curve/step", "curve/round"}
    assert run["job_type"] == "imp"
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    assert run.get("git", {}).get("commit", "") == head
    assert "remote_url" not in run.get("git", {})

    rows = [row for row in history(finished["records"]) if "round" in row]
    assert [row["round"] for row in rows] == [0, 1, 1, 1, 2, 2, 2]
    tickets = [row for row in rows if "more/round/kept" in row]
    assert [row["round/density"] for row in rows] == [study.masks[row["round"]].density for row in rows]
    assert [row["round/density"] for row in tickets] == [mask.density for mask in study.masks]
    assert [row["more/round/density/layer1.0.conv.weight"] for row in tickets] == [1.0, 0.5, 0.25]
    assert [row["round/test_accuracy"] for row in tickets] == pytest.approx([0.8, 0.7, 0.6])
    assert [row["more/round/probe/overlap"] for row in tickets] == [0.5] * 3
    assert not any("val_loss" in key for row in rows for key in row), "what was not measured has no value"
    for name in ("round/control/reinit-0", "more/round/control/reinit-1"):
        scores = [row[k] for row in rows if (k := f"{name}/test_accuracy") in row]
        assert scores == pytest.approx([0.4, 0.3])

    curve = [row for row in history(finished["records"]) if "curve/val_loss" in row]
    points = [(row["curve/round"], row["curve/step"], row["curve/total_step"]) for row in curve]
    assert points == [(r, s, 20 * r + s) for r in range(3) for s in (0, 10, 20)]
    assert [row["curve/val_loss"] for row in curve][3:6] == pytest.approx([2.3, 1.2, 1.1])
    assert [row.get("curve/train_loss") for row in curve][:3] == [None, 0.1, 0.05]
    beside = [
        row["curve/total_step"] for row in history(finished["records"]) if "more/curve/control/reinit-1/val_loss" in row
    ]
    assert beside == [20, 30, 40, 40, 50, 60]

    final = {k: v for record in of("summary", finished["records"]) for k, v in record.get("update", {}).items()}
    assert final["best_test_accuracy"] == pytest.approx(0.8)
    assert final["best_test_accuracy_round"] == 0
    assert final["sparsest_matching_density"] == 1.0
    assert list((segments(study)[0].parent / "files/media/images").rglob("*.png"))


def test_each_mask_is_a_version_of_one_artifact(study: Any, finished: dict[str, Any]) -> None:
    artifacts = [each for each in of("artifact", finished["records"]) if each["type"] == "mask"]
    assert {(artifact["name"], artifact["type"]) for artifact in artifacts} == {(f"masks-imp-{KEY}", "mask")}
    assert [set(artifact["aliases"]) for artifact in artifacts] == [{"latest", f"round-00{k}"} for k in range(3)]
    metadata = [json.loads(artifact["metadata"]) for artifact in artifacts]
    digests = [mask.digest for mask in study.masks]
    assert metadata == [
        {"round": k, "density": study.masks[k].density, "digest": digests[k], "study": KEY, "parent": parent}
        for k, parent in enumerate([None, *digests[:-1]])
    ]
    files = [entry for artifact in artifacts for entry in artifact["manifest"]["contents"]]
    assert [entry["path"] for entry in files] == [f"round_00{k}.safetensors" for k in range(3)]
    assert [Path(entry["local_path"]) for entry in files] == [study.mask_path(k) for k in range(3)]


def once(study: Any, rounds: range) -> list[str]:
    """The ids of all that a study hands over when it runs once."""
    service = Service()
    mirror = Mirror(Config(name="imp", seed=3, tracker=Tracker()), KEY, study.folder, RecordingSink(service))
    mirror.start(CONFIG_YAML)
    play(study, mirror, rounds)
    mirror.close("finished")
    return sorted(service.items)


def logged(study: Any) -> list[str]:
    """The same of what W&B has in all segments together, each as often as it is there."""
    found = [record for path in segments(study) for record in records(path)]
    masks = [json.loads(each["metadata"]) for each in of("artifact", found) if each["type"] == "mask"]
    ids = [f"round-{mask['round']:03d} {mask['digest'][:16]}" for mask in masks]
    ids += [f"rounds {row['rounds.nrows']} x {row['rounds.ncols']}" for row in history(found) if "rounds.nrows" in row]
    return sorted([*ids, *(Metrics(row).id for row in history(found) if "rounds.nrows" not in row)])


@pytest.mark.slow
def test_a_study_that_runs_again_continues_its_run(study: Any, home: Path, warnings_of: Warnings) -> None:
    """Each row and mask is on record once. Also as a task of `srun`, which Lightning takes for a second worker."""
    from pytorch_lightning.utilities.rank_zero import rank_zero_only

    def run(rounds: range, status: str, **options: str) -> None:
        rank_zero_only.rank = 1  # type: ignore[attr-defined]
        tracker = tracker_of(study, **options)
        tracker.start(CONFIG_YAML)
        play(study, tracker, rounds)
        tracker.close(status)

    run(range(2), "failed")
    time.sleep(1.1)  # W&B names a segment's folder by the second
    run(range(3), "finished")
    first, second = map(records, segments(study))
    assert [row["round"] for row in history(second) if "round" in row] == [2, 2, 2]
    assert [of("run", found)[0]["run_id"] for found in (first, second)] == [KEY, KEY]
    assert [of("exit", found)[0].get("exit_code", 0) for found in (first, second)] == [1, 0]
    final = {k: v for record in of("summary", second) for k, v in record.get("update", {}).items()}
    assert final["best_test_accuracy_round"] == 0
    assert logged(study) == once(study, range(3))

    run(range(3), "finished")  # nothing is new
    assert len(segments(study)) == 2
    for path in segments(study):  # as `wandb clean` does, once they were sent
        shutil.rmtree(path.parent)
    run(range(3), "finished")
    assert segments(study) == []
    run(range(3), "finished", project="another")
    assert logged(study) == once(study, range(3))
    assert warnings_of() == []


def test_a_run_of_the_users_own_is_left_alone(study: Any, home: Path, tmp_path: Path) -> None:
    import wandb

    own = wandb.init(mode="offline", dir=str(tmp_path), settings=wandb.Settings(silent=True, console="off"))
    try:
        tracker = tracker_of(study)
        tracker.start(CONFIG_YAML)
        play(study, tracker, range(1))
        tracker.close("finished")
        assert wandb.run is own
        own.log({"theirs": 1})
    finally:
        own.finish()
        wandb.teardown()
    assert not any("theirs" in row for row in history(records(segments(study)[0])))


# -- what goes wrong ---------------------------------------------------------------------------------------------------


@linux
@pytest.mark.slow
def test_a_killed_service_costs_a_warning_and_the_next_study_has_a_new_one(
    study: Any, home: Path, warnings_of: Warnings
) -> None:
    tracker = tracker_of(study)
    tracker.start(CONFIG_YAML)
    play(study, tracker, range(1))
    time.sleep(1.0)  # twice the interval after which what was logged is on disk
    (service,) = services()
    os.kill(service, signal.SIGKILL)
    while services():
        time.sleep(0.01)
    play(study, tracker, range(1, 3))
    tracker.figure(study.folder / "missing.png")
    tracker.close("finished")
    (warning,) = warnings_of()
    assert "W&B failed" in warning
    assert str(study.folder) in warning
    assert "\n" not in warning
    assert [row["round"] for row in history(records(segments(study)[0])) if "round" in row] == [0]

    time.sleep(1.1)
    again = tracker_of(study)
    again.start(CONFIG_YAML)
    play(study, again, range(1))
    again.close("finished")
    assert len(warnings_of()) == 1
    assert of("exit", records(segments(study)[1]))


@linux
@pytest.mark.slow
def test_a_service_that_hangs_does_not_hold_the_study(study: Any, home: Path, warnings_of: Warnings) -> None:
    tracker = tracker_of(study)
    tracker.start(CONFIG_YAML)
    tracker.patience = 1.0
    (service,) = services()
    os.kill(service, signal.SIGSTOP)
    started = time.monotonic()
    play(study, tracker, range(3))
    tracker.close("finished")
    assert time.monotonic() - started < 10
    (warning,) = warnings_of()
    assert "no answer in 1 s" in warning
    while services():  # it was ended by force
        time.sleep(0.01)


@pytest.mark.slow
def test_a_server_out_of_reach_means_offline(
    study: Any, home: Path, warnings_of: Warnings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "3")
    tracker = tracker_of(study)
    started = time.monotonic()
    tracker.start(CONFIG_YAML)
    assert time.monotonic() - started < 15
    play(study, tracker, range(2))
    tracker.close("finished")
    (warning,) = warnings_of()
    assert "recorded offline" in warning
    assert list(home.rglob("*")) == []
    assert [row["round"] for row in history(records(segments(study)[0])) if "round" in row] == [0, 1, 1, 1]


def test_a_sweeps_file_that_is_gone_costs_a_warning_and_not_the_mirror(
    study: Any, home: Path, warnings_of: Warnings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent of W&B leaves the name of its parameters' file to whatever it starts, and removes the file."""
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(study.folder / "gone.yaml"))
    tracker = tracker_of(study)
    tracker.start(CONFIG_YAML)
    play(study, tracker, range(1))
    tracker.close("finished")
    (warning,) = warnings_of()
    assert "WANDB_SWEEP_PARAM_PATH" in warning
    assert "no such file" in warning
    assert [row["round"] for row in history(records(segments(study)[0])) if "round" in row] == [0]
    assert os.environ["WANDB_SWEEP_PARAM_PATH"]


@pytest.mark.parametrize("module", ["wandb", "pytorch_lightning.loggers"])
def test_a_missing_package_costs_a_warning(
    study: Any, home: Path, warnings_of: Warnings, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    tracker = tracker_of(study)
    tracker.start(CONFIG_YAML)
    play(study, tracker, range(2))
    tracker.close("finished")
    (warning,) = warnings_of()
    assert module.partition(".")[0] in warning


def test_a_mask_that_cannot_be_read_costs_a_warning(study: Any, home: Path, warnings_of: Warnings) -> None:
    tracker = tracker_of(study)
    tracker.start(CONFIG_YAML)
    tracker.round(study.row(0), study.curve(0), study.folder / "absent.safetensors")
    play(study, tracker, range(1, 3))
    tracker.close("failed")
    assert len(warnings_of()) == 1


@linux
def test_a_full_disk_costs_a_warning(study: Any, home: Path, warnings_of: Warnings) -> None:
    """W&B says nothing when it cannot write; /dev/full gives the error that a full disk gives."""
    tracker = tracker_of(study)
    tracker.start(CONFIG_YAML)
    play(study, tracker, range(1))
    assert warnings_of() == []
    (study.folder / "wandb" / ".room").symlink_to("/dev/full")
    play(study, tracker, range(1, 3))
    tracker.close("finished")
    (warning,) = warnings_of()
    assert "No space left" in warning


def test_closing_what_never_started_is_nothing(study: Any, warnings_of: Warnings) -> None:
    tracker_of(study).close("failed")
    assert warnings_of() == []


SCRIPT = """
import os, signal, sys, time
sys.path[:0] = [{tests!r}, {root!r}]
from pathlib import Path
from conftest import FakeStudy
import test_wandb as t
study = FakeStudy(Path(sys.argv[1]))
tracker = t.tracker_of(study)
tracker.start(t.CONFIG_YAML)
t.play(study, tracker, range(1))
os.kill(t.services()[0], getattr(signal, sys.argv[2]))
tracker.patience = 1.0
time.sleep(0.2)
t.play(study, tracker, range(1, 3))
tracker.close("finished")
print("done", flush=True)
"""


@linux
@pytest.mark.slow
@pytest.mark.parametrize("deadly", ["SIGKILL", "SIGSTOP"])
def test_the_process_ends_as_it_would_have(tmp_path: Path, home: Path, deadly: str) -> None:
    """Nothing of W&B's runs, prints or waits when the interpreter ends."""
    here = Path(__file__).parent
    script = SCRIPT.format(tests=str(here), root=str(here.parents[1]))
    command = [sys.executable, "-W", "ignore", "-c", script, str(tmp_path / KEY), deadly]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (0, "done\n"), ended.stderr
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert "W&B failed" in ended.stderr


KILLED = """
import os, signal, sys, time
sys.path[:0] = [{tests!r}, {root!r}]
from pathlib import Path
from conftest import FakeStudy
import test_wandb as t
study = FakeStudy(Path(sys.argv[1]))
tracker = t.tracker_of(study)
tracker.start(t.CONFIG_YAML)
t.play(study, tracker, range(2))
time.sleep(1.0)
t.play(study, tracker, range(2, 3))
os.kill(os.getpid(), signal.SIGKILL)
"""


@linux
@pytest.mark.slow
def test_a_killed_study_is_continued_without_a_row_lost_or_doubled(
    study: Any, tmp_path: Path, home: Path, warnings_of: Warnings
) -> None:
    """What was logged in the half second before a SIGKILL may be lost, and the end of the log torn; it comes again."""
    here, folder = Path(__file__).parent, tmp_path / "killed" / KEY
    script = KILLED.format(tests=str(here), root=str(here.parents[1]))
    ended = subprocess.run([sys.executable, "-W", "ignore", "-c", script, str(folder)], timeout=120)
    assert ended.returncode == -signal.SIGKILL
    study.folder = folder
    (killed,) = segments(study)
    size = -1
    while size != (size := killed.stat().st_size):  # W&B's service notices, writes what it has, and leaves
        time.sleep(0.5)
    early = [id for id in once(study, range(2)) if not id.startswith("rounds ")]  # the table comes with the end
    assert [id for id in early if id not in contents(killed)["items"]] == []
    os.truncate(killed, size - 5)

    tracker = tracker_of(study)
    tracker.start(CONFIG_YAML)
    play(study, tracker, range(3))
    tracker.close("finished")
    assert sorted(id for path in segments(study) for id in contents(path)["items"]) == once(study, range(3))
    assert warnings_of() == []


# -- its parts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "said", "key", "mode"),
    [
        ("auto", None, False, "offline"),
        ("auto", None, True, "online"),
        ("auto", "offline", True, "offline"),
        ("auto", "online", True, "online"),
        ("auto", "disabled", True, "disabled"),
        ("offline", "online", True, "offline"),
        ("online", "offline", True, "online"),
    ],
)
def test_mode(home: Path, monkeypatch: pytest.MonkeyPatch, wanted: str, said: str | None, key: bool, mode: str) -> None:
    if said:
        monkeypatch.setenv("WANDB_MODE", said)
    settings = SimpleNamespace(
        mode=said or "online", api_key="0" * 40 if key else None, base_url="https://api.wandb.ai"
    )
    assert run_mode(wanted, settings) == mode


@pytest.mark.parametrize("wanted", ["auto", "online"])
def test_online_without_a_key_is_offline_and_said(
    home: Path, monkeypatch: pytest.MonkeyPatch, warnings_of: Warnings, wanted: str
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    settings = SimpleNamespace(mode="online", api_key=None, base_url="https://api.wandb.ai")
    assert run_mode(wanted, settings) == "offline"
    (warning,) = warnings_of()
    assert "wandb login" in warning


def test_a_login_is_found_in_netrc_for_its_own_server_only(home: Path) -> None:
    """`wandb login` writes ~/.netrc: machine, login user, password KEY."""
    (home / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password " + "0" * 40 + "\n")
    (home / ".netrc").chmod(0o600)
    assert logged_in(SimpleNamespace(api_key=None, base_url="https://api.wandb.ai"))
    assert not logged_in(SimpleNamespace(api_key=None, base_url="https://wandb.example.org"))


def test_wandb_finds_no_key_where_there_is_none(home: Path) -> None:
    """The settings that W&B itself resolves are those that the look-up reads."""
    import wandb

    wandb.teardown()
    try:
        assert not logged_in(wandb.setup(wandb.Settings(silent=True)).settings)
    finally:
        wandb.teardown()


def test_disabled_records_nothing(
    study: Any, home: Path, monkeypatch: pytest.MonkeyPatch, warnings_of: Warnings
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    tracker = tracker_of(study)
    tracker.start(CONFIG_YAML)
    play(study, tracker, range(2))
    tracker.close("finished")
    assert warnings_of() == []
    assert segments(study) == []


def test_the_number_of_keys_does_not_grow_with_the_rounds(study: Any) -> None:
    def keys(index: int) -> set[str]:
        row, control = study.row(index), study.row(index, "random", 1)
        logged = [round_row(row), round_row(control)]
        logged += [point for of_row in (row, control) for point in curve_rows(of_row, study.curve(index), 0)]
        return {key for figures in logged for key in figures}

    assert keys(0) == keys(1) == keys(2)


def test_points_of_one_step_are_one_entry(study: Any) -> None:
    entries = curve_rows(study.row(1), [[5, "validation", 1.0, 0.5], [5, "train", 2.0, None]], 100)
    assert entries == [
        {
            "curve/total_step": 105,
            "curve/step": 5,
            "curve/round": 1,
            "curve/val_loss": 1.0,
            "curve/val_accuracy": 0.5,
            "curve/train_loss": 2.0,
        }
    ]


def test_summary_names_the_sparsest_ticket_as_good_as_the_dense_network() -> None:
    rows = [
        {"round": 0, "density": 1.0, "test_accuracy": 0.90},
        {"round": 1, "density": 0.5, "test_accuracy": 0.92},
        {"round": 2, "density": 0.25, "test_accuracy": 0.90},
        {"round": 3, "density": 0.125, "test_accuracy": 0.80},
    ]
    assert summary(rows) == {
        "best_test_accuracy": 0.92,
        "best_test_accuracy_round": 1,
        "sparsest_matching_density": 0.25,
    }
    assert summary([]) == summary([{"round": 0, "density": 1.0, "test_accuracy": None}]) == {}


def test_nothing_published_says_where_things_lie() -> None:
    config = {
        "paths": {"runs": "/home/somebody/runs"},
        "model": {"weights": "/home/somebody/w.pth", "paths": 1},
        "data": {"folders": ["~/images", "images"]},
    }
    assert publishable(config) == {
        "model": {"weights": "w.pth", "paths": 1},
        "data": {"folders": ["images", "images"]},
    }


def test_tags_are_unique_and_short_enough() -> None:
    config = {"data": {"name": "mnist"}, "model": {"_target_": "a.b.mlp"}, "method": None}
    assert tags(config, ["mnist", "x" * 70]) == ["mnist", "x" * 64, "mlp"]
