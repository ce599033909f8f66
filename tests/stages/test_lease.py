"""One writer at a time: leases held, given back, lost by the dead and never shared. Real processes where it matters."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from command_line_tools import environment

from lottery import lease as module
from lottery.errors import Interrupted
from lottery.files import replacing, write_atomic
from lottery.lease import NAME, Holder, Lease, LeaseLost, read_holder
from lottery.sharing import GUARDS
from lottery.signals import StopFlag

HOLD = """
import sys, time
from pathlib import Path
from lottery import lease
lease.RENEW_SECONDS = 0.05
held = lease.Lease(Path(sys.argv[1]), "the other")
assert held.acquire()
print("held", flush=True)
for line in sys.stdin:
    try:
        held.check()
        print("ours", flush=True)
    except lease.LeaseLost as error:
        print("lost", error, flush=True)
"""


class Other:
    """Another process that holds the lease of a folder, until it is ended one way or another."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(folder)], env=environment(), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self.line() == "held"

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def check(self) -> str:
        assert self.process.stdin is not None
        print(file=self.process.stdin, flush=True)
        return self.line()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Other]:
    found = Other(tmp_path)
    yield found
    found.process.kill()
    found.process.communicate()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases that are renewed, and given up for lost, in fractions of a second."""
    monkeypatch.setattr(module, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(module, "STALE_SECONDS", 0.5)
    monkeypatch.setattr(module, "UNREADABLE_SECONDS", 0.1)
    monkeypatch.setattr(module, "POLL_SECONDS", 0.02)


def elsewhere(**facts: object) -> Holder:
    """A holder on another machine, of which nothing can be known but what its lease shows."""
    known = replace(Holder.this_process("far away"), id="x", host="node7", kernel="another", pid=1, started="1")
    return replace(known, **facts)  # type: ignore[arg-type]


def leave(folder: Path, holder: Holder) -> Path:
    """A lease as that holder would have written it."""
    (folder / NAME).write_text(json.dumps(asdict(holder)))
    return folder / NAME


def obtained(lease: Lease, within: float) -> bool:
    """Whether the lease comes to be ours within so many seconds."""
    deadline = time.monotonic() + within
    return lease.obtain(StopFlag(), lambda _: None, "", needless=lambda: time.monotonic() > deadline)


def test_only_one_holds_it_and_it_is_given_back(tmp_path: Path) -> None:
    one, two = Lease(tmp_path, "one"), Lease(tmp_path, "two")
    assert one.acquire()
    assert not two.acquire()
    holder = read_holder(tmp_path)
    assert holder is not None
    assert (holder.study, holder.pid) == ("one", os.getpid())
    one.check()
    one.release()
    assert read_holder(tmp_path) is None
    assert two.acquire()
    one.release()  # it is no longer ours to give back
    two.check()
    two.release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick")
def test_a_holder_that_was_killed_is_relieved_at_once(tmp_path: Path, other: Other) -> None:
    lease = Lease(tmp_path)
    assert not lease.acquire()
    other.process.kill()
    other.process.wait()
    assert lease.acquire()
    lease.release()


@pytest.mark.usefixtures("quick")
def test_a_holder_that_lives_keeps_it(tmp_path: Path, other: Other) -> None:
    """Three times as long as a lease that nobody renews would last."""
    assert not obtained(Lease(tmp_path), within=1.5)
    assert other.check() == "ours"


@pytest.mark.usefixtures("quick")
def test_a_holder_that_sleeps_is_relieved_and_finds_out(tmp_path: Path, other: Other) -> None:
    """A machine that was suspended: when it wakes up, it must not write what is no longer its own."""
    other.process.send_signal(signal.SIGSTOP)
    lease = Lease(tmp_path)
    assert not lease.acquire()
    assert obtained(lease, within=10)
    other.process.send_signal(signal.SIGCONT)
    said = other.check()
    assert said.startswith("lost")
    assert f"process {os.getpid()}" in said
    time.sleep(0.2)  # its heartbeat is over too
    lease.check()
    lease.release()


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("jump", [-1e9, 1e9, 0.0])
def test_clocks_do_not_matter(tmp_path: Path, jump: float) -> None:
    """A machine whose clock is years off holds its lease as long as it touches it, and loses it when it stops."""
    path = leave(tmp_path, elsewhere())
    over = threading.Event()

    def touch() -> None:
        number = 0
        while not over.wait(0.05):
            number += 1
            os.utime(path, (time.time() + jump - number,) * 2)  # backwards, too

    heart = threading.Thread(target=touch)
    heart.start()
    lease = Lease(tmp_path)
    assert not obtained(lease, within=1.5)
    over.set()
    heart.join()
    assert not lease.acquire()
    assert obtained(lease, within=10)
    lease.release()


def test_a_dead_process_is_told_from_one_that_got_its_number(tmp_path: Path) -> None:
    ours = Holder.this_process()
    leave(tmp_path, replace(ours, id="x"))
    assert not Lease(tmp_path).acquire()
    leave(tmp_path, replace(ours, id="x", started="1"))
    lease = Lease(tmp_path)
    assert lease.acquire()
    lease.release()


def test_of_another_machine_or_container_nothing_is_concluded(tmp_path: Path) -> None:
    """Its process numbers mean nothing here, even under the same host name."""
    for other in (elsewhere(), elsewhere(host=Holder.this_process().host), elsewhere(kernel="")):
        leave(tmp_path, other)
        assert not Lease(tmp_path).acquire()


@pytest.mark.parametrize(
    ("restarts", "job", "taken"), [("1", "17", True), ("0", "17", False), ("1", "18", False), ("", "", False)]
)
def test_a_job_that_slurm_starts_again_relieves_its_former_self(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restarts: str, job: str, taken: bool
) -> None:
    """And no other job, nor another process of the same run of the job."""
    leave(tmp_path, elsewhere(job="17", restarts=0))
    monkeypatch.setenv("SLURM_JOB_ID", job)
    monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
    lease = Lease(tmp_path)
    assert lease.acquire() == taken
    lease.release()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"id": 1}'])
def test_a_lease_that_cannot_be_read_is_named_at_once_and_taken_over_soon(tmp_path: Path, content: bytes) -> None:
    """It was left by a crash. An empty one once cost two silent minutes."""
    (tmp_path / NAME).write_bytes(content)
    lease, said = Lease(tmp_path), list[str]()
    assert not lease.acquire()
    assert lease.obtain(StopFlag(), said.append, "the dense run")
    assert said == [
        f"waiting for an unknown process: the dense run; {tmp_path / NAME} is empty or damaged; taken over in 0.1 s"
    ]
    lease.release()


def test_what_cannot_be_read_but_is_touched_belongs_to_somebody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "UNREADABLE_SECONDS", 0.3)
    monkeypatch.setattr(module, "POLL_SECONDS", 0.02)
    path, times = tmp_path / NAME, iter(range(1, 10**6))
    path.write_bytes(b"{")
    lease, deadline = Lease(tmp_path), time.monotonic() + 1.0
    touched = lambda: (os.utime(path, (next(times),) * 2), time.monotonic() > deadline)[1]  # noqa: E731
    assert not lease.obtain(StopFlag(), lambda _: None, "", needless=touched)


def test_a_lease_is_whole_from_its_first_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody sees an empty one, whenever its writer is killed. Without hard links leases still exclude each other."""
    seen: list[object] = []
    link = os.link

    def looking(source: Path, target: Path) -> None:
        seen.append(target.exists())
        link(source, target)
        seen.append(read_holder(tmp_path))

    monkeypatch.setattr(os, "link", looking)
    lease = Lease(tmp_path)
    assert lease.acquire()
    assert seen == [False, lease.holder]
    lease.release()

    def refused(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    assert lease.acquire()
    assert not Lease(tmp_path).acquire()
    assert read_holder(tmp_path) == lease.holder
    lease.release()
    assert list(tmp_path.iterdir()) == []


# -- lost for good -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
def test_a_lease_that_vanished_is_lost(tmp_path: Path) -> None:
    """Somebody may have taken it over, finished the work and given it back: to make it again would spoil that."""
    lease = Lease(tmp_path)
    assert lease.acquire()
    (tmp_path / NAME).unlink()
    with pytest.raises(LeaseLost, match="the lease is gone: taken over by another process, or removed"):
        lease.check()
    assert not (tmp_path / NAME).exists()
    leave(tmp_path, lease.holder)  # even if it came back
    with pytest.raises(LeaseLost):
        lease.check()
    lease.release()
    assert lease.acquire()  # until it is taken anew
    lease.check()
    lease.release()


@pytest.mark.usefixtures("quick")
def test_a_lost_lease_names_the_new_holder_and_leaves_its_lease_alone(tmp_path: Path) -> None:
    lease = Lease(tmp_path)
    assert lease.acquire()
    leave(tmp_path, elsewhere())
    with pytest.raises(LeaseLost, match="taken over by far away, process 1 on node7"):
        lease.check()
    lease.release()
    assert read_holder(tmp_path) == elsewhere()


@pytest.mark.usefixtures("quick")
def test_who_is_suspended_while_it_gives_back_removes_no_other_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had looked, and slept before the removal."""
    lease = Lease(tmp_path)
    assert lease.acquire()
    leave(tmp_path, elsewhere())
    monkeypatch.setattr(lease, "_ours", lambda: True)
    lease.release()
    assert read_holder(tmp_path) == elsewhere()


@pytest.mark.usefixtures("quick")
def test_no_file_is_written_in_a_folder_that_was_lost(tmp_path: Path) -> None:
    """Wherever in the writing it happens: before it, before the check, or between the check and the rename."""
    lease, path = Lease(tmp_path), tmp_path / "sub" / "file"

    def lose() -> None:
        guard = GUARDS[tmp_path]
        (tmp_path / NAME).unlink()
        with Lease(tmp_path) as other:
            assert other.acquire()
        GUARDS[tmp_path] = guard  # which another process would have left alone

    def write(text: str, last: Callable[[], object] = lambda: None) -> None:
        with replacing(path) as temporary:
            temporary.write_text(text)
            last()

    assert lease.acquire()
    write("before")
    for moment in ("first", "check", "rename"):
        lease.release()
        assert lease.acquire()
        calls = 0

        def check(lease: Lease = lease, moment: str = moment) -> None:
            nonlocal calls
            calls += 1
            if moment == "first" and calls == 1:
                lose()
            lease.check()
            if moment == "rename" and calls == 2:
                lose()

        GUARDS[tmp_path] = check
        with pytest.raises(LeaseLost, match="the lease is gone"):
            write("after", lose if moment == "check" else lambda: None)
        assert path.read_bytes() == b"before"
        assert list(path.parent.iterdir()) == [path]
    lease.release()


def test_a_folder_that_is_sealed_is_nobody_s(tmp_path: Path) -> None:
    lease = Lease(tmp_path)
    assert lease.acquire()
    write_atomic(tmp_path / "DONE", b"{}")
    with pytest.raises(LeaseLost, match="finished by another process"):
        write_atomic(tmp_path / "DONE", b"other")
    lease.release()
    assert (tmp_path / "DONE").read_bytes() == b"{}"


@pytest.mark.usefixtures("quick")
def test_a_process_that_fell_silent_is_waited_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run folder and stage of a machine that died are not waited for one after the other."""
    monkeypatch.setattr(module, "SILENT", {})
    one, two, later = (tmp_path / name for name in ("run", "stage", "later"))
    for folder, id in ((one, "x"), (two, "y"), (later, "z")):
        folder.mkdir()
        leave(folder, elsewhere(id=id))
    os.utime(later / NAME, (time.time() + 60,) * 2)  # it was alive then
    lease = Lease(one)
    assert not lease.acquire()
    assert obtained(lease, within=10)
    assert not Lease(later).acquire()
    second = Lease(two)
    assert second.acquire()
    for held in (lease, second):
        held.release()


def test_who_waits_is_told_for_whom_once_and_a_signal_ends_it(tmp_path: Path) -> None:
    leave(tmp_path, elsewhere(job="25"))
    stop, said = StopFlag(), []
    threading.Timer(0.7, lambda: setattr(stop, "signum", signal.SIGTERM)).start()
    with pytest.raises(Interrupted, match="SIGTERM while it waited"):
        Lease(tmp_path).obtain(stop, said.append, "the dense run")
    whom = "waiting for far away, process 1 on node7 (job 25): the dense run"
    assert said == [f"{whom}; taken over after 120 s without a sign"]


COUNT = """
import os, random, sys, time
from pathlib import Path
from lottery import lease
from lottery.signals import StopFlag
lease.RENEW_SECONDS, lease.POLL_SECONDS = 0.05, 0.001
folder, counter, inside = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[2] + ".inside"
for _ in range(int(sys.argv[3])):
    held = lease.Lease(folder)
    held.obtain(StopFlag(), lambda _: None, "")
    os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # fails if somebody else is inside
    value = int(counter.read_text())
    time.sleep(random.random() / 500)
    counter.write_text(str(value + 1))
    os.unlink(inside)
    held.release()
"""


def test_many_processes_are_never_inside_together(tmp_path: Path) -> None:
    """Four processes add to one number, reading and writing apart: none is lost, and none meets another."""
    counter, each = tmp_path / "counter", 40
    counter.write_text("0")
    command: Callable[[], subprocess.Popen[bytes]] = lambda: subprocess.Popen(  # noqa: E731
        [sys.executable, "-c", COUNT, str(tmp_path / "stage"), str(counter), str(each)], env=environment()
    )
    assert [process.wait(120) for process in [command() for _ in range(4)]] == [0, 0, 0, 0]
    assert counter.read_text() == str(4 * each)


@pytest.mark.usefixtures("quick")
def test_of_many_who_take_over_from_the_dead_one_gets_it(tmp_path: Path) -> None:
    """Twenty rounds of eight threads that all see the same abandoned lease in the same moment."""
    for _ in range(20):
        leave(tmp_path, replace(Holder.this_process(), id="x", started="1"))
        leases, ready = [Lease(tmp_path) for _ in range(8)], threading.Barrier(8)
        won: list[Lease] = []

        def race(lease: Lease, ready: threading.Barrier = ready, won: list[Lease] = won) -> None:
            ready.wait()
            if lease.acquire():
                won.append(lease)

        threads = [threading.Thread(target=race, args=(lease,)) for lease in leases]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        ours = []
        for lease in won:
            try:
                lease.check()
                ours.append(lease)
            except LeaseLost:
                pass
        assert len(ours) == 1
        for lease in won:
            lease.release()
        assert not (tmp_path / NAME).exists()
