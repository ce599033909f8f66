"""Write the mask and the weights of a ticket for any torch module, with a README that loads them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from lottery.files import replacing
from lottery.models.build import OWN_OPTIONS
from lottery.record.rows import identity
from lottery.record.weights import Weights

README = "README.md"
SUFFIX = {"safetensors": "safetensors", "torch": "pt"}
LOAD = {"safetensors": 'load_file("{}")', "torch": 'torch.load("{}", weights_only=True)'}
IMPORT = {"safetensors": "from safetensors.torch import load_file", "torch": "import torch"}
ABOUT = {
    "mask": "the mask: for each prunable parameter a bool tensor of its name and shape, true = kept",
    "start": "the weights that the ticket is trained from: a whole `state_dict`, pruned weights are zero",
    "end": "the weights after its training: a whole `state_dict`, pruned weights are zero",
}


def write_weights(ticket: Weights, points: Sequence[str], format: str, folder: Path) -> list[str]:
    """Write the mask, the weights at these points ("start", "end") and a README; return the names of the files.

    format: "safetensors", or "torch" for pickled files, which `torch.load(weights_only=True)` reads and runs no code of
    Raises LotteryError, and writes nothing, where the weights are nowhere (any more).
    """
    mask = ticket.mask
    tensors: dict[str, dict[str, Tensor]] = {"mask": dict(mask)}
    tensors |= {point: mask.apply(ticket.at(point).tensors()) for point in points}
    names = [f"{name}.{SUFFIX[format]}" for name in tensors]
    with ExitStack() as stack:  # all or nothing; the README is replaced first, as exits run in reverse order
        for name, found in zip(names, tensors.values(), strict=True):
            path = stack.enter_context(replacing(folder / name))
            if format == "torch":
                torch.save(found, path)
            else:
                save_file(found, path, {"run": ticket.run.name, "mask": mask.digest})
        stack.enter_context(replacing(folder / README)).write_text(readme(ticket, points, format), encoding="utf-8")
    return [*names, README]


def readme(ticket: Weights, points: Sequence[str], format: str) -> str:
    """Return the text: what the files are, and code that loads them and keeps pruned weights at zero."""
    mask, (round, control, copy) = ticket.mask, identity(ticket.row)
    what = f"Round {round}" + (f", control {control} {copy}," if control else "")
    files = {name: f"{name}.{SUFFIX[format]}" for name in ("mask", *points)}
    rows = "\n".join(f"| `{file}` | {ABOUT[name]} |" for name, file in files.items())
    module, _, factory = ticket.model["_target_"].rpartition(".")
    data = ticket.run.config["data"]
    options = {"shape": tuple(data["shape"]), "classes": data["classes"]}
    options |= {name: value for name, value in ticket.model.items() if name not in OWN_OPTIONS}
    call = f"{factory}({', '.join(f'{name}={value!r}' for name, value in options.items())})"
    removed = ", ".join(ticket.row.get("removed_units", ()))
    return f"""\
# {what} of {ticket.run.name}

{mask.kept:,} of {mask.size:,} prunable weights are kept ({mask.density:.2%}). Mask digest: `{mask.digest}`.
{removed and f"Removed units, whose weights are zero, so that they add nothing: {removed}." + chr(10)}
| file | what |
|---|---|
{rows}

In this folder:

```python
{IMPORT[format]}
from {module} import {factory}

network = {call}
network.load_state_dict({LOAD[format].format(files[points[0]])})
mask = {LOAD[format].format(files["mask"])}
```

Any other module whose parameters have the same names and shapes will do. To train it with pruned weights at zero:

```python
import lottery
import torch

optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
optimizer = lottery.MaskedOptimizer(optimizer, network, mask)
```
"""
