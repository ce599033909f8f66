"""The options of a data set, typed for Hydra, and the check of their ranges. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from lottery.errors import ConfigError
from lottery.ranges import at_least, check_options, option, such_that

SCALINGS = ("standard", "unit", "l2", "none")
PADDINGS = ("black", "reflect")
SHAPE = such_that(lambda got: len(got) in (2, 3) and min(got) >= 1, "[C, H, W] or [C, L], each ≥ 1")
SCALING = such_that(lambda got: got in SCALINGS, f"one of {', '.join(SCALINGS)}")
LIMIT = such_that(lambda got: got is None or got >= 1, "a number of training images ≥ 1, or null for all")
COUNT = at_least(0, "a whole number ≥ 0")


@dataclass
class Data:
    """One data set: its source function, and how it is split, scaled and augmented.

    A source is any function `(options: Data, folder: Path) -> mapping` of the four tensors or arrays `train_images`
    [N, *shape] (uint8 or float32), `train_labels` [N] (int64 in [0, classes)), `test_images`, `test_labels`.
    """

    _target_: str = MISSING  # dotted path of the source function
    name: str = MISSING
    classes: int = option(MISSING, at_least(2, "a number of classes ≥ 2"))
    shape: list[int] = option(MISSING, SHAPE)  # of one image: [C, H, W], or [C, L] for signals

    # standard: (x/255 - mean)/std, per channel; unit: x/255; l2: each image divided by its own L2 norm;
    # none: x as it is. The first two are for uint8 images, the last for float32 ones.
    scaling: str = option("standard", SCALING)
    mean: list[float] = field(default_factory=list)
    std: list[float] = field(default_factory=list)

    flip: bool = False  # mirror each training image with probability 1/2
    alternate: bool = False  # with flip: an image that one epoch mirrors the next one does not, and so on
    crop: int = 0  # training images are padded by this many pixels a side and cropped at random; 0 = off
    padding: str = "black"  # of the training images: black | reflect (the image, mirrored at its edge)
    validation: int = option(0, COUNT)  # images held out of the training set
    limit: int | None = option(None, LIMIT)  # train on this many of the remaining training images

    # Only for image folders, which are read from disk while training.
    folder: str = ""  # the tree, relative to paths.data or absolute; "" = name
    resize: int = option(0, COUNT)  # shorter side, in pixels, before the centre crop of the evaluation
    workers: int = option(0, COUNT)


def check(options: Data) -> None:
    """Raise ConfigError, naming the key, where an option is out of range or contradicts another one."""
    check_options(options, "data")
    if options.scaling == "standard":
        channels = options.shape[0]
        for key in ("mean", "std"):
            if len(getattr(options, key)) != channels:
                raise ConfigError.of(f"data.{key}", list(getattr(options, key)), f"{channels} numbers, one a channel")
        if min(options.std) <= 0:
            raise ConfigError.of("data.std", list(options.std), "numbers > 0")
    _check_augmentation(options)
    if 0 < options.resize < max(options.shape[1:]):
        raise ConfigError.of("data.resize", options.resize, f"at least the side of data.shape={list(options.shape)}")


def _check_augmentation(options: Data) -> None:
    if len(options.shape) == 2:
        for key, off in (("flip", False), ("alternate", False), ("crop", 0)):
            if getattr(options, key):
                raise ConfigError.of(f"data.{key}", getattr(options, key), f"{off}: these data are signals, not images")
        return
    if options.alternate and (options.resize or not options.flip):
        raise ConfigError.of("data.alternate", True, "false, or data.flip=true and data in memory")
    if options.padding not in PADDINGS:
        raise ConfigError.of("data.padding", options.padding, f"one of {', '.join(PADDINGS)}")
    if options.padding != "black" and not options.crop:
        raise ConfigError.of("data.padding", options.padding, "black, or data.crop > 0: nothing is padded")
    # With a padding as large as the image's side, a crop may hold no pixel of the image.
    if not 0 <= options.crop < min(options.shape[1:]):
        raise ConfigError.of("data.crop", options.crop, f"a padding in [0, {min(options.shape[1:])}) pixels")
