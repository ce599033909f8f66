"""Data that change under a study: nothing is taken from the store for other data, and the log says what happened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from lottery.compose import composed
from lottery.study import Study

OPTIONS = (
    "data=mnist", "data.validation=20", "model=mlp", "model.hidden=[8]", "train.steps=6it", "train.batch_size=20",
    "train.eval_every=6it", "rewind=init", "method.rounds=1", "probes=none", "tracker=none", "trainer=cpu",
    "trainer.progress=false",
)  # fmt: skip


def write(path: Path, flipped: bool) -> None:
    """MNIST's file with few images; `flipped`: one bit of each training image is another."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for part, size in (("train", 100), ("test", 30)):
        images = torch.randint(0, 256, (size, 1, 28, 28), generator=generator, dtype=torch.uint8)
        tensors |= {f"{part}_images": images, f"{part}_labels": torch.arange(size) % 10}
    if flipped:
        tensors["train_images"][:, 0, 14, 14] ^= 128
    save_file(tensors, path)


def numbers(rows: list[dict[str, Any]]) -> list[Any]:
    return [{key: value for key, value in row.items() if key not in ("cached", "seconds")} for row in rows]


def test_a_run_folder_says_that_its_rows_came_from_other_data(tmp_path: Path, undrawn: None) -> None:
    data = tmp_path / "data"
    data.mkdir()

    def run(flipped: bool) -> tuple[list[dict[str, Any]], str]:
        write(data / "mnist.safetensors", flipped)
        study = Study(composed([*OPTIONS, f"paths.runs={tmp_path / 'runs'}", f"paths.data={data}"]))
        study.run()
        log = (study.folder.path / "study.log").read_text()
        rows = [json.loads(line) for line in (study.folder.path / "rounds.jsonl").read_text().splitlines()]
        assert len(list((tmp_path / "runs/study").iterdir())) == 1, "the study key is of the configuration alone"
        said = log[len(logs[-1]) :]
        logs.append(log)
        return rows, said

    logs = [""]
    first, said = run(flipped=False)
    assert "data set mnist" not in said
    altered, said = run(flipped=True)
    assert all(one != other for one, other in zip(numbers(first), numbers(altered), strict=True))
    assert [row["cached"] for row in altered] == [False, False]
    [line] = [line for line in said.splitlines() if "data set mnist: " in line]
    assert "not the data that the rounds on record up to 20" in line
    again, said = run(flipped=True)
    assert again == altered
    assert "data set mnist" not in said, "it is said once"
    restored, said = run(flipped=False)
    assert numbers(restored) == numbers(first)
    assert [row["cached"] for row in restored] == [True, True]
    assert "data set mnist: " in said
