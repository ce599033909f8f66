"""A training recipe with every time resolved to steps: what a `train` stage reads besides its ticket and data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lottery.config import Config, Optim
from lottery.errors import ConfigError
from lottery.steps import Duration
from lottery.training.schedule import LearningRate


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

    @classmethod
    def resolve(cls, config: Config, train_size: int) -> Recipe:
        """From the configuration and the number of training images. Raises ConfigError for what cannot be."""
        train = config.train
        if train.batch_size > train_size:
            raise ConfigError.of("train.batch_size", train.batch_size, f"at most the {train_size} training images")
        full, rest = divmod(train_size, train.batch_size)
        per_epoch = full + (rest > 0 and not train.drop_last)
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
        )

    def rewind_step(self, text: str, train_size: int, key: str = "rewind.to") -> int:
        """The step that a rewind point names. Raises ConfigError past the end of the dense training."""
        step = self.duration(text, train_size, key)
        if step > self.total:
            raise ConfigError.of(key, text, f"a step of the dense training, at most its {self.total} steps")
        return step

    def duration(self, text: str, train_size: int, key: str) -> int:
        """A time in steps of this batch size. Raises ConfigError for what is no time."""
        full, rest = divmod(train_size, self.batch_size)
        return Duration.parse(text, key).resolve(full + (rest > 0 and not self.drop_last))

    @classmethod
    def read(cls, values: dict[str, Any] | None) -> Recipe | None:
        """The recipe that `asdict` gave, after it went through JSON."""
        if values is None:
            return None
        lr = values["lr"]
        optim, rate = Optim(**values["optim"]), LearningRate(**{**lr, "milestones": tuple(lr["milestones"])})
        return cls(**{**values, "optim": optim, "lr": rate})

    def inputs(self) -> dict[str, Any]:
        """What enters a stage key: only the options that the chosen optimizer reads."""
        values = asdict(self)
        unread = {"sgd": ("betas", "eps"), "adam": ("momentum", "nesterov"), "adamw": ("momentum", "nesterov")}
        for option in unread[self.optim.name]:
            del values["optim"][option]
        return values
