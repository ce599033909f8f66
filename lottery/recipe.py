"""A training recipe with every time resolved to steps: one of the inputs of a `train` stage."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lottery.config import Config, Optim
from lottery.errors import ConfigError
from lottery.schedule import LearningRate
from lottery.steps import Duration


@dataclass(frozen=True)
class Recipe:
    """How to train: everything but the network, the ticket and the data."""

    total: int  # steps of the dense training; the schedule's length
    batch_size: int
    drop_last: bool
    eval_every: int
    eval_batch_size: int
    precision: str
    channels_last: bool
    optim: Optim
    lr: LearningRate
    order_seed: int
    compile: bool = False
    label_smoothing: float = 0.0

    @classmethod
    def resolve(cls, config: Config, train_size: int) -> Recipe:
        """Return a configuration's recipe for `train_size` training images. Raises ConfigError where they don't fit."""
        train = config.train
        if train.batch_size > train_size:
            raise ConfigError.of("train.batch_size", train.batch_size, f"at most the {train_size} training images")
        per_epoch = steps_per_epoch(train_size, train.batch_size, train.drop_last)
        total = Duration.parse(train.steps, "train.steps").resolve(per_epoch)
        return cls(
            total=total,
            batch_size=train.batch_size,
            drop_last=train.drop_last,
            eval_every=Duration.parse(train.eval_every, "train.eval_every").resolve(per_epoch),
            eval_batch_size=train.eval_batch_size,
            precision=train.precision,
            channels_last=train.channels_last,
            optim=config.optim,
            lr=LearningRate.resolve(config.schedule, config.optim.lr, total, per_epoch),
            order_seed=config.seeds.order,
            compile=train.compile,
            label_smoothing=train.label_smoothing,
        )

    def rewind_step(self, text: str, train_size: int, key: str = "rewind.to") -> int:
        """Return the step of a rewind point. Raises ConfigError past the end of the dense training."""
        step = self.duration(text, train_size, key)
        if step > self.total:
            raise ConfigError.of(key, text, f"a step of the dense training, at most its {self.total} steps")
        return step

    def duration(self, text: str, train_size: int, key: str) -> int:
        """Convert a time to steps of this batch size. Raises ConfigError where the text is no time."""
        return Duration.parse(text, key).resolve(steps_per_epoch(train_size, self.batch_size, self.drop_last))

    @classmethod
    def read(cls, values: dict[str, Any] | None) -> Recipe | None:
        """Rebuild a recipe from its `asdict` after a round trip through JSON; None for None."""
        if values is None:
            return None
        lr = LearningRate(**values["lr"] | {"milestones": tuple(values["lr"]["milestones"])})
        return cls(**values | {"optim": Optim(**values["optim"]), "lr": lr})

    def inputs(self) -> dict[str, Any]:
        """Return the recipe's part of a stage key, without options that are off or that its parts do not read."""
        values = asdict(self) | {"lr": self.lr.inputs()}
        for later in ("compile", "label_smoothing"):
            if not values[later]:
                del values[later]
        for option in ("betas", "eps") if self.optim.name == "sgd" else ("momentum", "nesterov"):
            del values["optim"][option]
        return values


def steps_per_epoch(train_size: int, batch_size: int, drop_last: bool) -> int:
    """Return the number of batches in an epoch. The last one may be short, unless `drop_last`."""
    return train_size // batch_size if drop_last else -(-train_size // batch_size)
