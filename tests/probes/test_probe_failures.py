"""No probe ends a study: one that fails gives null and a warning; signals and lost leases are not its failure."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from lottery.errors import Interrupted, LotteryError
from lottery.lease import LeaseLost
from lottery.probes.measuring import Measuring
from lottery.stages.bench import Bench
from lottery.stages.lab import Lab
from lottery.stages.round import Round
from lottery.study import Study


def fails_later(round: Round, *_: object) -> dict[str, float]:
    """A figure of round 0 only, as of a GPU whose memory is used up."""
    if round.index:
        raise torch.OutOfMemoryError("out of memory\nand much more")
    return {"sum": 1.0, "mean": float("nan")}


def fails_always(*_: object) -> dict[str, float]:
    raise NotImplementedError("no view of these strides")


def gives_a_tensor(*_: object) -> dict[str, Any]:
    return {"tensor": torch.ones(2)}


def healthy(*_: object) -> dict[str, float]:
    return {"healthy": 3.0}


PROBES = ("fails_later", "fails_always", "gives_a_tensor", "healthy")


@pytest.mark.usefixtures("undrawn")
def test_a_study_goes_on_without_the_figures_of_a_probe_that_fails(
    configure: Callable[..., DictConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = configure("method.rounds=2")
    cfg.probes = OmegaConf.create(
        {name: {"_target_": f"test_probe_failures.{name}", "_partial_": True} for name in PROBES}
    )
    study = Study(cfg)
    rows = study.run()
    assert [row["probe/sum"] for row in rows] == [1.0, None, None]
    assert [row["probe/mean"] for row in rows] == [None] * 3
    assert [row["probe/fails_always"] for row in rows] == [None] * 3
    assert [row["probe/gives_a_tensor"] for row in rows] == [None] * 3
    assert [row["probe/healthy"] for row in rows] == [3.0] * 3
    assert [json.loads(line) for line in (study.folder.path / "rounds.jsonl").read_text().splitlines()] == rows
    log = (study.folder.path / "study.log").read_text()
    assert log.count("probes.fails_later failed, its figures are null: OutOfMemoryError: out of memory\n") == 1
    assert log.count("probes.fails_always failed, its figures are null") == 1
    assert log.count("probes.gives_a_tensor failed, its figures are null: TypeError: Object of type Tensor") == 1
    assert log.count("Traceback") == 3
    assert "Traceback" not in capsys.readouterr().out


@pytest.fixture
def measured(make_lab: Callable[..., Lab]) -> Callable[[BaseException], dict[str, Any]]:
    """The row of a probe that raises this."""
    lab = Bench(make_lab())
    lab.config.probes = {"any": {"_target_": "test_probe_failures.healthy"}}

    def measure(error: BaseException) -> dict[str, Any]:
        def probe(*_: object) -> dict[str, float]:
            raise error

        return Measuring({"any": probe})(None, None, lab)  # type: ignore[arg-type]

    return measure


@pytest.mark.parametrize("error", [Interrupted(15), LeaseLost("taken over"), KeyboardInterrupt()])
def test_signals_and_lost_leases_pass_through(
    measured: Callable[[BaseException], dict[str, Any]], error: BaseException
) -> None:
    with pytest.raises(type(error)):
        measured(error)


def test_an_error_of_lotterys_own_is_a_failure_like_any(
    measured: Callable[[BaseException], dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    assert measured(LotteryError("cannot be measured")) == {"probe/any": None}
    assert "null: cannot be measured" in caplog.text
