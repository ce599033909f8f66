"""How long a training step takes on this machine: a few steps of the real thing, timed. No file is written."""

from __future__ import annotations

import json
import tempfile
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from time import monotonic
from typing import Any

from lottery.config import Config
from lottery.stages.lab import Lab
from lottery.study import set_threads
from lottery.training.evaluate import tallied
from lottery.training.fit import fit
from lottery.training.module import MaskedTraining, Progress

SECONDS = 1.0  # for each kind of step, but at least one step
IMAGES = 200  # that are evaluated


@dataclass(frozen=True)
class Pace:
    """What was measured."""

    step: float  # seconds a training step
    image: float  # seconds to evaluate an image


class Timed(MaskedTraining):
    """A training that only measures its own pace."""

    pace: Pace

    def measure(self) -> None:
        """Nothing: the curve is not what is wanted."""

    def training_step(self, chunk: int, batch_idx: int) -> None:
        self.network.train()
        began = monotonic()
        self.update(0).item()  # the first one is slower, and not counted unless it takes long
        started, done = monotonic(), 0
        while done == 0 or monotonic() - started < SECONDS - (started - began):
            done += 1
            self.update(done).item()  # which waits for the device
        step = (monotonic() - started) / done
        images, labels = next(iter(self.data.batches("test", min(IMAGES, self.recipe.eval_batch_size))))
        started = monotonic()
        with self.autocast():
            tallied(self.network, [(self.laid_out(images), labels)])
        self.pace = Pace(step, (monotonic() - started) / len(labels))
        self.progress.step = chunk


def kind_of(config: Config) -> str:
    """What the pace depends on: studies of the same kind are measured once."""
    model = {name: value for name, value in config.model.items() if name not in ("init", "weights", "pretrained")}
    data, train = config.data, config.train
    shown: list[Any] = [model, list(data.shape), data.classes, data.flip, data.crop, train.batch_size, train.precision]
    return json.dumps([*shown, train.channels_last, config.optim.name, config.trainer.threads], sort_keys=True)


def measured(lab: Lab) -> Pace:
    """The pace of the dense network of this lab's study, with its data, batches, optimizer and precision."""
    config = lab.config
    set_threads(config.trainer.threads)
    module = Timed(
        lab.network(config.seeds.init), lab.initial, lab.recipe, lab.data_on, Progress(0), end=lab.initial.steps
    )
    module.train_dataloader = lambda: [lab.initial.steps]  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()):
        fit(module, config.trainer.accelerator, Path(folder))
    return module.pace
