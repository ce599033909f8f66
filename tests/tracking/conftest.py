"""Rows, masks and curves as a study hands them to its tracker; W&B confined to the test's folder and machine."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from lottery.ticket import Mask

Row = dict[str, Any]
LOCAL = ("127.0.0.1", "::1", "localhost")


@dataclass
class FakeStudy:
    """A study's output without its trainings: masks are real files, the figures are functions of the round."""

    folder: Path
    rounds: int = 3
    masks: list[Mask] = field(default_factory=list)

    def __post_init__(self) -> None:
        (self.folder / "masks").mkdir(parents=True)
        for index in range(self.rounds):
            kept = torch.arange(100) < 100 // 2**index
            self.masks.append(Mask({"layer1.0.conv.weight": kept, "fc.weight": torch.ones(4, 2, dtype=torch.bool)}))
            parent = self.masks[index - 1].digest if index else None
            self.masks[index].save(self.mask_path(index), round=index, study=self.folder.name, parent=parent)

    def mask_path(self, index: int) -> Path:
        return self.folder / "masks" / f"round_{index:03d}.safetensors"

    def row(self, index: int, control: str | None = None, copy: int = 0, **changes: Any) -> Row:
        """A line of rounds.jsonl (design, 4.2)."""
        mask = self.masks[index]
        return {
            "round": index,
            "control": control,
            "copy": copy,
            "density": mask.density,
            "density_weights": mask.density,
            "kept": mask.kept,
            "prunable": mask.size,
            "layer_density": mask.layer_density,
            "collapsed_layers": mask.collapsed,
            "step_rewind": 0,
            "steps": 20,
            "train_loss": 0.1 + index,
            "train_accuracy": 0.9,
            "val_loss": None,
            "val_accuracy": None,
            "test_loss": 0.2 + index,
            "test_accuracy": 0.8 - 0.1 * index - (0.3 if control else 0),
            "early_stop_step": 10,
            "early_stop_test_accuracy": 0.7,
            "seconds": 1.5,
            "cached": False,
            "mask_digest": mask.digest,
            "weights_digest": "0" * 64,
            "probe/overlap": 0.5,
        } | changes

    @staticmethod
    def curve(index: int) -> list[list[Any]]:
        """Three evaluation points; the training loss is known from the second on."""
        points: list[list[Any]] = [[0, "validation", 2.3, 0.1]]
        for step in (10, 20):
            points += [[step, "train", 1 / step, None], [step, "validation", 2 / step + index, 0.1 * index]]
        return points


@pytest.fixture
def study(tmp_path: Path) -> FakeStudy:
    return FakeStudy(tmp_path / "runs" / "imp" / "0123456789ab")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder; no W&B setting or login of whoever runs the tests is visible."""
    home = tmp_path / "home"
    home.mkdir()
    for name in [name for name in os.environ if name.startswith(("WANDB_", "XDG_")) or name == "NETRC"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path / "matplotlib"))
    return home


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that leaves the machine fails the test, in this process and (through the proxy) in W&B's service."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in LOCAL:
            pytest.fail(f"connected to {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


@pytest.fixture
def warnings_of() -> Iterator[Callable[[], list[str]]]:
    """The warnings of the log "lottery" so far."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = records.append  # type: ignore[method-assign]
    log = logging.getLogger("lottery")
    log.addHandler(handler)
    yield lambda: [record.getMessage() for record in records]
    log.removeHandler(handler)
