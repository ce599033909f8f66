"""Lottery-ticket studies: a study is a plain Python program over cached stages.

The public Python API. Each name is imported when it is first used: `import lottery` needs neither torch nor Hydra.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "run": "lottery.runner",
    "load_run": "lottery.record.run",
    "load_runs": "lottery.record.table",
    "Run": "lottery.record.run",
    "Mask": "lottery.ticket",
    "Ticket": "lottery.ticket",
    "MaskedOptimizer": "lottery.masked_optimizer",
    "lightning": "lottery.lightning",
    "LotteryError": "lottery.errors",
    "ConfigError": "lottery.errors",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'lottery' has no attribute {name!r}")
    module = import_module(_PUBLIC[name])
    return module if module.__name__ == f"lottery.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
