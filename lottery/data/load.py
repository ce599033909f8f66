"""From options to a data set: call the source, check what it yields, split it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from lottery.data.dataset import Dataset, Source
from lottery.data.options import Data, check
from lottery.data.order import Split
from lottery.data.tensors import Arrays
from lottery.errors import ConfigError, LotteryError


def load(options: Data, folder: Path, split_seed: int) -> Dataset:
    """The data set that `options` describe, on the CPU.

    `folder` is where data files lie (`paths.data`). Of the N training images, a function of `split_seed` and N alone
    holds out `options.validation`, and chooses the `options.limit` that are trained on; the test set is untouched.
    Raises ConfigError where the options are wrong, LotteryError where the data are.
    """
    check(options)
    source = _found(options, folder)
    split = Split.draw(source.train_size, options.validation, options.limit, split_seed)
    return source.dataset(options, split)


def _found(options: Data, folder: Path) -> Source:
    target = options._target_
    found = _function(target)(options, folder)
    if isinstance(found, Mapping):
        return Arrays.of(found, origin=target)
    if not hasattr(found, "dataset"):
        expected = f"a mapping with the tensors {', '.join(Arrays.NAMES)}"
        raise LotteryError(f"{target}: returned a {type(found).__name__}, expected {expected}")
    return found


def _function(target: str) -> Callable[[Data, Path], Any]:
    expected = "the dotted path of a function, such as lottery.data.sources.mnist"
    module, _, name = target.rpartition(".")
    try:
        function = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError.of("data._target_", target, f"{expected} ({error})") from error
    if not callable(function):
        raise ConfigError.of("data._target_", target, expected)
    return function
