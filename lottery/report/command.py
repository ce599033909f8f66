"""`python -m lottery report RUN... -o report.html`: write run folders as one file to read and to send. Torch-free."""

from __future__ import annotations

from pathlib import Path

from lottery.arguments import CommandParser
from lottery.errors import ConfigError
from lottery.files import write_atomic
from lottery.record.folders import Paths
from lottery.report.bundle import plotly_bundle
from lottery.report.markup import join, tag
from lottery.report.page import page
from lottery.report.study import grouped, read_studies

ABOUT = """\
Write the results of run folders into one HTML file that needs neither network nor server: interactive charts, tables
that sort, the masks layer by layer, configuration differences, and how to run each study again. RUN is a run folder,
a folder with run folders in it, or a pattern; nothing in them is changed.

The charts need plotly (pip install plotly); without it the file has static figures in their place, and says so."""


def report(args: list[str]) -> int:
    """Run the command. Raises LotteryError where no run folder with a round is found, ConfigError for wrong options."""
    parser = CommandParser("report", ABOUT)
    parser.add_argument("runs", nargs="*", metavar="RUN", default=["runs"], help="default: runs")
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("report.html"), metavar="FILE", help="default: report.html"
    )
    parser.add_argument("--static", action="store_true", help="static figures alone: a smaller file")
    asked = parser.parse_args(args)
    if asked.out.is_dir():
        raise ConfigError.of("--out", str(asked.out), "a file, such as report.html")
    size = write_report(asked.runs, asked.out, interactive=not asked.static)
    print(f"{asked.out} ({size / 1e6:.1f} MB)")
    return 0


def write_report(runs: Paths, out: Path, *, interactive: bool = True) -> int:
    """Write the report of the run folders at or below `runs` to `out`, whole or not at all; return its size in bytes.

    interactive: embed Plotly (2 MB) where it is installed; else the figures are static.
    Raises LotteryError where there is no run folder, none has finished a round, or `out` cannot be written.
    """
    studies = read_studies(runs)
    bundle = plotly_bundle() if interactive else None
    if interactive:
        again, then = "pip install plotly", ", and write the report again for interactive charts."
    else:
        again = f"python -m lottery report {studies[0].path if len(studies) == 1 else 'RUN ...'}"
        then = " writes a page with interactive charts."
    note = join(["The figures are static. ", tag("code", again), then])
    text = page(grouped(studies), studies, bundle, note).encode()
    write_atomic(out, text)
    return len(text)
