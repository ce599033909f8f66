"""The `evaluate` stage: figures that were measured once, kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lottery.files import write_json
from lottery.stages.lease import Lease
from lottery.stages.store import Store


def evaluated(
    store: Store, inputs: dict[str, Any], compute: Callable[[], dict[str, Any]], **facts: str
) -> tuple[dict[str, Any], str]:
    """The figures of `compute` for these inputs, from the store or measured now; and the stage's key."""
    stage = store.stage("evaluate", inputs)

    def measure(lease: Lease) -> None:
        figures = compute()
        lease.check()
        write_json(stage.folder / "result.json", figures)
        stage.finish()

    store.finished(stage, measure, **facts)
    return stage.result(), stage.key
