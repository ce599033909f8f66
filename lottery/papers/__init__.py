"""Papers as sweeps: what to run, at which scale, and the figures that come of it (`python -m lottery paper`)."""

from lottery.papers.paper import Paper
from lottery.papers.reading import load, names
from lottery.papers.running import ensure
from lottery.papers.studies import table

__all__ = ["Paper", "ensure", "load", "names", "table"]
