"""Benchmarks take their data from where LOTTERY_DATA says, and are one line without."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from command_line_tools import ROOT, environment


@pytest.mark.slow
@pytest.mark.parametrize("name", ["training", "probes"])
def test_a_benchmark_without_data_is_one_line(name: str, tmp_path: Path) -> None:
    """The download is refused at once, by a port that nobody listens at."""
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py")]
    env = environment(LOTTERY_DATA=str(tmp_path / "data"), **proxies)
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 1
    *_, line = done.stderr.splitlines()
    assert line.startswith(f"lottery: {tmp_path / 'data' / 'mnist.safetensors'}: not there")
    assert "Traceback" not in done.stderr


def test_the_peer_is_named_by_its_checkout(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "peers.py"), "--openlth", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 1
    expected = f"lottery: --openlth: {tmp_path} has no open_lth.py, expected a clone of facebookresearch/open_lth"
    assert done.stderr.strip() == expected
