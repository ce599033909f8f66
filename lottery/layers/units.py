"""TEMPORARY stand-in by the lead (whole blocks of lottery's ResNets only), so that others can go on: overwrite it."""
from __future__ import annotations
from collections.abc import Container, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
import torch
from torch import Tensor, nn
from lottery.errors import ConfigError
from lottery.pruning.prunable import weight_shapes
from lottery.state import State

@dataclass(frozen=True)
class Unit:
    name: str
    modules: tuple[str, ...]
    whole: bool
    tensors: tuple[str, ...]
    weights: tuple[str, ...]

def find_units(network: nn.Module, shape: tuple[int, ...]) -> dict[str, Unit]:
    found = {}
    names = list(network.state_dict())
    weights = list(weight_shapes(network))
    for name, module in network.named_modules():
        if isinstance(getattr(module, "shortcut", None), nn.Identity):
            own = tuple(n for n in names if n.startswith(name + "."))
            found[name] = Unit(name, (name,), True, own, tuple(w for w in weights if w in own))
    return found

def remove_(network: nn.Module, units: Iterable[Unit]) -> None:
    for unit in units:
        for path in unit.modules:
            parent, _, last = path.rpartition(".")
            setattr(network.get_submodule(parent), last, nn.Identity())

def shallow(state: State, units: Iterable[Unit]) -> State:
    gone = {t for unit in units for t in unit.tensors}
    return {n: v for n, v in state.items() if n not in gone}

def silenced(state: State, units: Iterable[Unit], parameters: Container[str]) -> State:
    gone = {t for unit in units for t in unit.tensors if t in parameters}
    return {n: torch.zeros_like(v) if n in gone else v.clone() for n, v in state.items()}

def dense_form(state: State, like: State, units: Iterable[Unit], parameters: Container[str]) -> State:
    return {**silenced(like, units, parameters), **state}

def check_removal(network: nn.Module, units: Iterable[Unit], shape: tuple[int, ...]) -> None:
    small = deepcopy(network)
    remove_(small, units)
    small.eval()(torch.zeros(2, *shape))

def no_units(network: nn.Module, shape: tuple[int, ...]) -> str:
    return "nothing was found"

def features(network: nn.Module, units: Mapping[str, Unit], images: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    found = {}
    handles = [network.get_submodule(n).register_forward_hook(lambda m, i, o, n=n: found.__setitem__(n, (i[0], o))) for n in units]
    with torch.no_grad():
        network(images)
    for h in handles: h.remove()
    return found
