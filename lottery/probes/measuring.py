"""Call a study's probes on a round. A probe that fails loses its own figures, and nothing else."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

from lottery.errors import Interrupted, cause
from lottery.lease import LeaseLost
from lottery.stages.bench import Bench
from lottery.stages.round import Round

LOG = logging.getLogger("lottery")


class Measuring:
    """The probes of a study. Remembers which figures each has given, and which warnings were logged."""

    def __init__(self, probes: Mapping[str, Callable[..., Mapping[str, Any]]]) -> None:
        self.probes = probes
        self._given: dict[str, dict[str, None]] = {}  # probe: the keys that it has given so far
        self._warned: set[str] = set()

    def __call__(self, round: Round, previous: Round | None, bench: Bench) -> dict[str, Any]:
        """Return `probe/FIGURE` of every probe. A failed probe's earlier figures, or else its name, are null.

        Raises Interrupted on a signal, LeaseLost where another process has taken a stage over, and nothing else.
        """
        row: dict[str, Any] = {}
        for name, probe in self.probes.items():
            try:
                found = probe(round, previous, bench.by(bench.config.probes[name]))
                figures = {f"probe/{key}": finite(value) for key, value in found.items()}
                json.dumps(figures)
                self._given.setdefault(name, {}).update(dict.fromkeys(figures))
            except (Interrupted, LeaseLost):
                raise
            except Exception as error:  # a GPU out of memory, too
                self._warn(f"probes.{name} failed, its figures are null: {cause(error)}", error)
                figures = {**self._given.get(name, {f"probe/{name}": None})}
            row |= figures
        return row

    def _warn(self, text: str, error: Exception) -> None:
        """Log each warning once: a line on the terminal, and the traceback in study.log."""
        if text not in self._warned:
            self._warned.add(text)
            LOG.warning(text, exc_info=error)


def finite(figure: Any) -> Any:
    """Return a probe's figure as JSON has it: infinite and undefined numbers become null."""
    if isinstance(figure, dict):
        return {name: finite(value) for name, value in figure.items()}
    if isinstance(figure, list):
        return [finite(value) for value in figure]
    return None if isinstance(figure, float) and not math.isfinite(figure) else figure
