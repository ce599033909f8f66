"""The options of a data set, typed for Hydra, and the check of their ranges. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from lottery.errors import ConfigError

SCALINGS = ("standard", "unit", "l2", "none")


@dataclass
class Data:
    """One data set: which source function yields it, how it is split, scaled and augmented.

    A source is any function `(options: Data, folder: Path) -> mapping` of the four tensors or arrays `train_images`
    [N, *shape] (uint8 or float32), `train_labels` [N] (int64 in [0, classes)), `test_images`, `test_labels`.
    """

    _target_: str = MISSING  # dotted path of the source function
    name: str = MISSING
    classes: int = MISSING
    shape: list[int] = MISSING  # of one image: [C, H, W], or [C, L] for signals

    # standard: (x/255 - mean)/std, per channel; unit: x/255; l2: each image divided by its own L2 norm;
    # none: x as it is. The first two are for uint8 images, the last for float32 ones.
    scaling: str = "standard"
    mean: list[float] = field(default_factory=list)
    std: list[float] = field(default_factory=list)

    flip: bool = False  # mirror each training image with probability 1/2
    crop: int = 0  # training images are padded by this many black pixels a side and cropped at random; 0 = off
    validation: int = 0  # images held out of the training set
    limit: int | None = None  # train on this many of the remaining training images

    # Only for image folders, which are read from disk while training.
    folder: str = ""  # the tree, relative to paths.data or absolute; "" = name
    resize: int = 0  # shorter side, in pixels, before the centre crop of the evaluation
    workers: int = 0


def check(options: Data) -> None:
    """Raise ConfigError, naming the key, where an option is out of range or at odds with another one."""
    _check_shape(options)
    _check_scaling(options)
    _check_augmentation(options)
    for key in ("validation", "workers", "resize"):
        if getattr(options, key) < 0:
            raise ConfigError.of(f"data.{key}", getattr(options, key), "a whole number ≥ 0")
    if options.limit is not None and options.limit < 1:
        raise ConfigError.of("data.limit", options.limit, "a number of training images ≥ 1, or null for all")
    if 0 < options.resize < max(options.shape[1:]):
        raise ConfigError.of("data.resize", options.resize, f"at least the side of data.shape={list(options.shape)}")


def _check_shape(options: Data) -> None:
    if len(options.shape) not in (2, 3) or min(options.shape) < 1:
        raise ConfigError.of("data.shape", list(options.shape), "[C, H, W] or [C, L], each ≥ 1")
    if options.classes < 2:
        raise ConfigError.of("data.classes", options.classes, "a number of classes ≥ 2")


def _check_scaling(options: Data) -> None:
    if options.scaling not in SCALINGS:
        raise ConfigError.of("data.scaling", options.scaling, f"one of {', '.join(SCALINGS)}")
    if options.scaling != "standard":
        return
    channels = options.shape[0]
    for key in ("mean", "std"):
        if len(getattr(options, key)) != channels:
            raise ConfigError.of(f"data.{key}", list(getattr(options, key)), f"{channels} numbers, one a channel")
    if min(options.std) <= 0:
        raise ConfigError.of("data.std", list(options.std), "numbers > 0")


def _check_augmentation(options: Data) -> None:
    if len(options.shape) == 2:
        for key, off in (("flip", False), ("crop", 0)):
            if getattr(options, key):
                raise ConfigError.of(f"data.{key}", getattr(options, key), f"{off}: these data are signals, not images")
        return
    # From a padding of the whole side on, a crop may hold no pixel of its image.
    if not 0 <= options.crop < min(options.shape[1:]):
        raise ConfigError.of("data.crop", options.crop, f"a padding in [0, {min(options.shape[1:])}) pixels")
