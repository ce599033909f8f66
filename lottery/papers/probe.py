"""Measure the time of a training step on this machine, by a few steps of the real training. Keeps no file."""

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
from lottery.ranks.alone import use_machine
from lottery.stages.lab import Lab
from lottery.training.evaluate import Tally, add_
from lottery.training.fit import fit
from lottery.training.module import MaskedTraining
from lottery.training.progress import Progress

SECONDS = 1.0  # of measuring, but at least one step
IMAGES = 200  # at most, for the time of an evaluation


@dataclass(frozen=True)
class Pace:
    """The time of a training step and of an evaluated image."""

    step: float  # seconds a training step
    image: float  # seconds to evaluate an image


class Timed(MaskedTraining):
    """A training that only measures its own pace."""

    pace: Pace

    def measure(self) -> None:
        """Skip the points of the curve."""

    def training_step(self, chunk: int, batch_idx: int) -> None:
        self.network.train()
        began = monotonic()
        self.update(0).item()  # the first step is slower, and not counted
        started, done = monotonic(), 0
        while done == 0 or monotonic() - started < SECONDS - (started - began):
            done += 1
            self.update(done).item()  # item() waits for the device
        step = (monotonic() - started) / done
        images, labels = next(iter(self.data.batches("test", min(IMAGES, self.recipe.eval_batch_size))))
        started = monotonic()
        with self.autocast():
            add_(Tally(), self.network, [(self.laid_out(images), labels)])
        self.pace = Pace(step, (monotonic() - started) / len(labels))
        self.progress.step = chunk


def kind_of(config: Config) -> str:
    """Return the options that the pace depends on, as text: studies with equal texts are measured once."""
    model = {name: value for name, value in config.model.items() if name not in ("init", "weights", "pretrained")}
    data, train = config.data, config.train
    shown: list[Any] = [model, list(data.shape), data.classes, data.flip, data.crop, train.batch_size, train.precision]
    return json.dumps(
        [*shown, train.channels_last, train.compile, config.optim.name, config.trainer.threads], sort_keys=True
    )


def measured(lab: Lab) -> Pace:
    """Measure the pace of the dense training of this lab's study."""
    config = lab.config
    use_machine(config.trainer.threads)
    module = Timed(lab.network(), lab.initial, lab.recipe, lab.data_on, Progress(0), end=lab.initial.steps)
    module.train_dataloader = lambda: [lab.initial.steps]  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()):
        fit(module, config.trainer.accelerator, Path(folder))
    return module.pace
