"""Build a network from its options and a seed, and check beforehand that it fits the data."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lottery.errors import ConfigError, LotteryError
from lottery.models import weights as weight_files
from lottery.models.checks import positive
from lottery.models.init import check_names, initialise_

# Options that this file reads; all others go to the factory.
_OWN = ("_target_", "init", "bn_scale", "weights", "drop_head")


def build(options: Mapping[str, Any], shape: tuple[int, ...], classes: int, seed: int) -> nn.Module:
    """The network that `options` describe, on the CPU, in training mode.

    options: `_target_`, the dotted path of `factory(*, shape, classes, **options) -> nn.Module`; `init` and `bn_scale`
        (see `initialise_`); `weights`, a local file, with `drop_head` (see `weights.load_`); the factory's own options.
    shape: of one example, (C, H, W) or (1, L). seed: of the initial weights.

    Equal arguments give bit-identical weights, whatever torch's generators and default device are; these are left as
    they were. ConfigError where an option is wrong, LotteryError where pretrained weights cannot be fetched.
    """
    _check(options)
    positive("data.classes", classes)
    with _seeded(seed), torch.device("cpu"):
        network = _call(options, shape, classes)
        initialise_(network, options.get("init", "default"), options.get("bn_scale"))
    if options.get("weights"):
        weight_files.load_(network, options["weights"], classes, options.get("drop_head", False))
    return network


def check_fit(options: Mapping[str, Any], shape: tuple[int, ...], classes: int) -> None:
    """ConfigError, naming the model and the shape, unless the network maps 2 examples of `shape` to [2, classes].

    Runs on the meta device, at no cost for weights; networks that cannot, run for real. Nothing is downloaded, and
    a weights file is only looked for.
    """
    _check(options)
    positive("data.classes", classes)
    offline = {**options, "pretrained": False} if "pretrained" in options else options
    try:
        try:
            output = _trial(offline, shape, classes, "meta")
        except LotteryError:
            raise
        except Exception:  # the network does not fit, or it reads values, which meta tensors lack
            output = _trial(offline, shape, classes, "cpu")
    except LotteryError:
        raise
    except Exception as error:
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"model: {_describe(options)} does not fit data of shape {tuple(shape)} with {classes} classes: {cause}"
        ) from error
    found = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
    if found != (2, classes):
        raise ConfigError(
            f"model: {_describe(options)} on 2 examples of shape {tuple(shape)} gives {found}, expected (2, {classes})"
        )


def _check(options: Mapping[str, Any]) -> None:
    """The checks that need no network."""
    check_names(options.get("init", "default"), options.get("bn_scale"))
    if options.get("pretrained") and (options.get("init", "default") != "default" or options.get("bn_scale")):
        raise ConfigError("model.pretrained: model.init and model.bn_scale would overwrite the pretrained weights")
    if options.get("weights"):
        weight_files.check_file(options["weights"])


@torch.no_grad()
def _trial(options: Mapping[str, Any], shape: tuple[int, ...], classes: int, device: str) -> Any:
    with _seeded(0), torch.device(device):
        return _call(options, shape, classes).eval()(torch.zeros(2, *shape))


def _call(options: Mapping[str, Any], shape: tuple[int, ...], classes: int) -> nn.Module:
    """The factory's network; ConfigError where the factory does not take these options."""
    factory = _locate(options.get("_target_"))
    arguments = {name: value for name, value in options.items() if name not in _OWN}
    try:
        inspect.signature(factory).bind(shape=shape, classes=classes, **arguments)
    except TypeError as error:
        takes = [name for name in inspect.signature(factory).parameters if name not in ("shape", "classes")]
        raise ConfigError(
            f"model: {options['_target_']} {error}; it takes {', '.join(takes) or 'no options'}"
        ) from error
    return factory(shape=tuple(shape), classes=classes, **arguments)


def _locate(target: str | None) -> Callable[..., nn.Module]:
    """The function at a dotted path such as `lottery.models.mlp.mlp`."""
    module, _, name = str(target).rpartition(".")
    try:
        factory = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError.of("model._target_", target, f"the dotted path of a function ({error})") from error
    if not callable(factory):
        raise ConfigError.of("model._target_", target, "the dotted path of a function")
    return factory


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Torch's CPU generator, seeded and then restored. (`torch.manual_seed` would reseed the accelerators too.)"""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _describe(options: Mapping[str, Any]) -> str:
    arguments = (f"{name}={value}" for name, value in options.items() if name not in _OWN)
    return f"{str(options.get('_target_')).rpartition('.')[2]}({', '.join(arguments)})"
