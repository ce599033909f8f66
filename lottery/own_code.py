"""Digests of the user's own code for stage keys, so that no result is reused after an edit of the code behind it.

The user's own code is each module that a `_target_` names, unless it is lottery's, and all modules that it imports,
except the standard library and site-packages. Imports are found by parsing the sources, not by running them.
"""

from __future__ import annotations

import ast
import hashlib
import linecache
import logging
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache, lru_cache
from importlib.machinery import ModuleSpec
from importlib.util import resolve_name
from pathlib import Path
from typing import Any

from lottery.parts import has_target, locate

LOG = logging.getLogger("lottery")

INSTALLED = {"site-packages", "dist-packages"}
STANDARD = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")}
IMPORTERS = {"import_module", "__import__"}  # functions that import a module by its name

# Module -> its loader, and the digest of its file when first read: this process runs no later edit of a loaded module.
_loaded: dict[str, tuple[object, str]] = {}


def own_code(node: Any) -> dict[str, str]:
    """Map each own module that the `_target_`s in a node reach to its sha256. Raises ConfigError if an import fails."""
    found: dict[str, str] = {}
    for target in sorted(set(_targets(node))):
        module = target.rpartition(".")[0]
        if not is_lotterys(module):
            part = locate(target, "own code")
            found |= _reached(module, getattr(part, "__module__", None) or module)
            if module not in found and module not in sys.builtin_module_names:
                found[target] = _typed_in(part, target)
    return found


def unrun_code(target: str) -> dict[str, str]:
    """Return `own_code` of one `_target_` without importing anything; {} also where it belongs to a library."""
    module = target.rpartition(".")[0]
    file = file_of(module) if module and not is_lotterys(module) else None
    return _reached(module, module) if file is not None and _is_own(file) else {}


def unrun_parts(node: Any) -> dict[str, str] | None:
    """Return `own_code` of a node without importing anything; None where a `_target_`'s module has no file to read."""
    found: dict[str, str] = {}
    for target in set(_targets(node)):
        module = target.rpartition(".")[0]
        if not is_lotterys(module) and file_of(module) is None:
            return None
        found |= unrun_code(target)
    return found


def code_inputs(node: Any) -> dict[str, Any]:
    """Return `own_code` as an entry of a stage's inputs; {} without own code, so that other keys do not change."""
    code = own_code(node)
    return {"own code": code} if code else {}


def file_of(module: str) -> Path | None:
    """Return the file of a module; None where there is no such module, or it has no file."""
    spec = _spec(module)
    return None if spec is None else _file(spec, module)


def folder_of(module: str) -> Path | None:
    """Return the folder that must be on Python's path for a module to be found; None where it is installed."""
    spec = _spec(_top(module))
    if spec is None or (places := [*(spec.submodule_search_locations or []), spec.origin])[0] is None:
        return None
    place = Path(str(places[0])).resolve()
    return place.parent if _is_own(place) else None


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if has_target(node):
            yield node["_target_"]
        node = list(node.values())
    if isinstance(node, list):
        for value in node:
            yield from _targets(value)


def _reached(module: str, defining: str) -> dict[str, str]:
    """Map `module`, the module `defining` the named part, and all that they import to digests of their sources."""
    found: dict[str, str] = {}
    seen, waiting = set[str](), [module, defining]
    while waiting:
        name = waiting.pop()
        if name in seen or is_lotterys(name):
            continue
        seen.add(name)
        waiting.append(name.rpartition(".")[0] or name)  # the packages around a module are imported with it
        spec = _spec(name)
        file = None if spec is None else _file(spec, name)
        # All modules of the package that the `_target_` names are the user's, wherever it is installed.
        if spec is None or file is None or not (_top(name) == _top(module) or _is_own(file)):
            continue
        source = file.read_bytes()
        found[name] = _digest(name, source)
        if file.suffix == ".py":
            waiting += _imports(source, name if spec.submodule_search_locations is not None else spec.parent or "")
    return found


def _digest(name: str, source: bytes) -> str:
    """Return the sha256 of a module's source as this process runs it: of a loaded module, as first read."""
    digest = hashlib.sha256(source).hexdigest()
    if name not in sys.modules:
        return digest
    loader = getattr(sys.modules[name], "__spec__", None) or sys.modules[name]  # a reload gives another one
    if name not in _loaded or _loaded[name][0] is not loader:
        _loaded[name] = loader, digest
    first = _loaded[name][1]
    if first != digest:
        _warn(f"{name} was edited after it was imported: this process still runs it as it was; restart it")
    return first


@lru_cache(maxsize=4096)
def _imports(source: bytes, package: str) -> tuple[str, ...]:
    """Return the absolute names that a source may import. Some of them may not be modules."""
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError):  # it may be for another version of Python, and never be imported
        return ()
    found: list[str] = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _absolute("." * node.level + (node.module or ""), package)
            found += [base, *(f"{base}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Call) and _name(node.func) in IMPORTERS and node.args:
            found += [_absolute(text, package) for text in _texts(node.args[0])]
        elif isinstance(node, ast.Assign | ast.AugAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if "__all__" in map(_name, targets):  # `from package import *` imports these
                found += [f"{package}.{text}" for text in _texts(node.value)]
    return tuple(dict.fromkeys(name for name in found if name))


def _name(node: ast.expr) -> str:
    return getattr(node, "id", "") or getattr(node, "attr", "")


def _texts(node: ast.expr) -> list[str]:
    return [part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)]


def _absolute(name: str, package: str) -> str:
    with suppress(ImportError, ValueError):
        return resolve_name(name, package or None)
    return ""


def _spec(name: str) -> ModuleSpec | None:
    """Find the spec of a module without importing its packages, which importlib.util.find_spec would do."""
    if name in sys.modules:
        return getattr(sys.modules[name], "__spec__", None) or ModuleSpec(name, None)
    parent, path = name.rpartition(".")[0], None
    if parent:
        above = _spec(parent)
        if above is None or above.submodule_search_locations is None:
            return None
        path = list(getattr(above.submodule_search_locations, "_path", above.submodule_search_locations))
    for finder in sys.meta_path:
        spec = finder.find_spec(name, path) if hasattr(finder, "find_spec") else None
        if spec is not None:
            return spec
    return None


def _file(spec: ModuleSpec, name: str) -> Path | None:
    origin = spec.origin if spec.has_location else getattr(sys.modules.get(name), "__file__", None)
    if origin is None:
        return None
    path = Path(origin)
    return next((each for each in (path, *path.parents) if each.is_file()), None)  # the archive of a zipped module


def _is_own(file: Path) -> bool:
    file = file.resolve()
    return INSTALLED.isdisjoint(file.parts) and not any(file.is_relative_to(folder) for folder in STANDARD)


def is_lotterys(module: str) -> bool:
    """Whether a module of this name is part of lottery."""
    return _top(module) == "lottery"


def _top(module: str) -> str:
    return module.partition(".")[0]


def _typed_in(part: Any, target: str) -> str:
    """Return the sha256 of the notebook cell that defines a function or class; "" where it is unknown."""
    _warn(f"{target} is defined in no file: edits of what it uses are not noticed, and it needs a module to be safe")
    codes = (getattr(each, "__code__", None) for each in (part, *getattr(part, "__dict__", {}).values()))
    lines = next((linecache.getlines(code.co_filename) for code in codes if code is not None), [])
    return hashlib.sha256("".join(lines).encode()).hexdigest() if lines else ""


@cache
def _warn(warning: str) -> None:
    """Log a warning, once in a process."""
    LOG.warning(warning)
