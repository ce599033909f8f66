"""The command `python -m lottery export`: write a trained ticket as a smaller network. Torch-free to import."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lottery.arguments import CommandParser
from lottery.errors import ConfigError, LotteryError
from lottery.printing import say
from lottery.record.names import CONFIG, stem
from lottery.record.run import Run
from lottery.trust import check_data, check_model

if TYPE_CHECKING:
    from lottery.record.weights import Weights

ABOUT = """\
Write a ticket for use elsewhere: with --weights its mask and weights, for any torch module with the same parameters;
without, the trained network as one that is physically smaller.

With --weights, DIR gets mask.safetensors (a bool tensor for each prunable parameter, true = kept), start.safetensors,
end.safetensors or both (whole state dicts; pruned weights are zero), and README.md with the lines that load them.
start: the weights that the ticket is trained from. --format torch writes .pt files (pickle) instead.

A smaller network: channels that cannot reach the output are cut out of
their layers. Any mask will do; structured ones (BiP by filters or channels) are what makes a network small. Of a layer
ticket the shallow network is written.

Writes network.safetensors (its weights), network.onnx and network.json (layers, parameters and multiply-adds before
and after, digests) to DIR, after checking on test images that masked network, smaller network and ONNX file give the
same logits. In Python, lottery.export.write.load_shrunk(DIR) is the network again. This needs the packages of
pip install -e '.[export]'."""

PACKAGES = {"torch_pruning": "torch-pruning", "onnx": "onnx", "onnxscript": "onnxscript"}
FORMATS = ["safetensors", "torch"]
IMAGES = 64  # test images on which the logits are compared


def export(args: list[str]) -> int:
    """Run `export ARGS`. Raises LotteryError where the ticket is missing, ConfigError for bad options."""
    parser = CommandParser("export", ABOUT)
    parser.add_argument("run", metavar="RUN", type=Path, help="a run folder")
    parser.add_argument("--round", required=True, type=int, metavar="N", help="of the table; 0 is the dense network")
    parser.add_argument("--control", metavar="KIND", help="a control of that round, such as reinit")
    parser.add_argument("--copy", type=int, metavar="C", help="which copy of the control; default: 0")
    parser.add_argument("--weights", choices=["start", "end", "both"], help="write mask and weights, not a network")
    parser.add_argument("--format", choices=FORMATS, help="of these files; default: safetensors")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: RUN/export/round_N[.WEIGHTS]")
    parser.add_argument("--dense", action="store_true", help="keep all channels (not removed layers)")
    parser.add_argument("--trust", action="store_true", help="run code that RUN names and that you never ran")
    asked = parser.parse_args(args)
    if asked.copy is not None and asked.control is None:
        raise ConfigError("--copy: says which copy of a control, it goes with --control KIND")
    if asked.format and not asked.weights:
        raise ConfigError("--format: is of mask and weights, it goes with --weights start, end or both")
    if asked.dense and asked.weights:
        raise ConfigError("--dense: is of a smaller network, it does not go with --weights")
    run, place = Run(asked.run), (asked.round, asked.control, asked.copy or 0)
    run.require(*place)
    kind = asked.weights or ("dense" if asked.dense else "")
    folder = asked.out or asked.run / "export" / (stem(*place) + (kind and f".{kind}"))
    if folder.exists() and not folder.is_dir():
        raise ConfigError.of("--out", str(folder), "a folder")
    if asked.weights:
        from lottery.export.weights import write_weights

        points = ["start", "end"] if asked.weights == "both" else [asked.weights]
        files = write_weights(run.stored(*place, asked.trust), points, asked.format or FORMATS[0], folder)
    else:
        config = asked.run / CONFIG
        check_model(run.config.get("model"), config, asked.trust)
        check_data(run.config.get("data"), config, asked.trust)
        check_packages(asked.dense)
        from lottery.export.write import write_network

        ticket = run.stored(*place, asked.trust)
        images = next(iter(ticket.dataset.batches("test", IMAGES)))[0]
        say(*summary(write_network(ticket.network("end"), images, folder, facts(ticket), asked.dense)))
        files = ["network.safetensors", "network.onnx", "network.json"]
    say(f"{folder / files[0]}, {', '.join(files[1:])}")
    return 0


def facts(ticket: Weights) -> dict[str, Any]:
    """Return the entries of network.json on the origin of the network, and those needed to rebuild it."""
    data, removed = ticket.run.config["data"], ticket.row.get("removed_units", [])
    return {
        "run": ticket.run.name,
        **{name: ticket.row[name] for name in ("round", "control", "copy")},
        "model": ticket.model,
        **{name: data[name] for name in ("shape", "classes")},
        "density": ticket.mask.density,
        "digests": {"mask": ticket.mask.digest, "trained": ticket.details["digests"]["trained"]},
        **({"removed_units": removed} if removed else {}),
    }


def check_packages(dense: bool) -> None:
    """Raise LotteryError for packages that are not installed. A dense export does not need torch-pruning."""
    needed = [module for module in PACKAGES if not (dense and module == "torch_pruning")]
    if missing := [PACKAGES[module] for module in needed if find_spec(module) is None]:
        verb = "is" if len(missing) == 1 else "are"
        raise LotteryError(f"export: {', '.join(missing)} {verb} not installed: pip install -e '.[export]'")


def summary(found: Mapping[str, Any]) -> list[str]:
    """Return lines on the sizes before and after, the zero filters that stay, and the differences of logits."""
    sizes = {"parameters": found["parameters"], "multiply-adds": found["multiply_adds"]}
    lines = [f"{what}: {before:,} -> {after:,} ({after / before:.1%})" for what, (before, after) in sizes.items()]
    stay = {name: layer["zero_filters"] for name, layer in found["layers"].items() if layer.get("zero_filters")}
    if stay and not found["dense"]:
        where = ", ".join(f"{name} {count}" for name, count in list(stay.items())[:4])
        more = f" and {len(stay) - 4} more layers" if len(stay) > 4 else ""
        lines.append(f"zero filters that stay, other layers use their channels: {where}{more}")
    apart = found["difference"]
    onnx = "not run, onnxruntime is not installed" if apart["onnx"] is None else f"{apart['onnx']:.0e}"
    lines.append(f"largest difference of a logit: {apart['shrunk']:.0e}, ONNX {onnx}")
    return lines
