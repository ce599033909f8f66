"""Turn options into a data set: call the source, check its result, split it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lottery.config.data import Data, check
from lottery.data.dataset import Dataset
from lottery.data.order import Split
from lottery.data.tensors import Arrays
from lottery.errors import LotteryError
from lottery.parts import function_at


def load(options: Data, folder: Path, split_seed: int) -> Dataset:
    """Load the data set that `options` describe, on the CPU. `folder`: where data files lie (`paths.data`).

    Of N training images, `options.validation` are held out and `options.limit` of the rest are used, by a function of
    `split_seed` and N; the test set is untouched. ConfigError for wrong options, LotteryError for wrong data.
    """
    check(options)
    target = options._target_
    source = function_at(target, "data")(options, folder)
    if isinstance(source, Mapping):
        source = Arrays.of(source, origin=target)
    if not hasattr(source, "dataset"):
        expected = f"a mapping with the tensors {', '.join(Arrays.NAMES)}"
        raise LotteryError(f"{target}: returned a {type(source).__name__}, expected {expected}")
    split = Split.draw(source.train_size, options.validation, options.limit, split_seed)
    return source.dataset(options, split)
