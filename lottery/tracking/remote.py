"""The W&B server, for `python -m lottery sync`: look up runs and their artifacts, and upload."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from lottery.errors import LotteryError
from lottery.tracking.items import Artifact

API_SECONDS = 20  # timeout of an answer
UPLOAD_SECONDS = 600  # timeout of the upload of one artifact

Kind = Literal["made", "used"]


class Remote:
    """A project on a server, accessed by W&B's command line and its API.

    Every call may raise LotteryError; then it is unknown whether the call took effect.
    """

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
        """Check that the server answers and accepts the key."""
        with told("reach the server"):
            assert self.api  # creating it checks the key

    def upload(self, segments: Sequence[Path]) -> None:
        """Send transaction logs of one run, oldest first, with `wandb sync`.

        Its exit status is always 0, so success is read from its mark beside each log. Raises LotteryError without it.
        """
        before = {path: marked(path) for path in segments}
        command = [sys.executable, "-m", "wandb", "sync", "--include-synced"]
        command += ["--project", self.project, "--entity", self.entity]
        done = subprocess.run(
            [*command, *map(str, segments)], env={**os.environ, "WANDB_SILENT": "false"}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace",
        )  # fmt: skip
        for path in segments:
            if marked(path) == before[path]:
                raise LotteryError(f"W&B did not take {path.parent.name}: {complaint(done.stdout)}")

    def has_run(self, key: str) -> bool:
        """Whether the run is on the server."""
        return self._run(key) is not None

    def ids(self, key: str, kind: Kind) -> set[str]:
        """Return the ids of the artifacts of lottery that a run made, or used."""
        with told(f"list what a run {kind}"):
            run = self._existing(key)
            found = run.logged_artifacts() if kind == "made" else run.used_artifacts()
            return {known(artifact).server_id for artifact in found if "digest" in artifact.metadata}

    def add(self, key: str, kind: Kind, artifact: Artifact, exit_code: int) -> None:
        """Add an artifact to those that an ended run made, or used. The run ends again with `exit_code`.

        A user's file, which no run made, is created on the server when it is used.
        """
        from lottery.tracking.wandb import log_artifact, package

        with told(f"{'upload' if kind == 'made' else 'use'} {artifact.server_id}"):
            if kind == "made":
                with self._resumed(key, exit_code) as run:
                    log_artifact(run, artifact).wait(timeout=UPLOAD_SECONDS)
            elif "file" in artifact.facts:
                with self._resumed(key, exit_code) as run:
                    run.use_artifact(package(artifact))
            else:
                name = f"{self.entity}/{self.project}/{artifact.name}:{artifact.alias}"
                self._existing(key).use_artifact(self.api.artifact(name, type=artifact.type))

    # -- helpers ----------------------------------------------------------------------------------------------------

    def _run(self, key: str) -> Any | None:
        """Return the server's run, or None where there is none."""
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
    """Turn any exception of W&B into a LotteryError that names the attempted action, `what`."""
    try:
        yield
    except LotteryError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise LotteryError(f"W&B: cannot {what}: {lines[0]}") from error


def known(artifact: Any) -> Artifact:
    """Convert an artifact of the server to an Artifact."""
    facts = artifact.metadata
    return Artifact(artifact.name.partition(":")[0], artifact.type, facts.get("round", 0), facts["digest"])


def complaint(output: str) -> str:
    """Return the line in the output of `wandb sync` that gives the error."""
    lines = [line.removeprefix("wandb: ").strip() for line in output.splitlines()]
    errors = [line.removeprefix("ERROR ") for line in lines if line.startswith("ERROR ")]
    return (errors or [line for line in lines if line] or ["no reason given"])[-1]


def marked(segment: Path) -> int:
    """Return when `wandb sync` last sent this log, in nanoseconds of unix time; 0 if never."""
    try:
        return os.stat(f"{segment}.synced").st_mtime_ns
    except FileNotFoundError:
        return 0
