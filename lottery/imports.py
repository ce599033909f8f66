"""Make a user's own modules importable, and imports cheaper: without garbage collection, and without the parts of a
package that nothing asks for.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any

OWN_FOLDERS: list[str] = []  # where a user's own modules are looked for, besides Python's own path


def importable(*folders: str | Path) -> None:
    """Look for modules in these folders too, after all others. Processes that this one starts do so as well."""
    for folder in map(os.path.abspath, folders):
        if folder not in OWN_FOLDERS:
            OWN_FOLDERS.append(folder)
        if folder not in map(os.path.abspath, sys.path):
            sys.path.append(folder)


@contextmanager
def uncollected() -> Iterator[None]:
    """Disable garbage collection while modules are imported, and exclude them from it afterwards; saves about 1 s."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()


class Deferred(ModuleType):
    """A module whose code runs only when something is asked of it that it does not have yet."""

    def __getattr__(self, name: str) -> Any:
        if name == "__path__":  # each import looks for it; only packages have it, from the beginning
            raise AttributeError(name)
        load(self)
        return getattr(self, name)


def load(module: ModuleType) -> None:
    """Run the code of a deferred module, unless it has run."""
    if isinstance(module, Deferred):
        module.__class__ = ModuleType  # type: ignore[assignment]
        module.__loader__.exec_module(module)  # type: ignore[union-attr]


def deferred(name: str, **known: Any) -> Any:
    """Return a package or module, which is not imported yet, with its code deferred until more than `known` is asked.

    Submodules can be imported meanwhile. Raises ImportError where there is no such module.
    """
    if (spec := find_spec(name)) is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    module = module_from_spec(spec)
    module.__class__ = Deferred
    vars(module).update(known)
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)
    return module
