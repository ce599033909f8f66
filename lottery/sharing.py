"""Folders that processes and users share: permissions, write guards, files that only one can create. Torch-free."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

UMASK = os.umask(0)
os.umask(UMASK)
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")  # names of the temporary files of `files.replacing`
NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK)  # where hard links do not work

GUARDS: dict[Path, Callable[[], None]] = {}
"""Folder -> a function that raises if this process may not write there (`lease.Lease.check`)."""


def guard(path: Path) -> None:
    """Call the guards of the folders above `path`, which raise where this process may not write."""
    for folder in path.parents:
        if folder in GUARDS:
            GUARDS[folder]()


def remove_temporary(folder: Path) -> None:
    """Remove the files that interrupted writes left in a folder, at any depth. Only its one writer may call this."""
    for path in folder.rglob(".*.tmp"):
        if TEMPORARY.fullmatch(path.name):
            with suppress(OSError):
                path.unlink()


def make_folder(path: Path) -> None:
    """Create a folder and its missing parents, group-writable where the nearest existing parent is shared."""
    for folder in reversed([folder for folder in (path, *path.parents) if not folder.exists()]):
        with suppress(FileExistsError):
            folder.mkdir()
            found, wanted = folder.stat().st_mode, shared_mode(folder.parent, 0o777)
            if wanted & ~found:
                folder.chmod(stat.S_IMODE(found | wanted))
    path.mkdir(parents=True, exist_ok=True)  # raises where it is a file


def shared_mode(parent: Path, base: int) -> int:
    """Return the mode of a new file (base 0o666) or folder (0o777): by the umask, plus a shared parent's group rights.

    A parent is shared where its group may write to it and it is not sticky, as the public /tmp is.
    """
    mode, found = base & ~UMASK, parent.stat().st_mode
    if found & stat.S_IWGRP and not found & stat.S_ISVTX:
        mode |= found & base & stat.S_IRWXG
        mode |= found & stat.S_ISGID if base & stat.S_IXGRP else 0
    return mode


def create(path: Path, data: bytes) -> bool:
    """Create a file together with its content; False if it exists. Of several processes only one succeeds.

    Raises OSError. The link count shows whether a repeated request to a file server succeeded the first time.
    """
    temporary = path.with_name(f"{path.name}-{uuid4().hex}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.chmod(shared_mode(path.parent, 0o666))
        try:
            os.link(temporary, path)
        except FileExistsError:
            return temporary.stat().st_nlink > 1
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            return _create_empty_first(path, data)
        return True
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _create_empty_first(path: Path, data: bytes) -> bool:
    """`create` without hard links: others may see the file before its content is there."""
    try:
        file = path.open("xb")
    except FileExistsError:
        return False
    try:
        with file:
            file.write(data)
    except OSError:  # a full disk
        path.unlink(missing_ok=True)
        raise
    return True
