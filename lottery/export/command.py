"""`python -m lottery export RUN --round N`: a trained ticket as a smaller network. Torch-free to import."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lottery.analysis.read import Row, read_config, read_rounds
from lottery.arguments import CommandParser
from lottery.errors import ConfigError, LotteryError
from lottery.tracking.status import Status

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
    """The command. LotteryError where there is no such ticket or it cannot be exported, ConfigError for bad options."""
    parser = CommandParser("export", ABOUT)
    parser.add_argument("run", metavar="RUN", type=Path, help="a run folder")
    parser.add_argument("--round", required=True, type=int, metavar="N", help="of the table; 0 is the dense network")
    parser.add_argument("--control", metavar="KIND", help="a control of that round, such as reinit")
    parser.add_argument("--copy", type=int, metavar="C", help="which copy of the control; default: 0")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: RUN/export/round_N")
    parser.add_argument(
        "--dense",
        action="store_true",
        help="keep all channels (not removed layers)",
    )
    asked = parser.parse_args(args)
    if asked.copy is not None and asked.control is None:
        raise ConfigError("--copy: says which copy of a control, it goes with --control KIND")
    ticket = Exported.find(asked.run, asked.round, asked.control, asked.copy or 0)
    check_packages(asked.dense)
    folder = asked.out or asked.run / "export" / (ticket.stem + (".dense" if asked.dense else ""))
    if folder.exists() and not folder.is_dir():
        raise ConfigError.of("--out", str(folder), "a folder")
    from lottery.export.write import write_network

    found = write_network(ticket.network, ticket.images, folder, ticket.facts, asked.dense)
    for line in summary(found):
        print(line)
    print(f"{folder / 'network.safetensors'}, network.onnx, network.json")
    return 0


def check_packages(dense: bool) -> None:
    """Raise LotteryError for packages that are not installed."""
    needed = {module: name for module, name in PACKAGES.items() if not (dense and module == "torch_pruning")}
    if missing := [name for module, name in needed.items() if find_spec(module) is None]:
        verb = "is" if len(missing) == 1 else "are"
        raise LotteryError(f"export: {', '.join(missing)} {verb} not installed: pip install 'lottery[export]'")


def summary(found: Mapping[str, Any]) -> list[str]:
    """What was gained, what was checked, and what is zero and had to stay."""
    lines = [
        f"{what}: {before:,} -> {after:,} ({after / before:.1%})"
        for what, (before, after) in (
            ("parameters", found["parameters"]),
            ("multiply-adds", found["multiply_adds"]),
        )
    ]
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
    """A ticket of a run folder, with its trained state in the store."""

    run: Path
    row: Row

    @classmethod
    def find(cls, run: Path, round: int, control: str | None, copy: int) -> Exported:
        """LotteryError, naming what there is, where the study has not finished such a round."""
        rows = read_rounds(run)
        for row in rows:
            if (row["round"], row["control"], row.get("copy", 0)) == (round, control, copy):
                return cls(run, row)
        wanted = f"round {round}" + (f", control {control} {copy}" if control else "")
        status = Status.read(run)
        state = "" if status is None or status.state == "done" else f"; the study is not finished ({status.state})"
        raise LotteryError(f"{run}: has no {wanted}; it has {_listed(rows)}{state}")

    @property
    def stem(self) -> str:
        control = f".{self.row['control']}-{self.row.get('copy', 0)}" if self.row["control"] else ""
        return f"round_{self.row['round']:03d}{control}"

    @cached_property
    def config(self) -> dict[str, Any]:
        return read_config(self.run)

    @cached_property
    def details(self) -> dict[str, Any]:
        path = self.run / "rounds" / f"{self.stem}.json"
        try:
            details = json.loads(path.read_bytes())
            details["stages"]["train"], details["digests"]["mask"], details["digests"]["trained"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LotteryError(f"{path}: missing or damaged; {self._again} writes it again") from error
        return details

    @property
    def _again(self) -> str:
        return f"`python -m lottery --config {self.run / 'config.yaml'}`"

    @cached_property
    def mask(self) -> Mask:
        from lottery.ticket import Mask
        from lottery.tracking.folder import RunFolder

        path = RunFolder(self.run).mask_path({"copy": 0, **self.row})
        mask = Mask.load(path)
        if mask.digest != self.details["digests"]["mask"]:
            raise LotteryError(
                f"{path}: not the mask that rounds/{self.stem}.json names; {self._again} writes it again"
            )
        return mask

    @property
    def network(self) -> nn.Module:
        """The trained network, its pruned weights exactly zero."""
        from lottery.models.build import build
        from lottery.state import StateRef

        network = build(self.facts["model"], tuple(self.facts["shape"]), self.facts["classes"], seed=0)
        digest = self.details["digests"]["trained"]
        state = self.mask.apply(StateRef.file(self._state, digest).tensors())
        try:
            network.load_state_dict(state, strict=True)
        except RuntimeError as error:
            raise LotteryError(f"{self.run}: its model now builds another network than was trained: {error}") from error
        return network

    @property
    def _state(self) -> Path:
        """The file in the store that the configuration names, or in the one beside a run folder that was moved."""
        key = self.details["stages"]["train"]
        stores = [Path(self.config["paths"]["store"]), self.run.resolve().parent.parent / ".store"]
        paths = [store / "train" / key / "state.safetensors" for store in stores]
        for path in paths:
            if path.is_file():
                return path
        raise LotteryError(
            f"{self.run}: the store {stores[0]} does not have the trained weights of this round (any more); "
            f"{self._again} trains it again"
        )

    @property
    def images(self) -> Tensor:
        """Some of the study's test images."""
        from lottery.data.load import load
        from lottery.data.options import Data

        try:
            options = Data(**self.config["data"])
        except TypeError as error:
            raise LotteryError(f"{self.run / 'config.yaml'}: data: {error}: of another version of lottery") from error
        dataset = load(options, Path(self.config["paths"]["data"]), self.config["seeds"]["split"])
        return next(iter(dataset.batches("test", IMAGES)))[0]

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What network.json says of where the network comes from, and how it is built."""
        model = {name: value for name, value in self.config["model"].items() if name not in ("weights", "drop_head")}
        if "pretrained" in model:  # its weights are in the state
            model["pretrained"] = False
        digests = {name: self.details["digests"][name] for name in ("mask", "trained")}
        return {
            "run": f"{self.run.resolve().parent.name}/{self.run.resolve().name}",
            "round": self.row["round"],
            "control": self.row["control"],
            "copy": self.row.get("copy", 0),
            "model": model,
            "shape": self.config["data"]["shape"],
            "classes": self.config["data"]["classes"],
            "density": self.mask.density,
            "digests": digests,
            **({"removed_units": removed} if (removed := self.row.get("removed_units", [])) else {}),
        }


def _listed(rows: list[Row]) -> str:
    """What a study has finished."""
    if not rows:
        return "finished none yet"
    tickets = [str(row["round"]) for row in rows if not row["control"]]
    controls = [f"{row['round']} {row['control']} {row.get('copy', 0)}" for row in rows if row["control"]]
    return f"rounds {', '.join(tickets)}" + (f"; controls {', '.join(controls)}" if controls else "")
