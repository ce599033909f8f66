"""The cluster for the tests on a real SLURM: one that runs, or one that is started where its programs are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_tools import TEST_CLUSTER, Slurm


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """A test cluster, never a real one. Skips, with the reason, where there is none and none can be started."""
    if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:
        pytest.skip("tests on SLURM share one cluster: pytest -m slurm -n 0")
    if running := running_test_cluster():
        yield running
        return
    home = tempfile.mkdtemp(prefix="slurm-")  # pytest's own folders have names too long for sockets
    environment = {**os.environ, "SLURM_HOME": home}
    try:
        up = subprocess.run([TEST_CLUSTER / "up", "--no-install"], env=environment, capture_output=True, text=True)
        if up.returncode:
            pytest.skip(up.stderr.strip().splitlines()[-1])
        yield Slurm(Path(home) / "slurm.conf")
    finally:
        subprocess.run([TEST_CLUSTER / "down"], env=environment, check=False, capture_output=True)
        shutil.rmtree(home, ignore_errors=True)


def running_test_cluster() -> Slurm | None:
    """The test cluster that $SLURM_CONF names, if it answers."""
    conf = Path(os.environ.get("SLURM_CONF", "/nowhere"))
    if not conf.is_file() or "ClusterName=lottery-test" not in conf.read_text().splitlines():
        return None
    if not shutil.which("sinfo") or subprocess.run(["sinfo"], capture_output=True, timeout=60).returncode:
        return None
    return Slurm(conf)
