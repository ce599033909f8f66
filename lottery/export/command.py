"""The command `python -m lottery export`: write a trained ticket as a smaller network. Torch-free to import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lottery.arguments import CommandParser
from lottery.errors import ConfigError, LotteryError
from lottery.files import Missing
from lottery.printing import say
from lottery.record.manifest import remedy
from lottery.record.names import CONFIG, details_file, mask_file, stem
from lottery.record.rows import Row, identity
from lottery.record.run import Run
from lottery.trust import check_data, check_model
from lottery.values import fits

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lottery.ticket import Mask

ABOUT = """\
Write a trained ticket as a network that is physically smaller: channels that cannot reach the output are cut out of
their layers. Any mask will do; structured ones (BiP by filters or channels) are what makes a network small. Of a layer
ticket the shallow network is written.

Writes network.safetensors (its weights), network.onnx and network.json (layers, parameters and multiply-adds before
and after, digests) to DIR, after checking on test images that masked network, smaller network and ONNX file give the
same logits. In Python, lottery.export.write.load_shrunk(DIR) is the network again.

Needs pip install 'lottery[export]'."""

PACKAGES = {"torch_pruning": "torch-pruning", "onnx": "onnx", "onnxscript": "onnxscript"}
IMAGES = 64  # test images on which the logits are compared


def export(args: list[str]) -> int:
    """Run `export ARGS`. Raises LotteryError where the ticket is missing, ConfigError for bad options."""
    parser = CommandParser("export", ABOUT)
    parser.add_argument("run", metavar="RUN", type=Path, help="a run folder")
    parser.add_argument("--round", required=True, type=int, metavar="N", help="of the table; 0 is the dense network")
    parser.add_argument("--control", metavar="KIND", help="a control of that round, such as reinit")
    parser.add_argument("--copy", type=int, metavar="C", help="which copy of the control; default: 0")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: RUN/export/round_N")
    parser.add_argument("--dense", action="store_true", help="keep all channels (not removed layers)")
    parser.add_argument("--trust", action="store_true", help="run code that RUN names and that you never ran")
    asked = parser.parse_args(args)
    if asked.copy is not None and asked.control is None:
        raise ConfigError("--copy: says which copy of a control, it goes with --control KIND")
    ticket = Exported.find(asked.run, asked.round, asked.control, asked.copy or 0)
    check_model(ticket.run.config.get("model"), ticket.config_path, asked.trust)
    check_data(ticket.run.config.get("data"), ticket.config_path, asked.trust)
    check_packages(asked.dense)
    name = stem(*identity(ticket.row)) + (".dense" if asked.dense else "")
    folder = asked.out or asked.run / "export" / name
    if folder.exists() and not folder.is_dir():
        raise ConfigError.of("--out", str(folder), "a folder")
    from lottery.export.write import write_network

    found = write_network(ticket.network, ticket.images, folder, ticket.facts, asked.dense)
    say(*summary(found))
    say(f"{folder / 'network.safetensors'}, network.onnx, network.json")
    return 0


def check_packages(dense: bool) -> None:
    """Raise LotteryError for packages that are not installed. A dense export does not need torch-pruning."""
    needed = [module for module in PACKAGES if not (dense and module == "torch_pruning")]
    if missing := [PACKAGES[module] for module in needed if find_spec(module) is None]:
        verb = "is" if len(missing) == 1 else "are"
        raise LotteryError(f"export: {', '.join(missing)} {verb} not installed: pip install 'lottery[export]'")


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


@dataclass(frozen=True, eq=False)
class Exported:
    """A ticket of a run folder, with its trained state in the store. All properties may raise LotteryError."""

    run: Run
    row: Row

    @classmethod
    def find(cls, folder: Path, round: int, control: str | None, copy: int) -> Exported:
        """Find a round or control. Raises LotteryError, which lists the finished rounds, where it is not finished."""
        run = Run(folder)
        if (row := run.row(round, control, copy)) is not None:
            return cls(run, row)
        wanted = f"round {round}" + (f", control {control} {copy}" if control else "")
        tickets = ", ".join(str(row["round"]) for row in run.rows if not row["control"])
        controls = ", ".join(f"{row['round']} {row['control']} {row['copy']}" for row in run.rows if row["control"])
        listed = f"rounds {tickets}" if run.rows else "finished none yet"
        state = "" if (status := run.status) is None or status.done else f"; the study is not finished ({status.state})"
        raise LotteryError(f"{folder}: has no {wanted}; it has {listed}{controls and f'; controls {controls}'}{state}")

    @property
    def config_path(self) -> Path:
        return self.run.path / CONFIG

    @cached_property
    def details(self) -> dict[str, Any]:
        """The round's stages and digests, from its file in rounds/."""
        try:
            details = self.run.details(*identity(self.row))
            named = [details["stages"]["train"], details["digests"]["mask"], details["digests"]["trained"]]
            if not fits(named, list[str]):
                raise TypeError(named)
        except (Missing, KeyError, TypeError) as error:
            path = self.run.path / details_file(*identity(self.row))
            raise LotteryError(f"{path}: missing or damaged; {remedy(self.run.path)}") from error
        return details

    @cached_property
    def mask(self) -> Mask:
        place = identity(self.row)
        mask = self.run.mask(*place)
        if mask.digest != self.details["digests"]["mask"]:
            flaw = f"{self.run.path / mask_file(*place)}: not the mask that {details_file(*place)} names"
            raise LotteryError(f"{flaw}; {remedy(self.run.path)}")
        return mask

    @property
    def network(self) -> nn.Module:
        """The trained network, with pruned weights exactly zero."""
        from lottery.models.build import build
        from lottery.state import StateRef, restore_

        network = build(self.facts["model"], tuple(self.facts["shape"]), self.facts["classes"], seed=0)
        weights = self.run.trained_weights(self.details["stages"]["train"])
        if weights is None:
            raise LotteryError(
                f"{self.run.path}: the store {self.run.stores[0]} does not have the trained weights of this round (any "
                f"more); `python -m lottery --config {self.config_path}` trains it again"
            )
        state = self.mask.apply(StateRef.file(weights, self.details["digests"]["trained"]).tensors())
        try:
            restore_(network, state)
        except RuntimeError as error:
            flaw = f"its model now builds another network than was trained: {error}"
            raise LotteryError(f"{self.run.path}: {flaw}") from error
        return network

    @property
    def images(self) -> Tensor:
        """The first IMAGES test images of the study [64, *shape], or all where there are fewer."""
        from lottery.config.data import Data
        from lottery.data.load import load

        config = self.run.config
        try:
            options = Data(**config["data"])
        except TypeError as error:
            raise LotteryError(f"{self.config_path}: data: {error}: of another version of lottery") from error
        dataset = load(options, Path(config["paths"]["data"]), config["seeds"]["split"])
        return next(iter(dataset.batches("test", IMAGES)))[0]

    @cached_property
    def facts(self) -> dict[str, Any]:
        """The entries of network.json on the origin of the network, and those needed to rebuild it."""
        config = self.run.config
        model = {name: value for name, value in config["model"].items() if name not in ("weights", "drop_head")}
        if "pretrained" in model:  # its weights are in the state
            model["pretrained"] = False
        facts = {
            "run": self.run.name,
            **{name: self.row[name] for name in ("round", "control", "copy")},
            "model": model,
            **{name: config["data"][name] for name in ("shape", "classes")},
            "density": self.mask.density,
            "digests": {name: self.details["digests"][name] for name in ("mask", "trained")},
        }
        removed = self.row.get("removed_units", [])
        return {**facts, "removed_units": removed} if removed else facts
