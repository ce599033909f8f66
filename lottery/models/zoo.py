"""Networks of timm and torchvision, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from lottery.errors import ConfigError, LotteryError
from lottery.models.checks import image_shape, one_of
from lottery.models.weights import head_of, load_state_

Options = Mapping[str, Any]  # further arguments of the library's function


def from_timm(
    *, shape: tuple[int, ...], classes: int, name: str, pretrained: bool = False, options: Options | None = None
) -> nn.Module:
    """Build timm's network `name` with the data's channels and classes. [N, C, H, W] -> [N, classes] logits.

    Networks for one image size (ViT, Swin, mixers) are built for the data's size or `options.img_size`. `pretrained`
    downloads timm's weights (LotteryError where that fails); timm adapts the first convolution and the classifier.
    """
    import timm

    channels, height, width = image_shape(shape, name)
    if not timm.is_model(name):
        one_of("model.name", name, timm.list_models())
    further = dict(options or {})
    described = timm.get_pretrained_cfg(name)
    if described is not None and described.fixed_input_size:
        further.setdefault("img_size", (height, width))
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=classes, in_chans=channels, **further)
    except Exception as error:
        if not pretrained:
            raise
        raise _not_fetched(name, error) from error


def from_torchvision(
    *, shape: tuple[int, ...], classes: int, name: str, pretrained: bool = False, options: Options | None = None
) -> nn.Module:
    """Build torchvision's classification network `name`. [N, 3, H, W] -> [N, classes] logits.

    `pretrained` downloads torchvision's newest weights (LotteryError where that fails), a fitting classifier included.
    """
    from torchvision import models

    one_of("model.name", name, models.list_models(module=models))
    channels, _, _ = image_shape(shape, name)
    if channels != 3:
        raise ConfigError(
            f"model: torchvision's {name} takes 3-channel images, the data have {channels}; model=timm takes any number"
        )
    network = models.get_model(name, weights=None, num_classes=classes, **(options or {}))
    if getattr(network, "aux_logits", False):
        raise ConfigError(f"model: {name} has auxiliary outputs in training; set +model.options.aux_logits=false")
    if pretrained:
        weights = models.get_model_weights(name).DEFAULT
        try:
            state = weights.get_state_dict(progress=False, check_hash=True, map_location="cpu")
        except Exception as error:
            raise _not_fetched(name, error) from error
        same_classes = len(weights.meta["categories"]) == classes
        load_state_(network, state, f"torchvision's {name}", None if same_classes else head_of(network, classes))
    return network


def _not_fetched(name: str, error: Exception) -> LotteryError:
    cause = str(error).strip().splitlines() or [""]
    return LotteryError(
        f"model.pretrained: no pretrained weights for {name}: {type(error).__name__} {cause[0][:200]}; "
        "without a network: model.pretrained=false model.weights=FILE"
    )
