"""trackio: a local dashboard over all studies under one `paths.runs`, with no account and no network.

`TRACKIO_DIR=runs/.trackio trackio show --project lottery` opens it. On a network file system trackio appends JSON,
which the dashboard takes in, since SQLite is not safe there; masks are then left to the run folders.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from lottery.config import Tracker
from lottery.errors import LotteryError
from lottery.files import file_digest
from lottery.tracking.guard import within
from lottery.tracking.sink import Figures, MaskFile, Metrics, Recorded, RunInfo

ELSEWHERE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_WEBHOOK_URL", "SYSTEM")  # each would mean the network
OWN_COLUMNS = ("step", "timestamp")


class TrackioSink:
    """One run a study, its id the study's key, in a database that all studies of the project share."""

    label = "trackio"
    patience = 60.0
    keeps = True

    def __init__(self, options: Tracker, key: str, home: Path) -> None:
        self.project, self.key = options.project, key
        self.home = Path(os.environ.get("TRACKIO_DIR") or home)
        self._process = ExitStack()
        self._failures: list[str] = []  # trackio tells them as warnings, from threads of its own
        self._run: Any = None
        self._rows = 0  # on record
        self._ids: set[str] = set()

    # -- the sink's calls -------------------------------------------------------------------------------------------

    def enter(self) -> None:
        self._process.enter_context(environment(self.home))

    def recorded(self) -> Recorded:
        trackio = self._module()
        rows = self._stored_rows()
        self._rows = len(rows)
        self._ids = {self._id(row, trackio.utils.MEDIA_DIR) for row in rows}
        return Recorded(self._ids | self._stored_masks())

    def open(self, run: RunInfo) -> None:
        trackio = self._module()
        local: dict[str, Any] = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
        self._run = trackio.init(
            project=self.project, name=run.name, group=run.group, resume="allow",
            config={**run.config, "tags": run.tags}, **local,
        )  # fmt: skip
        self._run.id = self.key
        self._check()

    def metrics(self, figures: Figures) -> None:
        self._log(dict(figures))

    def image(self, key: str, path: Path) -> None:
        self._log({key: self._module().Image(path)})

    def artifact(self, mask: MaskFile, metadata: dict[str, Any]) -> None:
        if self._appends():
            return
        artifact = self._module().Artifact(mask.artifact, type="mask", metadata=metadata)
        artifact.add_file(mask.path, name=mask.path.name)
        self._run.log_artifact(artifact, aliases=[mask.alias])
        self._check()

    def summary(self, figures: Figures) -> None:
        """As a row, since trackio keeps no summary: the latest one counts."""
        row = {f"summary/{name}": value for name, value in figures.items()}
        if row and Metrics(row).id not in self._ids:
            self._log(row)

    def close(self, exit_code: int) -> None:
        run, self._run = self._run, None
        run.finish()
        self._check()

    def leave(self, seconds: float) -> None:
        if self._run is not None:  # given up: its thread would go on trying
            with suppress(Exception, SystemExit):
                within(seconds, self._run.finish)
        self._process.close()

    # -- how --------------------------------------------------------------------------------------------------------

    def _module(self) -> Any:
        """trackio, kept to its own directory, silent, and its failures ours to see."""
        import trackio

        if trackio.utils.TRACKIO_DIR.resolve() != self.home.resolve():  # it is fixed when trackio is imported
            raise LotteryError(f"this process already uses trackio with {trackio.utils.TRACKIO_DIR}, not {self.home}")
        for module in (trackio, trackio.run, trackio.utils):
            self._replace(module, "print", lambda *args, **options: None)
            self._replace(module, "_emit_nonfatal_warning", lambda text, *args, **options: self._failures.append(text))
        self._replace(trackio.run, "_get_default_namespace", lambda: None)  # asks Hugging Face for the user's name
        return trackio

    def _replace(self, module: Any, name: str, value: Any) -> None:
        """Set a module's global until `leave`."""
        before = vars(module).get(name)

        def restore() -> None:
            delattr(module, name) if before is None else setattr(module, name, before)

        if getattr(before, "__module__", None) != __name__:
            setattr(module, name, value)
            self._process.callback(restore)

    def _log(self, row: dict[str, Any]) -> None:
        self._run.log(row, step=self._rows)
        self._rows += 1
        self._check()

    def _check(self) -> None:
        if self._failures:
            raise LotteryError(self._failures[0])

    def _appends(self) -> bool:
        """Whether trackio appends JSON lines instead of writing to its database."""
        return self._module().utils.get_storage_mode() == "jsonl"

    def _stored_rows(self) -> list[dict[str, Any]]:
        trackio = self._module()
        rows = trackio.SQLiteStorage.get_logs(self.project, run_id=self.key)
        if self._appends():
            for path in sorted(trackio.run.fragments.local_inbox_dir().glob("*/*.jsonl")):
                lines = trackio.run.fragments.parse_fragment_bytes(path.read_bytes())
                rows += [r["metrics"] for r in lines if (r["project"], r.get("run_id")) == (self.project, self.key)]
        return [{name: value for name, value in row.items() if name not in OWN_COLUMNS} for row in rows]

    def _stored_masks(self) -> set[str]:
        storage = self._module().SQLiteStorage
        masks = [found for found in storage.list_artifacts(self.project) if found["name"].endswith(f"-{self.key}")]
        ids = set()
        for mask in masks:
            for version in mask["versions"]:
                told = storage.get_artifact_manifest(self.project, mask["name"], f"v{version['version']}")["metadata"]
                # Masks of the same content are one version, with an alias for each round.
                ids |= {f"{alias} {told['digest'][:16]}" for alias in version["aliases"]}
        return ids

    @staticmethod
    def _id(row: dict[str, Any], media: Path) -> str:
        """The id of the item that a row was."""
        for name, value in row.items():
            if isinstance(value, dict):
                path = media / value.get("file_path", "")
                return f"{name} {file_digest(path)[:16]}" if path.is_file() else ""
        return Metrics(row).id


@contextmanager
def environment(home: Path) -> Iterator[None]:
    """trackio's own variables for a local database in `home`; at the end as they were before."""
    names = ("TRACKIO_DIR", "TRACKIO_DISABLE_LOGS_CACHE", "HF_HUB_DISABLE_TELEMETRY", *ELSEWHERE)
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ |= {
        "TRACKIO_DIR": str(home.resolve()),
        "TRACKIO_DISABLE_LOGS_CACHE": "1",  # it would not see what another process wrote
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
