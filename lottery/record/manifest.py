"""The manifest of a run folder: the digest of each file as the study wrote it, so that changed files are noticed.

Torch-free. Readers of run folders use `read_file`. Folders of older versions have no manifest: nothing is checked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from lottery.errors import LotteryError
from lottery.files import Missing, Unreadable, read_bytes, read_json, write_json
from lottery.record.names import CONFIG, CURVES, MANIFEST, SEARCH, TABLE

FORMAT = "lottery-manifest/1"
GROWING = frozenset({TABLE, CURVES, SEARCH})  # files that may be longer than listed while the study is unfinished


@dataclass(frozen=True)
class Content:
    """Size and digest of a file."""

    size: int  # bytes
    sha256: str

    @classmethod
    def of(cls, data: bytes) -> Content:
        return cls(len(data), hashlib.sha256(data).hexdigest())


@dataclass(frozen=True)
class Manifest:
    """The listed files of a run folder, by their path relative to it."""

    files: Mapping[str, Content] = field(default_factory=dict)
    study: str = ""  # the study's key
    complete: bool = False  # the study is finished: no file grows any more
    inputs: str = ""  # `lottery.inputs.inputs_of` when the study last ran; "" where it must run again to be sure
    notes: tuple[str, ...] = ()  # warnings that a run without any change repeats

    def holds(self, name: str, data: bytes) -> bool:
        """Whether `data` matches the listed content of a file; True for a file that is not listed.

        A configuration may differ in options outside the study key, such as the paths of a folder that was moved.
        A GROWING file of an unfinished study may be longer: a kill may come after a row and before the manifest.
        """
        said = self.files.get(name)
        if said is None:
            return True
        grown = name in GROWING and not self.complete and len(data) > said.size
        same = Content.of(data[: said.size] if grown else data) == said
        return same or (name == CONFIG and same_study(data, self.study))

    def write(self, run: Path) -> None:
        files = {name: {"bytes": each.size, "sha256": each.sha256} for name, each in self.files.items()}
        content = {"format": FORMAT, "study": self.study, "complete": self.complete, "files": files}
        if self.inputs:
            content |= {"inputs": self.inputs, "notes": self.notes}
        write_json(run / MANIFEST, content)


def same_study(config: bytes, key: str) -> bool:
    """Whether a configuration (a YAML text) has this study key."""
    from omegaconf import OmegaConf

    from lottery.config import study_key  # Hydra comes with it
    from lottery.saved import parse_saved

    try:
        return study_key(OmegaConf.create(parse_saved(config.decode(), CONFIG))) == key
    except (LotteryError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        return False


def read_manifest(run: Path) -> Manifest | None:
    """Return the manifest of a run folder, or None without one. Raises LotteryError if damaged or of a newer format."""
    path = run / MANIFEST
    try:
        stat = path.stat()
    except OSError:
        return None
    return _parsed(path, (stat.st_ino, stat.st_mtime_ns, stat.st_size))


@lru_cache(maxsize=1024)
def _parsed(path: Path, _version: tuple[int, ...]) -> Manifest:
    found = read_json(path, remedy(path.parent))
    if found.get("format") != FORMAT:
        raise Unreadable.of(path, f"format {found.get('format')!r}, expected {FORMAT!r}", "update lottery to read it")
    try:
        files = {name: Content(int(each["bytes"]), str(each["sha256"])) for name, each in found["files"].items()}
        notes = tuple(map(str, found.get("notes", ())))
        if any(".." in name or name.startswith("/") or not name.isprintable() for name in files):
            raise ValueError("a file outside of the run folder")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Unreadable.of(path, "not a manifest", remedy(path.parent)) from error
    return Manifest(
        files, str(found.get("study", "")), found.get("complete") is True, str(found.get("inputs", "")), notes
    )


def read_file(run: Path, name: str) -> bytes:
    """Return the bytes of a file of a run folder.

    Raises LotteryError, with a remedy, where it does not match the manifest; Missing where it is unlisted and absent.
    """
    for _ in range(2):  # a running study may write both files between the two reads
        manifest = read_manifest(run) or Manifest()
        try:
            data = read_bytes(run / name)
        except Missing:
            if name not in manifest.files:
                raise
            what = "missing"
        else:
            if manifest.holds(name, data):
                return data
            what = "changed since the study wrote it"
    raise Unreadable.of(run / name, what, remedy(run, name))


def remedy(run: Path, name: str = MANIFEST) -> str:
    """Return a sentence on how to repair a file of a run folder."""
    if name == CONFIG:
        return "put back what it was, or run the study's own command again, which writes it anew"
    return f"`python -m lottery --config {run / CONFIG}` writes it again"
