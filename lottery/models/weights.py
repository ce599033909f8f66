"""Read a file of weights and load it into a network. All tensors of both must match."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lottery.errors import ConfigError
from lottery.files import Unreadable
from lottery.state import restore_, with_metadata
from lottery.tensor_files import read_tensors

_KEY = "model.weights"
_SUFFIXES = (".safetensors", ".pth", ".pt")


def check_file(path: str) -> Path:
    """Return the path of a weights file. Raises ConfigError for a missing file or an unreadable kind."""
    file = Path(path).expanduser()
    if file.suffix not in _SUFFIXES:
        raise ConfigError.of(_KEY, path, f"a file ending in {', '.join(_SUFFIXES)}")
    if not file.is_file():
        raise ConfigError.of(_KEY, path, "a file that exists")
    return file


def read(path: str) -> dict[str, Tensor]:
    """Read the tensors of a weights file by name, on the CPU, with the module versions that a .pth/.pt holds.

    No code in a .pth/.pt is run. "state_dict" or "model" in a checkpoint is used; DataParallel's `module.` is removed.
    """
    file = check_file(path)
    try:
        if file.suffix == ".safetensors":
            return read_tensors(file, "pt")[0]
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (Unreadable, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ConfigError.of(_KEY, path, f"tensors and nothing else ({type(error).__name__} on reading)") from error
    for name in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ConfigError.of(_KEY, path, "a state dict: tensors by name")
    versions = getattr(content, "_metadata", None)
    if content and all(name.startswith("module.") for name in content):
        content = {name.removeprefix("module."): value for name, value in content.items()}
        inner = {path: version for path, version in (versions or {}).items() if path.partition(".")[0] == "module"}
        versions = {path.removeprefix("module").removeprefix("."): version for path, version in inner.items()} or None
    return with_metadata(content, versions)


def load_(network: nn.Module, path: str, classes: int, drop_head: bool = False) -> None:
    """Load the file into the network. Raises ConfigError, naming the tensors without a counterpart or of another shape.

    With `drop_head` the network keeps its classifier (`head_of`).
    """
    state = read(path)
    if "_conv_stem.weight" in state:
        state = remap_efficientnet_lite0(state)
    load_state_(network, state, path, head_of(network, classes) if drop_head else None)


def load_state_(network: nn.Module, state: Mapping[str, Tensor], source: str, head: str | None = None) -> None:
    """Load `state` strictly, except the module named `head`. `source` names the tensors' origin in the error."""
    own = network.state_dict()
    kept = {name: own[name] for name in own if head is not None and name.startswith(f"{head}.")}
    given = {name: value for name, value in state.items() if name not in kept} | kept
    wrong = [
        f"{name} is {list(given[name].shape)} in the file, {list(own[name].shape)} in the network"
        for name in own
        if name in given and given[name].shape != own[name].shape
    ]
    fitting = {name: value for name, value in given.items() if name not in own or value.shape == own[name].shape}
    result = restore_(network, with_metadata(fitting, getattr(state, "_metadata", None)), strict=False)
    wrong += [f"{name} is missing in the file" for name in result.missing_keys if name not in given]
    wrong += [f"{name} is not in the network" for name in result.unexpected_keys]
    if wrong:
        shown = "; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        raise ConfigError(
            f"{_KEY}: {source} does not fit: {shown} (for another number of classes: model.drop_head=true)"
        )


def head_of(network: nn.Module, classes: int) -> str:
    """Return the name of the classifier: the last linear or convolution layer with `classes` outputs."""
    for name, module in reversed(list(network.named_modules())):
        if isinstance(module, nn.Linear | nn.Conv2d) and module.weight.shape[0] == classes:
            return name
    raise ConfigError.of("model.drop_head", True, f"a network with a classifier layer of {classes} outputs")


_LITE0_STAGES = (1, 2, 2, 3, 3, 4, 1)  # blocks in each stage
_LITE0_ENDS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_LITE0_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_LITE0_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def remap_efficientnet_lite0(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename EfficientNet-PyTorch's tensors ("_blocks.3._bn1.weight") to those of timm's `tf_efficientnet_lite0`.

    timm numbers blocks within each stage; the first block has no expansion. Other names stay and fail strict loading.
    """
    places = [(stage, index) for stage, blocks in enumerate(_LITE0_STAGES) for index in range(blocks)]
    renamed = {}
    for name, value in state.items():
        block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
        if block and int(block[1]) < len(places):
            stage, index = places[int(block[1])]
            layers = _LITE0_BLOCK if stage else _LITE0_FIRST
            name = f"blocks.{stage}.{index}.{layers.get(block[2], block[2])}.{block[3]}"
        else:
            layer, dot, leaf = name.partition(".")
            name = _LITE0_ENDS.get(layer, layer) + dot + leaf
        renamed[name] = value
    return renamed
