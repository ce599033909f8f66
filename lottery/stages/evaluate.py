"""The `evaluate` stage: figures that were measured once, kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lottery.files import write_json
from lottery.stages.lease import Lease
from lottery.stages.store import Store, recorded_environment


@dataclass(frozen=True)
class Evaluated:
    """Figures, the key of their stage, and the environment that they were measured in unless that was just now."""

    figures: dict[str, Any]
    key: str
    environment: dict[str, str] | None


def evaluated(store: Store, inputs: dict[str, Any], compute: Callable[[], dict[str, Any]], **facts: str) -> Evaluated:
    """The figures of `compute` for these inputs, from the store or measured now."""
    stage = store.stage("evaluate", inputs)

    def measure(lease: Lease) -> None:
        figures = compute()
        lease.check()
        write_json(stage.folder / "result.json", figures)
        stage.finish()

    cached = store.finished(stage, measure, **facts)
    return Evaluated(stage.result(), stage.key, recorded_environment(stage.folder) if cached else None)
