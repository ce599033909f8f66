"""What lottery can do with the families of timm's networks on 32x32 images: the table in docs/models.md.

python benchmarks/families.py [NAME ...] [--write docs/models.md]

Each network is built as the configuration would build it. The counts are of the network itself. "runs" means what it
says: each method has trained a dense network and a ticket for two steps, on made-up images, in a smaller variant.
"""

from __future__ import annotations

import argparse
import logging
import re
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from lottery.compose import composed
from lottery.config import settings
from lottery.errors import cause
from lottery.layers.removal import Unit
from lottery.layers.units import find_units
from lottery.models.build import build
from lottery.parts import typed_method
from lottery.pruning.gradients import grasp, snip, synflow
from lottery.pruning.prunable import module_of, prunable
from lottery.pruning.scoring import Criterion
from lottery.signals import StopFlag
from lottery.stages.lab import Lab

SHAPE, CLASSES = (3, 32, 32), 10
BEGIN, END = "<!-- table: python benchmarks/families.py --write docs/models.md -->", "<!-- end of the table -->"
CRITERIA: dict[str, Criterion] = {
    "SNIP": partial(snip, per_class=2),
    "SynFlow": synflow,
    "GraSP": partial(grasp, per_class=2),
}
METHODS = {
    "imp": ("method=imp", "method.rounds=1"),
    "random": ("method=random", "allocation=erk", "method.density=0.3"),
    "pai/snip": ("method=pai", "criterion=snip", "criterion.per_class=2", "method.density=0.3"),
    "pai/synflow": ("method=pai", "criterion=synflow", "method.steps=3", "method.density=0.3"),
    "pai/grasp": ("method=pai", "criterion=grasp", "criterion.per_class=2", "method.density=0.3"),
    "layers": ("method=layers", "layer_criterion=snip", "method.criterion.per_class=2", "method.remove=[1]"),
}
TINY = ("data=cifar10", "data.validation=16", "train.steps=2it", "train.batch_size=8", "train.eval_every=2it",
        "optim=momentum", "probes=none", "tracker=none", "trainer=cpu", "trainer.progress=false")  # fmt: skip


@dataclass(frozen=True)
class Family:
    """A network by timm's name: `options` for 32x32 images, and further ones that make it small enough for a test."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    small: dict[str, Any] = field(default_factory=dict)

    def model(self, small: bool = False, **own: Any) -> dict[str, Any]:
        """The node `model` of a configuration; `own` goes to `build` (init, bn_scale)."""
        options = {**self.options, **self.small} if small else self.options
        return {"_target_": "lottery.models.zoo.from_timm", "name": self.name, "options": options, **own}

    def network(self, small: bool = False, **own: Any) -> nn.Module:
        return build(self.model(small, **own), SHAPE, CLASSES, seed=0)


VIT = {"patch_size": 4}
SMALL_VIT = {"embed_dim": 48, "num_heads": 3, "depth": 2}
FAMILIES = (
    Family("resnet18", small={"channels": [8, 16, 32, 64]}),
    Family("resnetv2_18", small={"channels": [8, 16, 32, 64]}),
    Family("resnext50_32x4d", small={"channels": [16, 32, 64, 128], "layers": [1, 2, 1, 1], "cardinality": 4}),
    Family("regnetx_002"),
    Family("vgg11_bn", small={"mlp_ratio": 0.01}),
    Family("densenet121", small={"block_config": [2, 2], "growth_rate": 8}),
    Family("mobilenetv2_035"),
    Family("mobilenetv3_small_050"),
    Family("efficientnet_lite0"),
    Family("ghostnet_050"),
    Family("rexnet_100"),
    Family("repvgg_a0"),
    Family("convnext_atto", small={"depths": [1, 2, 1, 1], "dims": [8, 16, 32, 64]}),
    Family("convnextv2_atto", small={"depths": [1, 2, 1, 1], "dims": [8, 16, 32, 64]}),
    Family("vit_tiny_patch16_224", VIT, SMALL_VIT),
    Family("deit_tiny_distilled_patch16_224", VIT, SMALL_VIT),
    Family("deit3_small_patch16_224", VIT, SMALL_VIT),
    Family("beit_base_patch16_224", VIT, SMALL_VIT),
    Family("cait_xxs24_224", VIT, {"depth": 2, "embed_dim": 48, "num_heads": 3}),
    Family("swin_tiny_patch4_window7_224", {"patch_size": 2, "window_size": 4},
           {"embed_dim": 12, "depths": [1, 2], "num_heads": [2, 4]}),
    Family("swinv2_tiny_window8_256", {"patch_size": 2, "window_size": 4},
           {"embed_dim": 12, "depths": [1, 2], "num_heads": [2, 4]}),
    Family("mixer_s16_224", small={"mlp_ratio": [0.5, 0.25]}),
    Family("poolformer_s12"),
    Family("mobilevit_xxs"),
    Family("levit_128s", small={"depth": [1, 2, 1]}),
    Family("coatnet_nano_rw_224"),
    Family("efficientvit_b0"),
)  # fmt: skip


def stays_whole(network: nn.Module) -> Counter[str]:
    """How many parameters are not prunable, by kind: norm, bias, or what a parameter is called."""
    may_go, found = prunable(network), Counter[str]()
    for name, parameter in network.named_parameters():
        if name in may_go:
            continue
        kind, owner = name.rpartition(".")[2], network.get_submodule(module_of(name))
        if "Norm" in type(owner).__name__ or isinstance(owner, nn.modules.batchnorm._BatchNorm):
            kind = "norm"
        found[kind] += parameter.numel()
    return found


def kinds(units: dict[str, Unit]) -> Counter[str]:
    """How many units there are of each kind: blocks, or what the module of a branch is called."""
    lasts = (name.rpartition(".")[2] for name in units)
    return Counter("blocks" if re.fullmatch(r"[a-z]{0,3}\d+", last) else last for last in lasts)


def make_data(folder: Path) -> None:
    """Random images in the place and format of CIFAR-10."""
    generator = torch.Generator().manual_seed(0)
    arrays = {}
    for part, count in (("train", 96), ("test", 20)):
        arrays[f"{part}_images"] = torch.randint(0, 256, (count, *SHAPE), generator=generator, dtype=torch.uint8)
        arrays[f"{part}_labels"] = torch.arange(count) % CLASSES
    save_file(arrays, folder / "cifar10.safetensors")


def tiny(family: Family, folder: Path, *overrides: str, small: bool = False) -> tuple[Lab, Any]:
    """The lab and the method of a tiny study of this network."""
    cfg = composed([*TINY, "model=timm", *overrides, f"paths.data={folder}", f"paths.runs={folder / 'runs'}"])
    cfg.model = family.model(small, pretrained=False)
    return Lab(settings(cfg), StopFlag(), lambda *_: None), typed_method(cfg.method)


def scores(family: Family, folder: Path) -> list[str]:
    """What each criterion says of the network at initialisation."""
    (lab, _), cells = tiny(family, folder), []
    for criterion in CRITERIA.values():
        try:
            found = lab.scored_by(criterion, lab.initial.state, lab.initial.mask)
        except Exception as error:
            cells.append(f"no: {short(error)}")
            continue
        blind = sum(not score.any() for score in found.values())
        finite = all(score.isfinite().all() for score in found.values())
        cells.append("not finite" if not finite else f"{blind} of {len(found)} layers at 0" if blind else "yes")
    return cells


def runs(family: Family, folder: Path) -> str:
    """Which methods run, in the smaller variant."""
    failed = {}
    left_out = () if find_units(family.network(small=True), SHAPE) else ("layers",)
    for method, overrides in METHODS.items():
        if method in left_out:
            continue
        try:
            lab, program = tiny(family, folder, *overrides, small=True)
            program.check(lab)
            for _ in program(lab):
                pass
        except Exception as error:
            failed[method] = f"{method} ({short(error)})"
    return "all but " + ", ".join([*failed.values(), *left_out]) if failed or left_out else "all"


def short(error: Exception) -> str:
    """What an error says, as much as a cell holds."""
    text = cause(error).replace("|", "/")
    return text if len(text) <= 90 else text[:88] + " …"


def counts(family: Family) -> list[str]:
    """The cells that need nothing but the network."""
    network = family.network()
    may_go, whole, units = prunable(network), stays_whole(network), find_units(network, SHAPE)
    weights = sum(shape.numel() for shape in may_go.values())
    total = sum(parameter.numel() for parameter in network.parameters())
    removable = sum(may_go[name].numel() for unit in units.values() for name in unit.weights)
    options = ", ".join(f"{key}={value}" for key, value in family.options.items())
    return [
        f"`{family.name}`" + (f" ({options})" if options else ""),
        f"{len(may_go)}",
        f"{weights:,}",
        f"{total - weights:,}: {', '.join(whole)}",
        ", ".join(f"{count} {kind}" for kind, count in kinds(units).items()) or "none",
        f"{removable / weights:.1%}",
    ]


HEADER = ["network", "tensors", "prunable weights", "stay whole", "removable units", "of the weights",
          *CRITERIA, "methods that run"]  # fmt: skip


def line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="only these networks")
    parser.add_argument("--write", type=Path, help="replace the table in this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lottery").setLevel(logging.ERROR)
    lines = [line(HEADER), line(["---"] * len(HEADER))]
    for family in FAMILIES:
        if arguments.names and family.name not in arguments.names:
            continue
        with tempfile.TemporaryDirectory() as folder:
            make_data(Path(folder))
            try:
                cells = [*counts(family), *scores(family, Path(folder)), runs(family, Path(folder))]
            except Exception as error:
                cells = [f"`{family.name}`", f"none: {cause(error)}"] + [""] * (len(HEADER) - 2)
        lines.append(line(cells))
        print(lines[-1], flush=True)
    if arguments.write:
        before, _, rest = arguments.write.read_text(encoding="utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
        arguments.write.write_text("\n".join([before + BEGIN, "", *lines, "", END]) + after, encoding="utf-8")


if __name__ == "__main__":
    main()
