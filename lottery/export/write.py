"""Write the folder of an exported network, check that the network computes the same logits, load it again."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from contextlib import ExitStack, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lottery.channels.cut import cut_, layers, widths
from lottery.channels.shrink import shrink
from lottery.cost.counts import multiply_adds
from lottery.errors import LotteryError, cause
from lottery.files import Missing, file_digest, read_json, replacing, write_json
from lottery.layers.removal import remove_
from lottery.layers.units import find_units
from lottery.models.build import build
from lottery.state import copied, load_state, restore_, save_state, state_digest
from lottery.trust import check_model
from lottery.values import fits, record

FORMAT = "lottery-network/1"
AGAIN = "export it again"
TOLERANCE = 1e-5  # of logits, relative to the largest where that is above 1


def write_network(
    network: nn.Module, images: Tensor, folder: Path, facts: Mapping[str, Any], dense: bool = False
) -> dict[str, Any]:
    """Shrink a masked network, check it, and write it. Returns the content of network.json.

    Removes the units of `facts["removed_units"]`, which contribute nothing in `network`, and unless `dense` dead
    channels too. Writes network.safetensors (the state), network.onnx (input `images` [N, *shape], output `logits`)
    and network.json. Raises LotteryError, and writes nothing, where logits differ or the network cannot be traced.

    images: [N, *shape], some of the test images, on which the logits are compared.
    facts: entries of network.json; `load_shrunk` needs `model` (options of `build`), `shape` and `classes`.
    """
    masked = network.eval()
    removed = facts.get("removed_units", [])
    small = without(deepcopy(masked), removed, images.shape[1:]) if removed else masked
    small = small if dense else shrink(small, images)
    paths = {name: folder / f"network.{name}" for name in ("json", "onnx", "safetensors")}
    existed = folder.exists()
    try:
        with ExitStack() as stack:  # the exits run in reverse order: network.json is replaced last
            written = {name: stack.enter_context(replacing(path)) for name, path in paths.items()}
            state = copied(small.state_dict())
            save_state(state, written["safetensors"])
            write_onnx(small, images, written["onnx"])
            digests = {paths[name].name: file_digest(written[name]) for name in ("onnx", "safetensors")}
            found = {
                "format": FORMAT,
                **facts,
                "dense": dense,
                **described(masked, small, images),
                "difference": checked(masked, small, written["onnx"], images),
                "tolerance": TOLERANCE,
                "digests": {**facts.get("digests", {}), "network": state_digest(state), **digests},
            }
            write_json(written["json"], found)
    finally:
        if not existed:
            with suppress(OSError):  # not empty after success
                folder.rmdir()
    return found


def without(network: nn.Module, removed: Collection[str], shape: tuple[int, ...]) -> nn.Module:
    """Remove the named units from the network in place, and return it. Raises LotteryError for an unknown unit."""
    units = find_units(network, tuple(shape))
    if unknown := [name for name in removed if name not in units]:
        raise LotteryError(f"{type(network).__name__} has no removable unit {unknown[0]!r} (any more)")
    remove_(network, [units[name] for name in removed])
    return network


def write_onnx(network: nn.Module, images: Tensor, path: Path) -> None:
    """Write ONNX for any number of images, without notes on machine and source code. Raises LotteryError on failure."""
    pair = images[:1].repeat(2, *[1] * (images.dim() - 1))
    options: dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"], "dynamic_shapes": ({0: "batch"},)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(network, (pair,), dynamo=True, verbose=False, **options)
        assert program is not None
        proto = program.model_proto
        _clear_notes(proto)
        path.write_bytes(proto.SerializeToString(deterministic=True))
    except Exception as error:
        raise LotteryError(f"{type(network).__name__} cannot be written as ONNX: {cause(error)}") from error


def _clear_notes(message: Any) -> None:
    """Clear metadata (such as stack traces with the paths of source files) and comments, recursively."""
    for part, value in message.ListFields():
        if part.name in ("metadata_props", "doc_string"):
            message.ClearField(part.name)
        elif part.message_type is not None:
            for each in [value] if hasattr(value, "ListFields") else value:
                _clear_notes(each)


@torch.no_grad()
def checked(masked: nn.Module, small: nn.Module, onnx: Path, images: Tensor) -> dict[str, float | None]:
    """Return the largest difference of a logit for the shrunk network and for ONNX (None without onnxruntime).

    Differences are relative to the largest logit where that is above 1. Raises LotteryError above TOLERANCE."""
    expected, logits = masked(images), {"shrunk": small(images)}
    if find_spec("onnxruntime") is not None:
        from onnxruntime import InferenceSession

        session = InferenceSession(onnx.read_bytes(), providers=["CPUExecutionProvider"])
        logits["onnx"] = torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])
    found: dict[str, float | None] = {"onnx": None}
    for name, each in logits.items():
        found[name] = difference = float((each - expected).abs().max() / expected.abs().max().clamp(min=1))
        if not difference <= TOLERANCE:  # NaN fails too
            raise LotteryError(
                f"the {name} network's logits differ by {difference:.1e} from the masked network's, more than "
                f"{TOLERANCE:.0e}: nothing was written" + ("; --dense keeps all channels" if name == "shrunk" else "")
            )
    return found


def described(masked: nn.Module, small: nn.Module, images: Tensor) -> dict[str, Any]:
    """Return [before, after] pairs: parameters, multiply-adds for one image, and the channels of every layer.

    Multiply-adds count convolutions and linear layers, including zero weights. Layers of removed units are not listed.
    `zero_filters` and `zero_inputs` count all-zero channels that stay because channels coupled with them are in use.
    """
    costs = [multiply_adds(each, images) for each in (masked, small)]
    after = dict(layers(small))
    return {
        "parameters": [sum(parameter.numel() for parameter in each.parameters()) for each in (masked, small)],
        "multiply_adds": [sum(cost.values()) for cost in costs],
        "layers": {
            name: {
                "kind": type(module).__name__,
                "outputs": [widths(module)[0], widths(after[name])[0]],
                "inputs": [widths(module)[1], widths(after[name])[1]],
                **_zeros(after[name]),
                **({"multiply_adds": [cost[name] for cost in costs]} if name in costs[0] else {}),
            }
            for name, module in layers(masked)
            if name in after
        },
    }


def _zeros(module: nn.Module) -> dict[str, int]:
    weight = module.weight
    if not isinstance(weight, Tensor) or weight.dim() < 2:
        return {}
    zero = weight == 0
    facts = {"zero_filters": int(zero.flatten(1).all(1).sum())}
    if getattr(module, "groups", 1) == 1:
        facts["zero_inputs"] = int(zero.transpose(0, 1).flatten(1).all(1).sum())
    return facts


# -- reading it again -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Facts:
    """The part of network.json that is needed to rebuild the network."""

    model: dict[str, Any]  # options of `build`
    shape: list[int]
    classes: int
    layers: dict[str, dict[str, Any]]
    digests: dict[str, str | None]
    removed_units: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Facts:
        """Read network.json. Raises LotteryError where `write_network` did not write it, or it is damaged."""
        try:
            values = read_json(path, AGAIN)
        except Missing as error:
            wanted = "expected a folder that `python -m lottery export` wrote"
            raise LotteryError(f"{path}: no such file, {wanted}") from error
        if values.get("format") != FORMAT:
            raise LotteryError(f"{path}: its format is {values.get('format')!r}, expected {FORMAT!r}")
        facts = record(cls, values, path, AGAIN)
        for name, layer in facts.layers.items():
            if not all(fits(layer.get(side), list[int]) and len(layer[side]) == 2 for side in ("outputs", "inputs")):
                raise LotteryError(f"{path}: damaged, layer {name!r} has no numbers of channels; {AGAIN}")
        return facts


def load_shrunk(folder: str | Path, trust: bool = False) -> nn.Module:
    """Load the network of an export folder, on the CPU, in evaluation mode: [N, *shape] -> [N, classes] logits.

    The network is built with the study's options, its layers are cut to the recorded sizes, and the state is loaded
    strictly. No pickle is read. Only trusted factories are called: lottery's, and those that you have run studies
    with. trust: call any factory that the file names. Raises LotteryError where the folder is no export, or damaged.
    """
    path, weights = Path(folder) / "network.json", Path(folder) / "network.safetensors"
    facts = Facts.read(path)
    check_model(facts.model, path, trust)
    state, shape = load_state(weights), tuple(facts.shape)
    if state_digest(state) != facts.digests.get("network"):
        raise LotteryError(f"{weights}: not the network that network.json names; {AGAIN}")
    options = {name: value for name, value in facts.model.items() if name not in ("weights", "pretrained", "drop_head")}
    try:
        network = build(options, shape, facts.classes, seed=0)
        if facts.removed_units:
            network = without(network, facts.removed_units, shape)
        known = dict(layers(network))
        for name, layer in facts.layers.items():
            now = widths(known[name])
            cut_(known[name], range(layer["outputs"][1], now[0]), range(layer["inputs"][1], now[1]))
        restore_(network, state)
    except LotteryError as error:
        raise LotteryError(f"{path}: {error}") from error
    except Exception as error:  # the factory or torch may raise anything for options that do not fit
        target = facts.model.get("_target_")
        raise LotteryError(f"{folder}: not a network that {target} builds now: {cause(error)}") from error
    return network.eval()
