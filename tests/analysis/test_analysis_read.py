"""Run folders are read as they were written, and what is not a run folder is named in one line."""

from __future__ import annotations

import math
import subprocess
import sys

import pandas as pd
import pytest
import torch

from lottery.errors import LotteryError
from lottery.record.config import read_config
from lottery.record.run import Run
from lottery.record.table import curves, load_runs
from lottery.ticket import Mask


def test_rows_come_back_as_they_were_written(make_run, row):
    rows = [row(0), row(1), row(1, "reinit", 0), row(1, "reinit", 1, early_stop_step=None)]
    assert Run(make_run("a", rows)).rows == rows


@pytest.mark.parametrize("torn", ['{"round": 2, "cont', '{"round": 2}', "\x00\x00"])
def test_a_line_without_its_newline_is_not_a_row(make_run, row, torn):
    run = make_run("a", [row(0), row(1)])
    with (run / "rounds.jsonl").open("a") as file:
        file.write(torn)
    before = (run / "rounds.jsonl").read_bytes()
    assert [r["round"] for r in Run(run).rows] == [0, 1]
    assert (run / "rounds.jsonl").read_bytes() == before  # a study may be writing it: read only


def test_a_study_that_has_just_begun_has_no_rows(make_run):
    run = make_run("a", [])
    assert Run(run).rows == []
    (run / "rounds.jsonl").unlink()
    assert Run(run).rows == []


@pytest.mark.parametrize("line", ["{broken", "", "[1, 2]", "3"])
def test_a_complete_line_that_is_no_row_is_named(make_run, row, line):
    run = make_run("a", [row(0)])
    with (run / "rounds.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(LotteryError, match=r"rounds\.jsonl, line 2") as caught:
        _ = Run(run).rows
    assert "\n" not in str(caught.value)


def test_the_configuration_is_read_as_hydra_wrote_it(make_run):
    run = make_run("a", [])
    (run / "config.yaml").write_text("seed: 3\noptim:\n  lr: 1e-3\n  betas: [0.9, 0.999]\npaths:\n  runs: runs\n")
    expected = {"seed": 3, "optim": {"lr": 0.001, "betas": [0.9, 0.999]}, "paths": {"runs": "runs"}}
    assert read_config(run, needs=()) == expected


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2\n", "a: ${nowhere}\n"])
def test_a_file_that_is_no_configuration_is_named_in_one_line(make_run, text):
    run = make_run("a", [])
    (run / "config.yaml").write_text(text)
    with pytest.raises(LotteryError, match=r"config\.yaml") as caught:
        _ = Run(run).config
    assert "\n" not in str(caught.value)


def test_what_is_no_run_folder_is_named(tmp_path):
    for read in (lambda run: Run(run).rows, lambda run: Run(run).config):
        with pytest.raises(LotteryError, match="nowhere: no such folder, expected a run folder"):
            read(tmp_path / "nowhere")
    with pytest.raises(LotteryError, match=r"no config\.yaml in it, expected a run folder"):
        _ = Run(tmp_path).config


def test_a_frame_has_one_row_a_round_control_and_copy(make_run, row):
    rows = [row(0), row(1), row(1, "reinit", 0), row(1, "reinit", 1)]
    runs = [make_run("a", rows, seed=4), make_run("b", rows[:2], seed=5)]
    table = load_runs(iter(runs))
    assert len(table) == 6
    assert table.seed.tolist() == [4, 4, 4, 4, 5, 5]
    assert table.run.tolist() == [str(runs[0])] * 4 + [str(runs[1])] * 2
    assert table.control.isna().tolist() == [True, True, False, False, True, True]
    assert table.test_accuracy.tolist() == [r["test_accuracy"] for r in rows + rows[:2]]
    assert table.groupby(["control", "round"], dropna=False).size().to_dict()["reinit", 1] == 2


def test_what_was_not_measured_is_nan_in_a_frame(make_run, row):
    none = dict.fromkeys(("val_loss", "val_accuracy", "early_stop_step", "early_stop_test_accuracy"))
    table = load_runs([make_run("a", [row(0, **none), row(1, **none)])])
    for name in none:
        assert table[name].dtype == float
        assert math.isnan(table[name].mean())


def test_a_run_is_one_of_those_that_are_loaded_together(make_run, row):
    folder = make_run("a", [row(0), row(1), row(1, "reinit", 0)])
    lines = ["round,control,copy,step,split,loss,accuracy", "0,,0,5,validation,0.5,0.9", "1,reinit,0,5,train,0.4,"]
    (folder / "curves.csv").write_text("\n".join(lines) + "\n")
    run, together = Run(folder), load_runs(folder)
    pd.testing.assert_frame_equal(run.table, together)
    pd.testing.assert_frame_equal(run.curves, curves(together)[run.curves.columns.tolist()])
    assert run.curves["control"].tolist() == [None, "reinit"]
    assert (run.row(1, "reinit"), run.row(2), run.latest_ticket()) == (row(1, "reinit", 0), None, row(1))
    assert run.name == f"{folder.parent.name}/a"


def test_a_mask_of_a_run_is_that_of_its_row(make_run, row):
    mask = Mask({"layers.0.weight": torch.arange(20).reshape(4, 5) % 3 == 0})
    rows = [row(0), row(1, mask_digest=mask.digest), row(1, "reinit", 0), row(2, mask_digest="0" * 64)]
    run = Run(make_run("a", rows))
    for round in (1, 2):
        mask.save(run.path / f"masks/round_{round:03d}.safetensors", round=round, study="a", parent=None)
    assert run.mask(1) == run.mask(1, "reinit") == mask
    assert run.packed_mask(rows[1]).digest == mask.digest
    for read in (lambda: run.mask(2), lambda: run.packed_mask(rows[3])):
        with pytest.raises(LotteryError, match=r"not the mask that rounds\.jsonl names; .* writes it again"):
            read()
    with pytest.raises(LotteryError, match=r"round_000\.safetensors: no such file; .* writes it again"):
        run.mask(0)


def test_reading_and_drawing_need_no_torch_and_pandas_only_for_a_frame():
    code = (
        "import sys, lottery.record.run, lottery.analysis.experiment\n"
        "heavy = {'torch', 'pandas', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
