"""Run folders are read as they were written, and what is not a run folder is named in one line."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from lottery.analysis.read import frame, read_config, read_rounds
from lottery.errors import LotteryError


def test_rows_come_back_as_they_were_written(make_run, row):
    rows = [row(0), row(1), row(1, "reinit", 0), row(1, "reinit", 1, early_stop_step=None)]
    assert read_rounds(make_run("a", rows)) == rows


@pytest.mark.parametrize("torn", ['{"round": 2, "cont', '{"round": 2}', "\x00\x00"])
def test_a_line_without_its_newline_is_not_a_row(make_run, row, torn):
    run = make_run("a", [row(0), row(1)])
    with (run / "rounds.jsonl").open("a") as file:
        file.write(torn)
    before = (run / "rounds.jsonl").read_bytes()
    assert [r["round"] for r in read_rounds(run)] == [0, 1]
    assert (run / "rounds.jsonl").read_bytes() == before  # a study may be writing it: read only


def test_a_study_that_has_just_begun_has_no_rows(make_run):
    run = make_run("a", [])
    assert read_rounds(run) == []
    (run / "rounds.jsonl").unlink()
    assert read_rounds(run) == []


@pytest.mark.parametrize("line", ["{broken", "", "[1, 2]", "3"])
def test_a_complete_line_that_is_no_row_is_named(make_run, row, line):
    run = make_run("a", [row(0)])
    with (run / "rounds.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(LotteryError, match=r"rounds\.jsonl, line 2") as caught:
        read_rounds(run)
    assert "\n" not in str(caught.value)


def test_the_configuration_is_read_as_hydra_wrote_it(make_run):
    run = make_run("a", [])
    (run / "config.yaml").write_text("seed: 3\noptim:\n  lr: 1e-3\n  betas: [0.9, 0.999]\npaths:\n  runs: runs\n")
    expected = {"seed": 3, "optim": {"lr": 0.001, "betas": [0.9, 0.999]}, "paths": {"runs": "runs"}}
    assert read_config(run) == expected


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2\n", "a: ${nowhere}\n"])
def test_a_file_that_is_no_configuration_is_named_in_one_line(make_run, text):
    run = make_run("a", [])
    (run / "config.yaml").write_text(text)
    with pytest.raises(LotteryError, match=r"config\.yaml") as caught:
        read_config(run)
    assert "\n" not in str(caught.value)


def test_what_is_no_run_folder_is_named(tmp_path):
    for read in (read_rounds, read_config):
        with pytest.raises(LotteryError, match="nowhere: no such folder, expected a run folder"):
            read(tmp_path / "nowhere")
    with pytest.raises(LotteryError, match=r"no config\.yaml in it, expected a run folder"):
        read_config(tmp_path)


def test_a_frame_has_one_row_a_round_control_and_copy(make_run, row):
    rows = [row(0), row(1), row(1, "reinit", 0), row(1, "reinit", 1)]
    runs = [make_run("a", rows, seed=4), make_run("b", rows[:2], seed=5)]
    table = frame(iter(runs))
    assert len(table) == 6
    assert list(table.columns[:2]) == ["run", "seed"]
    assert table.seed.tolist() == [4, 4, 4, 4, 5, 5]
    assert table.run.tolist() == [str(runs[0])] * 4 + [str(runs[1])] * 2
    assert table.control.isna().tolist() == [True, True, False, False, True, True]
    assert table.test_accuracy.tolist() == [r["test_accuracy"] for r in rows + rows[:2]]
    assert table.groupby(["control", "round"], dropna=False).size().to_dict()["reinit", 1] == 2


def test_what_was_not_measured_is_nan_in_a_frame(make_run, row):
    none = dict.fromkeys(("val_loss", "val_accuracy", "early_stop_step", "early_stop_test_accuracy"))
    table = frame([make_run("a", [row(0, **none), row(1, **none)])])
    for name in none:
        assert table[name].dtype == float
        assert math.isnan(table[name].mean())


def test_reading_and_drawing_need_no_torch_and_pandas_only_for_a_frame():
    code = (
        "import sys, lottery.analysis.read, lottery.analysis.figures, lottery.analysis.curves\n"
        "heavy = {'torch', 'pandas', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
