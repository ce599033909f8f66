"""Whole studies: what is found again is not computed again, and the record says the same each time."""

from __future__ import annotations

import csv
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from torch import nn
from training_tools import AUGMENTED, MOMENTUM, STEPWISE, Start, assert_same_bits

from lottery.errors import Interrupted, LotteryError
from lottery.signals import StopFlag
from lottery.state import load_state
from lottery.study import Study
from lottery.ticket import Mask, read_metadata, weights_digest
from lottery.tracking.terminal import header
from lottery.training.progress import NonFiniteLoss

EVERYTHING = (*MOMENTUM, *AUGMENTED, *STEPWISE, "controls=lth", "probes=light")

Configure = Callable[..., DictConfig]

pytestmark = pytest.mark.usefixtures("undrawn")


def run(cfg: DictConfig, stop: StopFlag | None = None) -> tuple[Path, list[dict[str, Any]]]:
    """The run folder, and the rows that rounds.jsonl holds at the end."""
    study = Study(cfg, stop)
    table = study.run()
    rows = read_rows(study.folder.path)
    assert [row["mask_digest"] for row in table] == [row["mask_digest"] for row in rows]
    return study.folder.path, rows


def read_rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def timeless(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in ("seconds", "cached")}


def record(folder: Path) -> dict[str, Any]:
    """What a run folder says, but for how long it took."""
    details = [json.loads(path.read_text()) for path in sorted((folder / "rounds").iterdir())]
    return {
        "rows": [timeless(row) for row in read_rows(folder)],
        "masks": {path.name: (Mask.load(path), read_metadata(path)) for path in sorted((folder / "masks").iterdir())},
        "curves": (folder / "curves.csv").read_text(),
        "details": [{key: value for key, value in found.items() if key != "seconds"} for found in details],
    }


def printed_table(text: str) -> list[str]:
    lines = text.splitlines()
    return lines[lines.index(header()) :]


def test_a_second_run_trains_nothing_and_prints_the_same_table(
    configure: Configure, starts: list[Start], capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = configure(*EVERYTHING)
    folder, rows = run(cfg)
    assert len(starts) == len(rows) == 1 + 2 * 3
    assert [(row["round"], row["control"]) for row in rows] == [
        (0, None), *((k, control) for k in (1, 2) for control in (None, "reinit", "random")),
    ]  # fmt: skip
    first, lines, curves = capsys.readouterr().out, (folder / "rounds.jsonl").read_bytes(), record(folder)
    run(cfg)
    assert len(starts) == len(rows)
    assert printed_table(capsys.readouterr().out) == printed_table(first)
    assert (folder / "rounds.jsonl").read_bytes() == lines
    assert record(folder) == curves


def test_the_rows_say_what_the_files_hold(configure: Configure, starts: list[Start]) -> None:
    folder, rows = run(configure(*EVERYTHING, "prunable.exclude=[conv1]"))
    weights, prunable = 644, 644 - 36  # conv1 has 4 x 1 x 3 x 3 weights
    expected_kept = [608, 486, 389]  # less round(121.6), less round(97.2)
    digests = {row["mask_digest"] for row in rows}
    assert len(digests) == 1 + 2 * 2  # the reinitialised control shares its ticket's mask
    points = list(csv.DictReader((folder / "curves.csv").open()))
    for row, start in zip(rows, starts, strict=True):
        name = f"round_{row['round']:03d}" + (f".{row['control']}-{row['copy']}" if row["control"] else "")
        own = name if row["control"] != "reinit" else f"round_{row['round']:03d}"
        mask = Mask.load(folder / "masks" / f"{own}.safetensors")
        assert mask.digest == row["mask_digest"]
        assert mask.kept == row["kept"] == expected_kept[row["round"]]
        assert row["prunable"] == prunable
        assert row["density"] == mask.kept / prunable
        assert row["density_weights"] == (mask.kept + 36) / weights
        assert row["layer_density"] == mask.layer_density
        assert row["collapsed_layers"] == []
        assert (row["step_rewind"], row["steps"]) == ((7, 23) if row["round"] else (0, 30))
        details = json.loads((folder / "rounds" / f"{name}.json").read_text())
        stage = Path(start.module.trainer.default_root_dir)
        assert stage.name == details["stages"]["train"]
        state = load_state(stage / "state.safetensors")
        assert weights_digest(state, mask) == row["weights_digest"]
        result = json.loads((stage / "result.json").read_text())
        for key in ("train_loss", "val_loss", "test_accuracy", "early_stop_step", "early_stop_test_accuracy"):
            assert row[key] == result[key]
        mine = [p for p in points if (p["round"], p["control"]) == (str(row["round"]), row["control"] or "")]
        assert [(int(p["step"]), p["split"], float(p["loss"])) for p in mine] == [
            tuple(point[:3]) for point in result["curve"]
        ]
        assert row["probe/angle_from_start"] > 0
    assert not list(folder.rglob("*.tmp"))
    assert not list((folder.parent.parent / ".store").rglob("checkpoint*"))


def test_a_torn_last_line_is_repaired(configure: Configure, starts: list[Start]) -> None:
    cfg = configure(*MOMENTUM, "method.rounds=1")
    folder, rows = run(cfg)
    path = folder / "rounds.jsonl"
    whole = path.read_bytes()
    for cut in (1, len(whole.splitlines(keepends=True)[-1]) - 1):
        path.write_bytes(whole[:-cut])
        run(cfg)
        assert [timeless(row) for row in read_rows(folder)] == [timeless(row) for row in rows]
    assert len(starts) == len(rows)


def test_one_more_round_is_one_more_training(configure: Configure, starts: list[Start]) -> None:
    _, two = run(configure(*MOMENTUM, "controls.random=1", "method.rounds=2"))
    assert len(starts) == 1 + 2 * 2
    _, three = run(configure(*MOMENTUM, "controls.random=1", "method.rounds=3"))
    assert len(starts) == 1 + 3 * 2
    assert [row["cached"] for row in three] == [True] * 5 + [False] * 2
    assert [timeless(row) for row in three[:5]] == [timeless(row) for row in two]


def test_another_rewind_step_shares_the_dense_run(configure: Configure, starts: list[Start]) -> None:
    run(configure(*MOMENTUM, *AUGMENTED, "rewind.to=7it", "method.rounds=1"))
    dense = Path(starts[0].module.trainer.default_root_dir)
    before = {path.name: path.read_bytes() for path in dense.iterdir()}
    starts.clear()
    shared, rows = run(configure(*MOMENTUM, *AUGMENTED, "rewind.to=12it"))
    assert [len(start.rates) for start in starts] == [12, 18, 18]  # up to step 12, and two tickets
    assert {path.name: path.read_bytes() for path in dense.iterdir()} == before
    assert rows[0]["cached"] is False  # a part of it was trained again
    # The same, bit for bit, as a study that had the store to itself.
    alone, _ = run(configure(*MOMENTUM, *AUGMENTED, "rewind.to=12it", runs="alone"))
    assert record(alone) == record(shared)


def test_another_control_leaves_the_tickets_alone(configure: Configure, starts: list[Start]) -> None:
    _, plain = run(configure(*MOMENTUM, "method.rounds=1"))
    starts.clear()
    _, controlled = run(configure(*MOMENTUM, "method.rounds=1", "controls.shuffle=2"))
    assert len(starts) == 2
    tickets = [row for row in controlled if row["control"] is None]
    assert [timeless(row) for row in tickets] == [timeless(row) for row in plain]


@pytest.mark.parametrize("name", ["result.json", "state.safetensors"])
def test_an_altered_stage_ends_the_study_with_the_files_name(configure: Configure, name: str) -> None:
    cfg = configure(*MOMENTUM, "method.rounds=1")
    folder, rows = run(cfg)
    (path,) = [found for found in (folder.parent.parent / ".store").rglob(name) if _is_dense(found)]
    data = path.read_bytes()
    path.write_bytes(data[:-6] + bytes([data[-6] ^ 1]) + data[-5:])
    with pytest.raises(LotteryError, match=str(path)):
        Study(cfg).run()
    assert read_rows(folder) == rows


def _is_dense(path: Path) -> bool:
    return json.loads((path.parent / "stage.json").read_text())["inputs"]["step"] == 0


def test_a_layer_that_is_pruned_empty_is_named_and_the_study_goes_on(configure: Configure) -> None:
    """T0.4. Of conv1's 36 weights round(0.9 * 36) = 32 go, then 4 of 4; fc's 320 are left with 32 and 3."""
    folder, rows = run(configure(*MOMENTUM, "method.rounds=3", "method.rate=0.9", "method.scope=layer"))
    assert [row["layer_density"]["conv1.weight"] * 36 for row in rows] == [36, 4, 0, 0]
    assert [row["collapsed_layers"] for row in rows[:3]] == [[], [], ["conv1.weight"]]
    log = (folder / "study.log").read_text()
    assert log.count("conv1.weight is pruned empty") == 1
    # What is left gives the same logits to every image: the accuracy of one class.
    assert rows[3]["test_accuracy"] == pytest.approx(0.1, abs=0.04)


def test_a_loss_that_is_no_number_ends_that_round_and_keeps_the_others(
    configure: Configure, starts: list[Start], on_batch: list[Callable[[int], object]]
) -> None:
    cfg = configure(*MOMENTUM)

    def spoil(step: int) -> None:
        if len(starts) == 2 and step == 17:
            nn.init.constant_(starts[-1].module.network.fc.bias, float("nan"))  # type: ignore[union-attr, arg-type]

    on_batch.append(spoil)
    study = Study(cfg)
    with pytest.raises(NonFiniteLoss, match=r"^round 1: the loss became nan at step 17; ") as caught:
        study.run()
    assert caught.value.exit_status == 1
    assert [row["round"] for row in read_rows(study.folder.path)] == [0]
    assert "the loss became nan at step 17" in (study.folder.path / "study.log").read_text()
    on_batch.clear()
    _, rows = run(cfg)  # the fault is gone, and what was done is not done again
    assert [row["round"] for row in rows] == [0, 1, 2]
    assert [len(start.rates) for start in starts] == [30, 13, 23, 23]  # losses are looked at when they are measured


@pytest.mark.slow
def test_interrupted_all_over_a_study(
    configure: Configure, signals: Callable[[], StopFlag], starts: list[Start],
    on_batch: list[Callable[[int], object]],
) -> None:  # fmt: skip
    """Every 17 steps a signal, in dense training, tickets and controls alike, until the study is done."""
    undisturbed, _ = run(configure(*EVERYTHING, runs="undisturbed"))
    steps = sum(len(start.rates) for start in starts)
    starts.clear()
    cfg, drawn, interruptions = configure(*EVERYTHING), [0], 0

    def often(step: int) -> None:
        drawn[0] += 1
        if drawn[0] % 17 == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    on_batch.append(often)
    while True:
        try:
            folder, _ = run(cfg, signals())
            break
        except Interrupted:
            interruptions += 1
            assert interruptions < 20
    assert sum(len(start.rates) for start in starts) == steps  # no step was done twice
    assert interruptions == steps // 17
    assert record(folder) == record(undisturbed)
    stores = [folder.parent.parent / ".store" for folder in (folder, undisturbed)]
    names = [sorted(str(path.relative_to(store)) for path in store.rglob("*")) for store in stores]
    assert names[0] == names[1]
    for name in names[0]:
        if name.endswith(".safetensors"):
            assert (stores[0] / name).read_bytes() == (stores[1] / name).read_bytes()


def test_seeds_decide_everything_and_the_global_random_state_nothing(configure: Configure) -> None:
    found: list[dict[str, Any]] = []
    for runs, *seed in (("a",), ("b",), ("c", "seed=1")):
        torch.manual_seed(len(found))
        found.append(record(run(configure(*EVERYTHING, "method.rounds=1", *seed, runs=runs))[0]))
    assert found[0] == found[1]
    assert found[0]["rows"][0]["mask_digest"] == found[2]["rows"][0]["mask_digest"]  # the dense mask
    for row, other in zip(found[0]["rows"], found[2]["rows"], strict=True):
        assert row["weights_digest"] != other["weights_digest"]


def test_the_dense_state_is_that_of_a_plain_loop(configure: Configure) -> None:
    """The round's weights against a training written out by hand: SGD, batches of the order's own permutation."""
    cfg = configure("train.steps=8it", "rewind.to=init", "method.rounds=0", "data.validation=0")
    cfg.model.dropout = 0.0
    study = Study(cfg)
    study.run()
    from lottery.data.order import Order
    from lottery.models.build import build
    from lottery.stages.lab import Lab

    lab = Lab(study.config, StopFlag(), lambda *_: None)
    network = build(study.config.model, (1, 8, 8), 10, 0)
    images, labels = lab.dataset.splits["train"]  # type: ignore[attr-defined]
    order = Order(96, 16, 0)
    for step in range(8):
        epoch, part = order.locate(step)
        index = torch.from_numpy(order.permutation(epoch)[part])
        network.zero_grad()
        nn.functional.cross_entropy(network(images[index].float() / 255), labels[index]).backward()
        with torch.no_grad():
            for parameter in network.parameters():
                assert parameter.grad is not None
                parameter.sub_(parameter.grad, alpha=0.05)
    trained = lab.train(lab.initial).state.tensors()
    for name, value in network.state_dict().items():
        torch.testing.assert_close(trained[name], value, rtol=1e-5, atol=1e-6)
    assert_same_bits(lab.initial.state.tensors(), build(study.config.model, (1, 8, 8), 10, 0).state_dict())
