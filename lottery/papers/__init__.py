"""Papers as sweeps: what to run, at which scale, and the figures drawn from it (`python -m lottery paper`)."""

from lottery.papers.drawing import draw
from lottery.papers.paper import Paper
from lottery.papers.reading import load, names
from lottery.papers.running import ensure
from lottery.papers.studies import jobs, table

__all__ = ["Paper", "draw", "ensure", "jobs", "load", "names", "table"]
