"""Check folders: whether the store works there, and whether the data sets are complete. Torch-free."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

from lottery.checkup.findings import Finding, note, ok, problem, size
from lottery.config.data import Data
from lottery.errors import LotteryError
from lottery.files import Unreadable, parse_json, write_atomic
from lottery.lease import Lease

NETWORK = {
    "nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "afs", "9p", "cifs", "smb3", "glusterfs", "orangefs", "panfs",
    "wekafs", "fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.juicefs", "fuse.gpfs", "virtiofs",
}  # fmt: skip
MEMORY = {"tmpfs", "ramfs"}
LITTLE, TIGHT = (100e6, 1e3), (5e9, 5e4)  # free bytes and files: below the first a problem, below the second a note
SLOW_MS = 250.0  # for one small file, written and renamed
CACHED = ("mnist", "fashion_mnist", "cifar10", "cifar100")
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


def check_folders(folders: dict[str, Path], slurm: bool) -> list[Finding]:
    """Check the folders (by key) that studies write to. Creates none of them, and leaves nothing in them."""
    found, looked = list[Finding](), dict[Path, str]()
    for key, folder in folders.items():
        there = next((path for path in (folder, *folder.absolute().parents) if path.exists()), Path("/"))
        if there in looked:
            found.append(ok(key, f"{folder}: not there yet, in the same place as {looked[there]}"))
        else:
            looked[there] = key
            found += check_folder(key, folder, there, slurm)
    return found


def check_folder(key: str, folder: Path, there: Path, slurm: bool) -> Iterator[Finding]:
    """Check that files in `there` are written whole, that only one process gets a lease, and that there is room.

    there: the folder itself, or its nearest parent that exists.
    """
    where = f"{folder}" if there == folder else f"{folder} (not there yet; looked at {there})"
    kind = file_system(there)
    try:
        milliseconds = try_out(there)
    except (OSError, LotteryError) as error:
        text = error.strerror if isinstance(error, OSError) and error.strerror else error
        yield problem(key, f"{where}: {text}", f"choose another folder: {key}=DIR")
        return
    yield ok(key, f"{where}: {kind}, renames and leases work, a small file takes {milliseconds:.1f} ms")
    if milliseconds > SLOW_MS:
        yield note(key, f"a small file takes {milliseconds:.0f} ms there: a slow or busy file system")
    if kind in MEMORY:
        yield note(key, f"{there} is in memory ({kind}): gone with the machine", f"{key}=DIR on a disk keeps results")
    elif slurm and kind not in NETWORK:
        text = f"{there} is {kind}, which other machines do not see unless it is exported to them"
        yield note(key, text, f"a sweep on several nodes needs {key} on a file system that they share")
    yield check_room(key, there)


def try_out(folder: Path) -> float:
    """Try the store's operations in a folder; return the ms of a small write. Raises OSError, LotteryError."""
    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=folder, ignore_cleanup_errors=True) as scratch:
        started = monotonic()
        replace_file(Path(scratch))
        milliseconds = 1e3 * (monotonic() - started)
        try_lease(Path(scratch))
        return milliseconds


def replace_file(scratch: Path) -> None:
    """Replace an open file. Raises LotteryError unless its path gives the new content and the open file the old one."""
    path = scratch / "file"
    path.write_bytes(b"old")
    with path.open("rb") as reader:
        write_atomic(path, b"new")
        if path.read_bytes() != b"new" or [*scratch.iterdir()] != [path] or reader.read() != b"old":
            raise LotteryError("renaming a file over another is not atomic here")


def try_lease(scratch: Path) -> None:
    """Take a lease twice. Raises LotteryError unless the second attempt fails, and succeeds after a release."""
    first, second = Lease(scratch), Lease(scratch)
    try:
        if not first.acquire() or second.acquire():
            raise LotteryError("two processes can create the same file here (no O_EXCL): leases are not safe")
        before = first.path.stat().st_mtime_ns
        os.utime(first.path, ns=(before + 10**10, before + 10**10))
        if first.path.stat().st_mtime_ns == before:
            raise LotteryError("touching a file does not change its time here: a dead process would not be noticed")
        first.release()
        if not second.acquire():
            raise LotteryError("a file that was removed is still there: leases cannot be given back")
    finally:
        first.release()
        second.release()


def check_room(key: str, folder: Path) -> Finding:
    """Check the free space, and the free inodes where the file system counts them."""
    found = os.statvfs(folder)
    free = found.f_bavail * found.f_frsize
    files = found.f_favail if found.f_files else float("inf")
    text = f"{size(free)} free" + (f", room for {files:,} files" if found.f_files else "")
    advice = "make room (`python -m lottery store gc`), or choose another folder"
    if free < LITTLE[0] or files < LITTLE[1]:
        return problem(key, text, advice)
    return note(key, text, advice) if free < TIGHT[0] or files < TIGHT[1] else ok(key, text)


def file_system(folder: Path) -> str:
    """Return the type of a folder's file system, such as ext4 or nfs4; "unknown" where the kernel does not list it."""
    real, kind, longest = os.path.realpath(folder), "unknown", -1
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return kind
    for line in lines:
        mount, _, source = line.partition(" - ")
        point = mount.split()[4].encode().decode("unicode_escape")  # blanks are written \040
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= longest:  # of several mounts at one point the last one is visible
            kind, longest = source.split()[0], len(point)
    return kind


# -- data sets ---------------------------------------------------------------------------------------------------------


def check_data(folder: Path, chosen: Data) -> list[Finding]:
    """Check the data sets in a folder, and the one that the configuration names."""
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    found = [data_file(path) for path in files]
    missing = [name for name in CACHED if folder / f"{name}.safetensors" not in files]
    source = chosen._target_.rpartition(".")[2]
    download = "run once where there is a network, or copy the file there"
    if source in missing:
        path = folder / f"{source}.safetensors"
        found.append(note("data", f"{path}: not there; made on first use, by a download", download))
    elif source == "imagefolder":
        found.append(image_folder(folder / (chosen.folder or chosen.name)))
    if missing and len(missing) < len(CACHED):
        found.append(ok("data", f"not in {folder}: {', '.join(missing)} (made on first use, by a download)"))
    elif missing:
        text = f"no data sets in {folder}; mnist1d and digits need none"
        found.append(note("data", text, f"LOTTERY_DATA or paths.data say where they lie; or {download}"))
    return found


def data_file(path: Path) -> Finding:
    """Check by its header and its length whether a data set's file is complete."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            total = os.fstat(file.fileno()).st_size
            header = parse_json(file.read(length), "its header") if length < min(total, 10**7) else None
        if header is None:
            raise ValueError("it has no header")
        header.pop("__metadata__", None)
        if total != 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0):
            raise ValueError(f"its length, {total:,} bytes, is not what its header says")
        if lacking := [name for name in ARRAYS if name not in header]:
            raise ValueError(f"it lacks {', '.join(lacking)}")
        train, test = (header[f"{part}_images"]["shape"] for part in ("train", "test"))
    except (OSError, Unreadable, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        return problem("data", f"{path}: not whole: {reason}", "delete it, to have it made again, or copy it anew")
    shape = "x".join(map(str, train[1:]))
    return ok("data", f"{path}: {train[0]:,} + {test[0]:,} images of {shape}, {size(total)}")


def image_folder(root: Path) -> Finding:
    """Check a tree of images laid out as ImageNet's."""
    try:
        classes = [sum(entry.is_dir() for entry in os.scandir(root / part)) for part in ("train", "val")]
    except OSError as error:
        advice = "paths.data and data.folder say where the tree lies: <paths.data>/<data.folder>/{train,val}/CLASS/"
        return problem("data", f"{error.filename}: {error.strerror}", advice)
    if classes[0] != classes[1] or not classes[0]:
        text = f"{root}: {classes[0]} classes in train, {classes[1]} in val"
        return problem("data", text, "the two must hold the same classes")
    return ok("data", f"{root}: {classes[0]:,} classes")
