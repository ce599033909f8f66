"""Benchmarks take their data from where LOTTERY_DATA says, one line without; the checks of a GPU run on a CPU."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
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


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("gpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_what_it_would_check(gpu: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 0
    said = capsys.readouterr().out
    assert said.startswith("No GPU here.")
    assert all(f"\n{check} " in said for check in gpu.CHECKS)


@pytest.mark.slow
def test_the_cpu_equals_itself(gpu: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Each check but that of CUDA, on small networks: masks and losses are the same bits."""
    setting = gpu.Setting("cpu", str(tmp_path), small=True)
    rows = list(gpu.parity(setting))
    assert [row for row in rows if row.holds is not True] == []
    assert {row.found for row in rows} == {"the same", "at most 0.0e+00 apart"}
    assert [row.holds for row in gpu.waiting(setting)] == [None]
    assert gpu.main(["--device", "cpu", "--small", "--data", str(tmp_path), "--only", "recipe"]) == 0
    assert "fast_resnet20" in capsys.readouterr().out


def test_a_difference_between_the_devices_fails(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        gpu,
        "CHECKS",
        {"parity": lambda _: iter([gpu.Row("masks", "others", gpu.follows(Fickle, [torch.ones(3)], "cpu"))])},
    )
    assert gpu.main(["--device", "cpu", "--only", "parity"]) == 1
    assert "FAILS" in capsys.readouterr().out


class Fickle:
    """A rule that no two instances of agree about."""

    count = 0

    def __init__(self) -> None:
        Fickle.count += 1

    def __call__(self, scores: list[torch.Tensor], masks: list[torch.Tensor], progress: float) -> None:
        masks[0][Fickle.count % 3] = 0


@pytest.mark.slow  # a minute, most of it in the compiler
def test_the_speed_of_all_forms_of_a_step_is_measured(gpu: ModuleType, tmp_path: Path) -> None:
    rows = list(gpu.speed(gpu.Setting("cpu", str(tmp_path), small=True)))
    forms = ["", " channels_last", " channels_last bf16", " channels_last compile bf16"]
    assert [row.what for row in rows] == [f"lth_resnet20{form}" for form in forms]
