"""`python -m lottery paper NAME --scale SCALE`: run the missing studies, then draw. Torch-free until then."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill

from lottery.arguments import CommandParser, unknown_word
from lottery.errors import ConfigError, nearest
from lottery.papers.drawing import Undrawn, draw
from lottery.papers.paper import Paper, merged
from lottery.papers.reading import load, names
from lottery.papers.running import LAUNCHERS, check_done, run_missing
from lottery.papers.studies import PlannedStudy, studies, table_of

ABOUT = """\
Run the studies of a paper that are missing, then draw its figures: into <paths.runs>/papers/NAME/SCALE/figures, beside
a table, summary.csv. The same command continues what was interrupted, and runs nothing twice.

  smoke  does it work: seconds to a minute or two, embedded data       small  real data, minutes to hours on a CPU
  paper  the paper's own grid; the cost is stated"""


def paper(args: list[str]) -> int:
    """Run the command. Raises ConfigError for wrong input, before anything is written; LotteryError for a failure."""
    parser = CommandParser("paper", f"{ABOUT}\n\n{listing()}")
    parser.add_argument("name", nargs="?", metavar="NAME", help="a paper, or the path of a sweep.yaml of your own")
    parser.add_argument("--scale", metavar="SCALE", help="smoke, small or paper")
    parser.add_argument("--launcher", metavar="NAME", help=f"{', '.join(LAUNCHERS)}; default: what suits the machine")
    parser.add_argument("--dry-run", action="store_true", help="what would be run, what is shared, how long it takes")
    parser.add_argument("--only", choices=["figures"], help="draw from what is there, run nothing")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for every study; hydra.launcher.KEY=VALUE")
    asked = parser.parse_intermixed_args(args)
    if asked.name is None:
        parser.print_help()
        return 0
    found = load(asked.name)
    if asked.scale is None:
        if asked.overrides or asked.launcher or asked.dry_run or asked.only:
            raise ConfigError(f"--scale: is missing, expected one of {', '.join(found.scales)}")
        print(description(found))
        return 0
    if asked.launcher is not None and asked.launcher not in LAUNCHERS:
        hint = nearest(asked.launcher, LAUNCHERS)
        raise ConfigError.of("--launcher", asked.launcher, f"one of {', '.join(LAUNCHERS)}{hint}")
    own, settings = split(asked.overrides)
    given = studies(found, asked.scale, own)
    if asked.dry_run:
        from lottery.papers.plan import dry_run

        return dry_run(found, asked.scale, given, asked.launcher, settings)
    if not asked.only:
        status = run(given, asked.launcher, settings)
        if status >= 128 or not any(study.begun for study in given):
            return status
    return draw_figures(found, asked.scale, given)


def split(overrides: list[str]) -> tuple[list[str], list[str]]:
    """Separate the overrides of studies from those of the launcher. Raises ConfigError for any other argument."""
    from lottery.compose import is_hydra

    for override in overrides:
        if "=" not in override and not override.startswith("~"):
            raise ConfigError(unknown_word(override, ()))
        if is_hydra(override) and not override.lstrip("+~").startswith("hydra.launcher."):
            raise ConfigError(f"{override}: only hydra.launcher.KEY=VALUE is taken here; the launcher is --launcher")
    return merged(o for o in overrides if not is_hydra(o)), [o for o in overrides if is_hydra(o)]


def run(given: list[PlannedStudy], launcher: str | None, settings: list[str]) -> int:
    """Run the studies that are not done, and return the exit status."""
    from lottery.signals import stop_on_signals

    missing = [study for study in given if not study.done]
    print(f"{len(given)} studies, {len(given) - len(missing)} of them done", flush=True)
    if not missing:
        return 0
    with stop_on_signals() as stop:
        return run_missing(missing, launcher, settings, stop)


def draw_figures(found: Paper, scale: str, given: list[PlannedStudy]) -> int:
    """Draw the figures of the rounds that exist, and print their paths. Raises LotteryError if a study is not done."""
    folder = Path(given[0].config.paths.runs) / "papers" / found.name / scale / "figures"
    try:
        print(*draw(found, table_of(found, given, scale), folder, scale), sep="\n")
    except Undrawn as error:
        print(*error.drawn, sep="\n")
        raise
    check_done(given)
    return 0


# -- what there is ----------------------------------------------------------------------------------------------------


def listing() -> str:
    """Return a list of the papers, a line each."""
    width = max(map(len, names()), default=0)
    lines = ["Papers (python -m lottery paper NAME says more):"]
    for name in names():
        try:
            words = load(name).title
        except ConfigError as error:  # a damaged paper does not hide the others
            words = str(error)
        lines.append(f"  {name:<{width}}  {words}")
    return "\n".join(lines)


def description(found: Paper) -> str:
    """Describe one paper: title, source, contents, the scales with their cost, and the figures."""
    lines = [found.title, found.cited, "", *(fill(part, 110) for part in found.about.splitlines()), ""]
    for name, scale in found.scales.items():
        lines.append(f"  python -m lottery paper {found.name} --scale {name:<5}  # {scale.cost}")
    lines += ["", f"Figures: {', '.join(figure.name for figure in found.figures)}", f"The grid: {found.path}"]
    return "\n".join(lines)
