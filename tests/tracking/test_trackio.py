"""The trackio tracker: local, silent, resumed after a kill, harmless; and what is said where it is not installed."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from command_line_tools import QUICK, call, listing, spawn

from lottery.config import Config, Paths, Tracker
from lottery.tracking.trackers import make_tracker

KEY = "0123456789ab"
YAML = "name: imp\nseed: 3\ndata: {name: mnist1d}\nmodel: {_target_: a.mlp}\nmethod: {_target_: b.IMP}\n"

installed = pytest.mark.skipif(find_spec("trackio") is None, reason="trackio is not installed (pip install trackio)")


def play(study: Any, rounds: range, status: str = "finished") -> None:
    config = Config(name="imp", seed=3, tracker=Tracker(name="trackio"), paths=Paths(runs=str(study.folder.parents[1])))
    tracker = make_tracker(config, KEY, study.folder)
    tracker.start(YAML)
    for index in rounds:
        tracker.round(study.row(index), study.curve(index), study.mask_path(index))
    tracker.close(status)


def stored(study: Any, what: str) -> list[Any]:
    with closing(sqlite3.connect(study.folder.parents[1] / ".trackio" / "lottery.db")) as database:
        return [value for (value,) in database.execute(what)]


ROUNDS = "select json_extract(metrics, '$.round') as r from metrics where r is not null order by step"


@pytest.fixture
def fresh(study: Any, home: Path, fresh_trackio: None) -> None:
    """An own home, and trackio not imported yet."""


@installed
@pytest.mark.usefixtures("fresh")
def test_a_study_that_continues_is_one_run_with_each_row_once(
    study: Any, home: Path, capfd: pytest.CaptureFixture[str], warnings_of: Callable[[], list[str]]
) -> None:
    environment, hooks = dict(os.environ), sys.excepthook
    play(study, range(1), "failed")
    play(study, range(3))
    size = (study.folder.parents[1] / ".trackio" / "lottery.db").stat().st_size
    play(study, range(3))
    assert stored(study, ROUNDS) == [0, 1, 2]
    assert stored(study, "select distinct run_id from metrics") == [KEY]
    assert stored(study, "select count(*) from metrics") == [3 * 4 + 1], "and the summary"
    assert stored(study, "select step from metrics order by step") == list(range(13))
    assert (study.folder.parents[1] / ".trackio" / "lottery.db").stat().st_size == size
    assert stored(study, "select alias from artifact_aliases order by alias") == [
        "latest",
        *(f"round-00{k}" for k in range(3)),
    ]
    assert capfd.readouterr() == ("", "")
    assert (dict(os.environ), sys.excepthook) == (environment, hooks)
    assert list(home.rglob("*")) == []
    assert warnings_of() == []


@installed
@pytest.mark.usefixtures("fresh")
def test_two_studies_share_the_dashboards_database(study: Any, tmp_path: Path) -> None:
    play(study, range(1))
    config = Config(name="other", tracker=Tracker(name="trackio"), paths=Paths(runs=str(study.folder.parents[1])))
    tracker = make_tracker(config, "f" * 12, study.folder)
    tracker.start(YAML)
    tracker.round(study.row(0), study.curve(0), study.mask_path(0))
    tracker.close("finished")
    assert stored(study, "select distinct run_name from metrics order by 1") == [
        f"imp seed 3 ({KEY})",
        f"other seed 0 ({'f' * 12})",
    ]
    assert stored(study, "select count(distinct name) from artifacts") == [2]


@installed
@pytest.mark.usefixtures("fresh")
def test_no_wish_of_the_environment_leads_to_the_network(
    study: Any, monkeypatch: pytest.MonkeyPatch, warnings_of: Callable[[], list[str]]
) -> None:
    """A token makes trackio ask Hugging Face who its owner is. Any connection fails the test."""
    for name, value in {
        "HF_TOKEN": "hf_x",
        "TRACKIO_SPACE_ID": "me/space",
        "TRACKIO_SERVER_URL": "http://192.0.2.1/?write_token=x",
        "TRACKIO_WEBHOOK_URL": "http://192.0.2.1",
    }.items():
        monkeypatch.setenv(name, value)
    play(study, range(2))
    assert stored(study, ROUNDS) == [0, 1]
    assert warnings_of() == []
    assert os.environ["TRACKIO_SPACE_ID"] == "me/space"


@installed
@pytest.mark.usefixtures("fresh")
def test_on_a_network_file_system_rows_are_appended_once(study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """trackio sees NFS by itself; the variable makes it act as if it had."""
    monkeypatch.setenv("TRACKIO_STORAGE_MODE", "jsonl")
    play(study, range(1), "failed")
    play(study, range(3))
    home = study.folder.parents[1] / ".trackio"
    lines = [line for path in home.glob("inbox/*/*.jsonl") for line in path.read_text().splitlines()]
    assert sum('"round":' in line for line in lines) == 3
    assert len(lines) == 3 * 4 + 1
    assert not list(home.glob("*.db")), "SQLite is not safe there"


@installed
@pytest.mark.usefixtures("fresh")
def test_a_directory_that_cannot_be_written_costs_a_warning(
    study: Any, capfd: pytest.CaptureFixture[str], warnings_of: Callable[[], list[str]]
) -> None:
    (study.folder.parents[1] / ".trackio").write_text("a file")
    play(study, range(2))
    (warning,) = warnings_of()
    assert "trackio failed" in warning
    assert "\n" not in warning
    assert capfd.readouterr() == ("", "")


KILLED = """
import os, signal, sys, time
sys.path[:0] = [{tests!r}, {above!r}, {root!r}]
from pathlib import Path
from conftest import FakeStudy
import test_trackio as t
make = t.make_tracker
class Killed:
    def __init__(self, tracker): self.tracker = tracker
    def __getattr__(self, name): return getattr(self.tracker, name)
    def close(self, status): os.kill(os.getpid(), signal.SIGKILL)
t.make_tracker = lambda *args: Killed(make(*args))
t.play(FakeStudy(Path(sys.argv[1])), range(3))
"""


@installed
@pytest.mark.slow
@pytest.mark.usefixtures("fresh")
def test_a_killed_study_is_continued_without_a_row_lost_or_doubled(study: Any, tmp_path: Path) -> None:
    here, folder = Path(__file__).parent, tmp_path / "killed" / "imp" / KEY
    script = KILLED.format(tests=str(here), above=str(here.parent), root=str(here.parents[1]))
    ended = subprocess.run([sys.executable, "-W", "ignore", "-c", script, str(folder)], timeout=120)
    assert ended.returncode == -signal.SIGKILL
    study.folder = folder
    play(study, range(3))
    assert stored(study, ROUNDS) == [0, 1, 2]
    assert stored(study, "select count(*) from metrics") == [3 * 4 + 1]
    assert stored(study, "select count(*) from artifact_versions") == [3]


@installed
@pytest.mark.slow
def test_the_command_line_with_trackio(tmp_path: Path, home: Path) -> None:
    options = [option for option in QUICK if not option.startswith("tracker=")]
    done = spawn(*options, "tracker=trackio", "name=study", cwd=tmp_path)
    assert done.status == 0, done.err
    assert "trackio" not in done.out + done.err
    with closing(sqlite3.connect(tmp_path / "runs/.trackio/lottery.db")) as database:
        assert [value for (value,) in database.execute(ROUNDS)] == [0, 1]


def test_where_it_is_missing_one_line_says_how_to_install_it_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lottery.config.find_spec", lambda name: None)
    outcome = call("tracker=trackio")
    assert outcome.status == 2
    assert "pip install trackio" in outcome.line
    assert listing(tmp_path) == {}
