"""The W&B server as `python -m lottery sync` needs it: runs by id, what they logged and used, and uploads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from lottery.errors import LotteryError
from lottery.tracking.lineage import Artifact, artifact_id

API_SECONDS = 20  # what an answer may take
UPLOAD_SECONDS = 600.0  # what the upload of one artifact may take


class Remote(Protocol):
    """A project on a server. Every call may raise LotteryError: then nothing is known of what it was to do."""

    def reach(self) -> None:
        """See whether the server answers, and lets us in."""

    def upload(self, segments: Sequence[Path]) -> None:
        """Send transaction logs of one run, oldest first."""

    def has_run(self, key: str) -> bool:
        """Whether the run is on the server."""

    def logged(self, key: str) -> set[str]:
        """The ids of the artifacts that a run made."""

    def used(self, key: str) -> set[str]:
        """The ids of the artifacts that a run used."""

    def log_artifact(self, key: str, artifact: Artifact, exit_code: int) -> None:
        """Add an artifact to what a run made; the run has ended, and its exit code stays what it was."""

    def use_artifact(self, key: str, artifact: Artifact, exit_code: int) -> None:
        """Add an artifact to what a run used. One that nobody made, a file of the user's, is recorded with that."""


class WandbRemote:
    """The real one, through W&B's command line and its API."""

    def __init__(self, project: str, entity: str | None) -> None:
        self.project, self._entity = project, entity or os.environ.get("WANDB_ENTITY")

    @cached_property
    def api(self) -> Any:
        import wandb

        with told("reach the server"):
            return wandb.Api(overrides={"project": self.project}, timeout=API_SECONDS)

    @cached_property
    def entity(self) -> str:
        with told("find out whose project it is"):
            return self._entity or self.api.default_entity

    def reach(self) -> None:
        with told("reach the server"):
            assert self.api  # it checks the key

    def upload(self, segments: Sequence[Path]) -> None:
        """With `wandb sync`, whose exit status is 0 whatever happens: a log that it sent is marked."""
        before = {path: marked(path) for path in segments}
        command = [sys.executable, "-m", "wandb", "sync", "--include-synced"]
        command += ["--project", self.project, "--entity", self.entity]
        done = subprocess.run(
            [*command, *map(str, segments)], env={**os.environ, "WANDB_SILENT": "false"}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        for path in segments:
            if marked(path) == before[path]:
                raise LotteryError(f"W&B did not take {path.parent.name}: {complaint(done.stdout)}")

    def has_run(self, key: str) -> bool:
        return self._run(key) is not None

    def logged(self, key: str) -> set[str]:
        with told("list the artifacts of a run"):
            return ids(self._existing(key).logged_artifacts())

    def used(self, key: str) -> set[str]:
        with told("list the inputs of a run"):
            return ids(self._existing(key).used_artifacts())

    def log_artifact(self, key: str, artifact: Artifact, exit_code: int) -> None:
        with told(f"upload {artifact.id}"), self._resumed(key, exit_code) as run, packed(artifact) as package:
            run.log_artifact(package, aliases=["latest", artifact.alias]).wait(timeout=UPLOAD_SECONDS)

    def use_artifact(self, key: str, artifact: Artifact, exit_code: int) -> None:
        with told(f"use {artifact.id}"):
            if artifact.type == "weights" and "file" in artifact.metadata:
                with self._resumed(key, exit_code) as run, packed(artifact) as package:
                    run.use_artifact(package)
            else:
                name = f"{self.entity}/{self.project}/{artifact.name}:{artifact.alias}"
                self._existing(key).use_artifact(self.api.artifact(name, type=artifact.type))

    # -- how --------------------------------------------------------------------------------------------------------

    def _run(self, key: str) -> Any | None:
        """The run as the server knows it, or None."""
        import wandb

        with told("look a run up"):
            try:
                return self.api.run(f"{self.entity}/{self.project}/{key}")
            except (wandb.errors.CommError, ValueError) as error:
                if "could not find" in str(error).lower():
                    return None
                raise

    def _existing(self, key: str) -> Any:
        run = self._run(key)
        if run is None:
            raise LotteryError(f"the server has no run {key} in {self.entity}/{self.project}")
        return run

    @contextmanager
    def _resumed(self, key: str, exit_code: int) -> Iterator[Any]:
        """The run, open for writing."""
        import wandb

        from lottery.tracking.wandb import run_settings

        with TemporaryDirectory() as folder:
            run = wandb.init(
                id=key, resume="must", mode="online", project=self.project, entity=self.entity, dir=folder,
                settings=run_settings(),
            )  # fmt: skip
            try:
                yield run
            finally:
                run.finish(exit_code=exit_code)


@contextmanager
def told(what: str) -> Iterator[None]:
    """Whatever W&B raises, as a LotteryError that says what was tried."""
    try:
        yield
    except LotteryError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise LotteryError(f"W&B: cannot {what}: {lines[0]}") from error


def ids(artifacts: Any) -> set[str]:
    """What artifacts of ours are known by; others are none of our business."""
    found = set()
    for artifact in artifacts:
        facts = artifact.metadata
        if "digest" in facts:
            found.add(artifact_id(artifact.name.partition(":")[0], facts.get("round", 0), facts["digest"]))
    return found


@contextmanager
def packed(artifact: Artifact) -> Iterator[Any]:
    """W&B's own object: the mask's file, or the metadata as a file."""
    import wandb

    package = wandb.Artifact(artifact.name, type=artifact.type, metadata=artifact.metadata)
    with TemporaryDirectory() as folder:
        path = artifact.path
        if path is None:
            path = Path(folder) / f"{artifact.type}.json"
            path.write_text(json.dumps(artifact.metadata, indent=1, sort_keys=True) + "\n")
        package.add_file(str(path), name=path.name, skip_cache=True)
        yield package


def complaint(output: str) -> str:
    """The line of `wandb sync` that says what went wrong."""
    lines = [line.removeprefix("wandb: ").strip() for line in output.splitlines()]
    errors = [line.removeprefix("ERROR ") for line in lines if line.startswith("ERROR ")]
    return (errors or [line for line in lines if line] or ["no reason given"])[-1]


def marked(segment: Path) -> int:
    """When `wandb sync` last took this log, in nanoseconds; 0 if never."""
    try:
        return os.stat(f"{segment}.synced").st_mtime_ns
    except FileNotFoundError:
        return 0
