"""Build a network from its options and a seed, and check beforehand that it fits the data."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lottery.errors import ConfigError, LotteryError
from lottery.models import weights as weight_files
from lottery.models.checks import positive
from lottery.models.init import check_names, initialise_
from lottery.parts import function_at
from lottery.seeding import seeded

START_IMAGES = 5000  # training images from which a network may set start weights
# Options that this file reads; all others go to the factory.
OWN_OPTIONS = ("_target_", "init", "bn_scale", "weights", "drop_head")


def build(options: Mapping[str, Any], shape: tuple[int, ...], classes: int, seed: int) -> nn.Module:
    """Build the network that `options` describe, on the CPU, in training mode.

    options: `_target_`, the dotted path of `factory(*, shape, classes, **options) -> nn.Module`; `init` and `bn_scale`
             (see `initialise_`); `weights`, a local file, with `drop_head` (see `weights.load_`); the factory's options
    shape:   of one example, (C, H, W) or (1, L)
    seed:    seed of the initial weights

    Equal arguments give bit-identical weights, whatever torch's default device and the global generators (torch, numpy,
    Python), which stay unchanged. Raises ConfigError for wrong options, LotteryError where a download fails.
    """
    _check(options, classes)
    with seeded(seed), torch.device("cpu"):
        network = _call(options, shape, classes)
        initialise_(network, options.get("init", "default"), options.get("bn_scale"))
    if options.get("weights"):
        weight_files.load_(network, options["weights"], classes, options.get("drop_head", False))
    return network


def start_network(
    options: Mapping[str, Any], shape: tuple[int, ...], classes: int, seed: int,
    images: Callable[[int], Tensor], fresh: bool = False,
) -> nn.Module:  # fmt: skip
    """Build the network that a study starts from: as `build` does, then with what its `start_from_(images)` sets.

    images: returns so many training images [N, *shape]; called only for a network that has `start_from_`
    fresh:  draw new weights, as a reinit control must; a weights file, which may hold trained ones, is not read
    """
    if fresh:
        options = {name: value for name, value in options.items() if name not in ("weights", "pretrained")}
    network = build(options, shape, classes, seed)
    start_from = getattr(network, "start_from_", None)
    if start_from is not None and not options.get("weights"):
        start_from(images(START_IMAGES))
    return network


def check_fit(options: Mapping[str, Any], shape: tuple[int, ...], classes: int, batch: int = 2) -> None:
    """Raise ConfigError, naming the model and the shape, unless the network can be trained on such data.

    The network must map `batch` examples of `shape` to [batch, classes] in evaluation and in training mode, its loss
    must have a gradient, and its state must be dense real tensors. This is tried on the meta device, without memory for
    weights; if that fails or not all parameters are float32, on the CPU. Nothing is downloaded, and a weights file is
    only checked for existence and suffix.
    """
    _check(options, classes)
    offline = {**options, "pretrained": False} if "pretrained" in options else options
    try:
        try:
            types = _try(offline, shape, classes, batch, "meta")
        except LotteryError:
            raise
        except Exception:  # the network does not fit, or reads values, which meta tensors do not have
            types = set()
        if types != {torch.float32}:  # meta tensors of different types may be combined, real ones not always
            _try(offline, shape, classes, batch, "cpu")
    except LotteryError:
        raise
    except Exception as error:
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
        images = "" if batch == 2 else f", {batch} at a time,"
        raise ConfigError(
            f"model: {_describe(options)} does not fit data of shape {tuple(shape)}{images} with {classes} classes: "
            f"{cause}"
        ) from error


def _check(options: Mapping[str, Any], classes: int) -> None:
    check_names(options.get("init", "default"), options.get("bn_scale"))
    if options.get("pretrained") and (options.get("init", "default") != "default" or options.get("bn_scale")):
        raise ConfigError("model.pretrained: model.init and model.bn_scale would overwrite the pretrained weights")
    if options.get("weights"):
        weight_files.check_file(options["weights"])
    positive("data.classes", classes)


def _try(options: Mapping[str, Any], shape: tuple[int, ...], classes: int, batch: int, device: str) -> set[torch.dtype]:
    """Run forward in evaluation mode, then forward and backward in training mode; return the parameters' types."""
    with seeded(0), torch.device(device):
        network = _call(options, shape, classes)
        images = torch.zeros(batch, *shape)

        def logits(mode: str) -> Tensor:
            output = network(images)
            found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            if found != (batch, classes):
                raise ConfigError(
                    f"model: {_describe(options)} on {batch} examples of shape {tuple(shape)} gives {found}{mode}, "
                    f"expected {(batch, classes)}"
                )
            return output

        network.eval()
        with torch.no_grad():
            logits("")
        _check_state(network, options)
        network.train()
        F.cross_entropy(logits(" in training mode"), torch.zeros(batch, dtype=torch.int64)).backward()
        return {parameter.dtype for parameter in network.parameters()}


def _check_state(network: nn.Module, options: Mapping[str, Any]) -> None:
    for name, value in network.state_dict().items():
        if not isinstance(value, Tensor) or value.is_complex() or value.layout != torch.strided:
            kind = f"{value.layout} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
            raise ConfigError(
                f"model: {_describe(options)}: {name!r} of its state is {kind}, expected dense tensors of real numbers"
            )
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ConfigError(
            f"model: {_describe(options)} has no parameter that is trained: all are frozen (requires_grad)"
        )


def _call(options: Mapping[str, Any], shape: tuple[int, ...], classes: int) -> nn.Module:
    factory = function_at(options.get("_target_"), "model")
    arguments = {name: value for name, value in options.items() if name not in OWN_OPTIONS}
    try:
        inspect.signature(factory).bind(shape=shape, classes=classes, **arguments)
    except TypeError as error:
        takes = [name for name in inspect.signature(factory).parameters if name not in ("shape", "classes")]
        raise ConfigError(
            f"model: {options['_target_']} {error}; it takes {', '.join(takes) or 'no options'}"
        ) from error
    return factory(shape=tuple(shape), classes=classes, **arguments)


def _describe(options: Mapping[str, Any]) -> str:
    arguments = (f"{name}={value}" for name, value in options.items() if name not in OWN_OPTIONS)
    return f"{str(options.get('_target_')).rpartition('.')[2]}({', '.join(arguments)})"
