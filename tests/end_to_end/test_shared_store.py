"""A store that several users share: what one makes another may go on with, or is told in one line why not."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import hydra
import pytest
from command_line_tools import QUICK, call
from real_processes import PATIENCE, forked

from lottery import sharing
from lottery.sharing import make_folder, shared_mode

GROUP, ANN, BOB = 12000, 12001, 12002


@pytest.fixture(params=[0o022, 0o002])
def umask(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(sharing, "UMASK", request.param)
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("parent", [0o2775, 0o2770, 0o775, 0o755, 0o700, 0o1777])
def test_new_folders_and_files_are_shared_as_their_parent_is(tmp_path: Path, umask: int, parent: int) -> None:
    """A private parent, or a public one such as /tmp, changes nothing: then the umask alone counts."""
    top = tmp_path / "top"
    top.mkdir()
    top.chmod(parent)
    make_folder(top / "train" / "key")
    shared = parent in (0o2775, 0o2770, 0o775)
    expected = (parent & 0o2070 | 0o705) if shared else 0o777 & ~umask
    assert mode(top / "train") == mode(top / "train" / "key") == expected
    assert shared_mode(top, 0o666) == (0o664 if shared else 0o666 & ~umask)


def test_a_private_umask_is_kept_where_nothing_is_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "UMASK", 0o077)
    tmp_path.chmod(0o755)
    assert shared_mode(tmp_path, 0o777) == 0o700


# -- two real users ----------------------------------------------------------------------------------------------------

Study = Callable[..., tuple[int | None, str]]


@pytest.fixture
def shared() -> Iterator[Path]:
    """A store for a group, which `os` tells from root's folders: mode 2775, as slurm/README.md says."""
    if os.geteuid() != 0:
        pytest.skip("only root can act as two other users")
    needed = {above for file in (hydra.__file__, __file__) for above in Path(file).resolve().parents}
    if closed := [str(path) for path in needed if not path.stat().st_mode & stat.S_IXOTH]:
        pytest.skip(f"{min(closed)} is closed to other users, who need the packages and the checkout in it")
    folder = Path(tempfile.mkdtemp(prefix="lottery-"))  # pytest's own folders are closed to others
    folder.chmod(0o755)
    store = folder / "store"
    store.mkdir()
    os.chown(store, 0, GROUP)
    store.chmod(0o2775)
    for user in (ANN, BOB):
        (folder / str(user)).mkdir()
        os.chown(folder / str(user), user, GROUP)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def _imported(tmp_path_factory: pytest.TempPathFactory) -> None:
    """All modules that a study needs, imported once for both users."""
    assert call(*QUICK, f"paths.runs={tmp_path_factory.mktemp('first')}").status == 0


@pytest.fixture
def study(shared: Path, tmp_path: Path, _imported: None) -> Study:
    """Runs a study as a user with the umask that most systems have; gives its exit status and its output."""

    def run(user: int, *overrides: str) -> tuple[int | None, str]:
        def become() -> None:
            os.setgroups([])
            os.setgid(GROUP)
            os.setuid(user)
            os.umask(0o022)
            sharing.UMASK = 0o022
            os.environ["HOME"] = str(shared / str(user))

        command = [*QUICK, f"paths.runs={shared / str(user)}", f"paths.store={shared / 'store'}", *overrides]
        process = forked(command, tmp_path / "output", become)
        process.join(PATIENCE)
        return process.exitcode, (tmp_path / "output").read_text()

    return run


def dense(store: Path) -> Path:
    """The stage that was computed first."""
    return min(store.glob("train/*"), key=lambda folder: (folder / "stage.json").stat().st_mtime_ns)


@pytest.mark.slow
def test_two_users_share_trainings(shared: Path, study: Study) -> None:
    """Umask 022 or not. What one left unfinished the other finishes."""
    status, said = study(ANN)
    assert status == 0, said
    store = shared / "store"
    for path in [store, *store.rglob("*")]:
        assert path.stat().st_gid == GROUP
        assert mode(path) == (0o2775 if path.is_dir() else 0o664), path
    done = dense(store) / "DONE"
    done.unlink()
    status, said = study(BOB, "method.rate=0.5")
    assert status == 0, said
    assert done.stat().st_uid == BOB
    assert len(list(store.glob("train/*"))) == 3


@pytest.mark.slow
def test_a_store_that_another_user_closed(shared: Path, study: Study) -> None:
    """Made by an older version, or in a folder that is not shared: said before anything is computed."""
    status, said = study(ANN)
    assert status == 0, said
    stage = dense(shared / "store")
    (stage / "DONE").unlink()
    stage.chmod(0o755)
    remedy = (
        "belongs to another user, and you may not write in it; members of a group who share a store set `umask 002`"
    )
    status, said = study(BOB)
    assert status == 1
    assert f"1 unfinished train stage(s) cannot be taken over: {stage}: {remedy}" in said
    assert said.splitlines()[-1].startswith(f"lottery: {stage}: {remedy}")
    assert not list((shared / str(BOB)).rglob("rounds.jsonl"))
    stage.parent.chmod(0o755)
    shutil.rmtree(shared / str(BOB))
    (shared / str(BOB)).mkdir()
    os.chown(shared / str(BOB), BOB, GROUP)
    status, said = study(BOB)
    assert status == 2
    assert said.startswith(f"lottery: paths.store: {stage.parent}: {remedy}")
    assert list((shared / str(BOB)).iterdir()) == []
