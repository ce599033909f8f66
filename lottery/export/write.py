"""An exported network's folder: what is written, the check that it computes the same, and how it is read again."""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Mapping
from contextlib import ExitStack, suppress
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lottery.cost.macs import multiply_adds
from lottery.errors import LotteryError, cause
from lottery.export.channels import cut_, layers, widths
from lottery.export.shrink import shrink
from lottery.files import file_digest, replacing, write_json
from lottery.layers.units import find_units, remove_
from lottery.models.build import build
from lottery.state import copied, load_state, save_state, state_digest

FORMAT = "lottery-network/1"
TOLERANCE = 1e-5  # of logits, relative to the largest where that is above 1


def write_network(
    network: nn.Module, images: Tensor, folder: Path, facts: Mapping[str, Any], dense: bool = False
) -> dict[str, Any]:
    """Shrink a masked network, check it, and write it; returns what network.json says.

    The units of `facts["removed_units"]`, which give nothing in `network`, leave it; unless `dense`, dead channels too.

    Writes network.safetensors (the state), network.onnx (input `images` [N, *shape], output `logits`) and network.json.
    images: [N, *shape], some of the test images; the logits on them are compared.
    facts: of network.json, at least what `load_shrunk` needs: `model` (options of `build`), `shape`, `classes`.

    LotteryError where the logits differ or the network cannot be traced; then no file is written.
    """
    masked = network.eval()
    removed = facts.get("removed_units", [])
    small = without(deepcopy(masked), removed, images.shape[1:]) if removed else masked
    small = small if dense else shrink(small, images)
    paths = {name: folder / f"network.{name}" for name in ("json", "onnx", "safetensors")}
    existed = folder.exists()
    try:
        with ExitStack() as stack:  # replaced in reverse: network.json last
            written = {name: stack.enter_context(replacing(path)) for name, path in paths.items()}
            state = copied(small.state_dict())
            save_state(state, written["safetensors"])
            write_onnx(small, images, written["onnx"])
            found = {
                "format": FORMAT,
                **facts,
                "dense": dense,
                **described(masked, small, images),
                "difference": checked(masked, small, written["onnx"], images),
                "tolerance": TOLERANCE,
                "digests": {
                    **facts.get("digests", {}),
                    "network": state_digest(state),
                    **{path.name: file_digest(written[name]) for name, path in paths.items() if name != "json"},
                },
            }
            write_json(written["json"], found)
    finally:
        if not existed:
            with suppress(OSError):  # it is not empty where all went well
                folder.rmdir()
    return found


def without(network: nn.Module, removed: Collection[str], shape: tuple[int, ...]) -> nn.Module:
    """The network, in place, without these units of a layer ticket."""
    units = find_units(network, tuple(shape))
    if unknown := [name for name in removed if name not in units]:
        raise LotteryError(f"{type(network).__name__} has no removable unit {unknown[0]!r} (any more)")
    remove_(network, [units[name] for name in removed])
    return network


def write_onnx(network: nn.Module, images: Tensor, path: Path) -> None:
    """The network as one ONNX file, for any number of images, without the notes on whose machine and code made it.

    LotteryError where torch cannot export it.
    """
    pair = images[:1].repeat(2, *[1] * (images.dim() - 1))
    options: dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"], "dynamic_shapes": ({0: "batch"},)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(network, (pair,), dynamo=True, verbose=False, **options)
        assert program is not None
        proto = program.model_proto
        _without_notes(proto)
        path.write_bytes(proto.SerializeToString(deterministic=True))
    except Exception as error:
        raise LotteryError(f"{type(network).__name__} cannot be written as ONNX: {cause(error)}") from error


def _without_notes(message: Any) -> None:
    """Clear metadata (stack traces among it, with the paths of source files) and comments, at every depth."""
    for field, value in message.ListFields():
        if field.name in ("metadata_props", "doc_string"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for each in [value] if hasattr(value, "ListFields") else value:
                _without_notes(each)


# -- the check --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def checked(masked: nn.Module, small: nn.Module, onnx: Path, images: Tensor) -> dict[str, float | None]:
    """The largest difference of a logit, relative to the largest logit where that is above 1: of the shrunk network and
    of the ONNX file (None where onnxruntime is not installed). LotteryError where one is above the tolerance.
    """
    expected = masked(images)
    found: dict[str, float | None] = {"shrunk": _difference(expected, small(images)), "onnx": None}
    if find_spec("onnxruntime") is not None:
        found["onnx"] = _difference(expected, _run_onnx(onnx, images))
    for name, difference in found.items():
        if difference is not None and not difference <= TOLERANCE:  # NaN fails too
            raise LotteryError(
                f"the {name} network's logits differ by {difference:.1e} from the masked network's, more than "
                f"{TOLERANCE:.0e}: nothing was written" + ("; --dense keeps all channels" if name == "shrunk" else "")
            )
    return found


def _difference(expected: Tensor, found: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1))


def _run_onnx(path: Path, images: Tensor) -> Tensor:
    from onnxruntime import InferenceSession

    session = InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


# -- what it is -------------------------------------------------------------------------------------------------------


def described(masked: nn.Module, small: nn.Module, images: Tensor) -> dict[str, Any]:
    """Before and after, as pairs: parameters, multiply-adds for one image, and the channels of every layer.

    Layers of units that left are not listed.
    `zero_filters` and `zero_inputs` are all-zero ones that stay, because what they are coupled with is in use.
    Multiply-adds are those of convolutions and linear layers, zeros included.
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


def load_shrunk(folder: str | Path) -> nn.Module:
    """The network in an export folder, on the CPU, in evaluation mode: [N, *shape] -> [N, classes] logits.

    The network is built as the study built it, its layers are cut to the recorded sizes, and the state is loaded
    strictly. No pickle is read; a model factory of your own has to be importable. LotteryError where the folder is
    none, or damaged.
    """
    folder = Path(folder)
    facts = _read_facts(folder / "network.json")
    drawn = {
        name: value for name, value in facts["model"].items() if name not in ("weights", "pretrained", "drop_head")
    }
    network = build(drawn, tuple(facts["shape"]), facts["classes"], seed=0)
    if removed := facts.get("removed_units", []):
        network = without(network, removed, tuple(facts["shape"]))
    state = load_state(folder / "network.safetensors")
    if state_digest(state) != facts["digests"]["network"]:
        raise LotteryError(
            f"{folder / 'network.safetensors'}: not the network that network.json names; export it again"
        )
    known = dict(layers(network))
    try:
        for name, layer in facts["layers"].items():
            (_, outs), (_, ins) = layer["outputs"], layer["inputs"]
            now = widths(known[name])
            cut_(known[name], range(outs, now[0]), range(ins, now[1]))
        network.load_state_dict(state, strict=True)
    except (KeyError, RuntimeError) as error:
        raise LotteryError(
            f"{folder}: not a network that {facts['model'].get('_target_')} builds now: {cause(error)}"
        ) from error
    return network.eval()


def _read_facts(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_bytes())
        if facts["format"] != FORMAT:
            raise LotteryError(f"{path}: its format is {facts['format']!r}, expected {FORMAT!r}")
        if missing := {"model", "shape", "classes", "layers", "digests"} - set(facts):
            raise LotteryError(f"{path}: damaged, it has no {', '.join(sorted(missing))}; export it again")
        return facts
    except FileNotFoundError:
        raise LotteryError(f"{path}: no such file, expected a folder that `python -m lottery export` wrote") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LotteryError(f"{path}: not an exported network; export it again") from error
