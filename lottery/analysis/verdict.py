"""Say in one line down to which density tickets and controls match the dense network. Imports neither torch nor pandas.

A finished study is answered in a moment. So the rule of `lottery.analysis.statistics.matching`, with a margin of one
point, stands here for one study, whose differences have no interval.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from lottery.methods.shows import shows

MARGIN = 0.01  # of test accuracy: about what 1,000 to 10,000 test images leave uncertain
ROUNDING = 1e-9  # a difference of accuracies this close to a bound counts as equal to it
NAMED = 3  # densities that a verdict lists


@dataclass(frozen=True)
class Level:
    """A round of the tickets (`control` None) or of a control: its mean over n studies, and over copies in a study."""

    control: str | None
    density: float
    difference: float  # test accuracy less that of the dense network, a fraction
    n: int = 1
    low: float | None = None  # the interval of `difference`
    high: float | None = None

    @property
    def matching(self) -> bool:
        return self.difference >= -MARGIN - ROUNDING


def network(row: Mapping[str, Any]) -> str:
    """Return what a row of any table is called: dense, ticket, or its control."""
    return str(row["control"]) if isinstance(row["control"], str) else "ticket" if row["round"] else "dense"


def levels(rows: Iterable[Mapping[str, Any]], method: str) -> list[Level]:
    """Return the rounds of one study after its dense network; [] where it has no test accuracy, or no single ladder.

    method: its `_target_`.
    """
    found: dict[tuple[str | None, int], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["test_accuracy"] is None:
            return []
        found[row["control"], row["round"]].append(row)
    dense = found.pop((None, 0), [])
    if not (dense and dense[0]["density"] == 1 and shows(method).ladder):
        return []
    reference = dense[0]["test_accuracy"]
    return [
        Level(control, group[0]["density"], fmean(row["test_accuracy"] for row in group) - reference)
        for (control, _), group in found.items()
    ]


def verdict(found: Sequence[Level]) -> str:
    """Return one line on these levels; "" without a ticket."""
    ladders: dict[str | None, list[Level]] = defaultdict(list)
    for level in sorted(found, key=lambda each: -each.density):
        ladders[level.control].append(level)
    tickets = ladders.pop(None, [])
    if not tickets:
        return ""
    matching = [level for level in tickets if level.matching]
    if matching:
        last = matching[-1]
        text = f"within 1 point of the dense network down to {_percent(last)} %{_gaps(tickets, last)}"
    else:
        last = max(tickets, key=lambda each: each.difference)
        below = f"{-100 * last.difference:.1f} points below at {_percent(last)} %"
        text = f"no ticket is within 1 point of the dense network, the nearest is {below}"
    alike: dict[str, list[str]] = defaultdict(list)
    for name, ladder in ladders.items():
        alike[_reach(ladder)].append(str(name))
    return "; ".join([f"{text} ({_interval(last)})", *(f"{', '.join(names)} {how}" for how, names in alike.items())])


def _reach(ladder: Sequence[Level]) -> str:
    matching = [level for level in ladder if level.matching]
    return f"down to {_percent(matching[-1])} %" if matching else "at no density"


def _gaps(ladder: Sequence[Level], last: Level) -> str:
    """Name the denser levels that do not match."""
    gaps = [level for level in ladder if level.density > last.density and not level.matching]
    if len(gaps) > NAMED:
        return f", but not at {len(gaps)} denser levels"
    return f", but not at {', '.join(map(_percent, gaps))} %" if gaps else ""


def _interval(level: Level) -> str:
    if level.n < 2 or level.low is None or level.high is None:
        return f"n = {level.n}: no interval"
    points = f"{100 * level.difference:+.1f} points, 95 % interval {100 * level.low:+.1f} … {100 * level.high:+.1f}"
    return f"n = {level.n}: {points}"


def _percent(level: Level) -> str:
    return f"{100 * level.density:.3g}"
