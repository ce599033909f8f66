"""`python -m lottery paper NAME --scale SCALE`: run what is missing, then draw the figures. Torch-free until then."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill

from lottery.arguments import CommandParser, unknown_word
from lottery.errors import ConfigError, nearest
from lottery.papers.drawing import Undrawn
from lottery.papers.paper import Paper, merged
from lottery.papers.reading import load, names
from lottery.papers.running import LAUNCHERS, check_done, run_missing
from lottery.papers.studies import Study, studies, table_of

ABOUT = """\
Run the studies of a paper that are missing, then draw its figures: into <paths.runs>/papers/NAME/SCALE/figures, beside
a table, summary.csv. The same command continues what was interrupted, and runs nothing twice.

  smoke  does it work: seconds to a minute or two, embedded data       small  real data, minutes to hours on a CPU
  paper  the paper's own grid; the cost is stated"""


def paper(args: list[str]) -> int:
    """The command. Raises ConfigError, before anything is written, for what is wrong; LotteryError for what fails."""
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
        print(described(found))
        return 0
    if asked.launcher is not None and asked.launcher not in LAUNCHERS:
        raise ConfigError.of(
            "--launcher", asked.launcher, f"one of {', '.join(LAUNCHERS)}{nearest(asked.launcher, LAUNCHERS)}"
        )
    own, settings = split(asked.overrides)
    given = studies(found, asked.scale, own)
    if asked.dry_run:
        from lottery.papers.plan import dry_run

        return dry_run(found, asked.scale, given, asked.launcher, settings)
    if not asked.only:
        status = run(given, asked.launcher, settings)
        if status >= 128 or not any(study.begun for study in given):
            return status
    return drawn(found, asked.scale, given)


def split(overrides: list[str]) -> tuple[list[str], list[str]]:
    """The overrides of studies, and those of the launcher. Raises ConfigError for what is neither."""
    from lottery.compose import is_hydra

    for override in overrides:
        if "=" not in override and not override.startswith("~"):
            raise ConfigError(unknown_word(override, ()))
        if is_hydra(override) and not override.lstrip("+~").startswith("hydra.launcher."):
            raise ConfigError(f"{override}: only hydra.launcher.KEY=VALUE is taken here; the launcher is --launcher")
    return merged(o for o in overrides if not is_hydra(o)), [o for o in overrides if is_hydra(o)]


def run(given: list[Study], launcher: str | None, settings: list[str]) -> int:
    """Run those that are not done."""
    from lottery.run import stop_on_signals

    missing = [study for study in given if not study.done]
    print(f"{len(given)} studies, {len(given) - len(missing)} of them done", flush=True)
    if not missing:
        return 0
    with stop_on_signals() as stop:
        return run_missing(missing, launcher, settings, stop)


def drawn(found: Paper, scale: str, given: list[Study]) -> int:
    """Draw the figures of what is there, and print their paths."""
    folder = Path(given[0].config.paths.runs) / "papers" / found.name / scale / "figures"
    try:
        paths = found.draw(table_of(found, given, scale), folder, scale)
    except Undrawn as error:
        for path in error.drawn:
            print(path)
        raise
    for path in paths:
        print(path)
    check_done(given)
    return 0


# -- what there is ----------------------------------------------------------------------------------------------------


def listing() -> str:
    """The papers, a line each."""
    width = max(map(len, names()), default=0)
    lines = []
    for name in names():
        try:
            lines.append(f"  {name:<{width}}  {load(name).title}")
        except ConfigError as error:  # one that is damaged does not hide the others
            lines.append(f"  {name:<{width}}  {error}")
    return "\n".join(["Papers (python -m lottery paper NAME says more):", *lines])


def described(found: Paper) -> str:
    """One paper: what it is, what is run, at which scales."""
    lines = [found.title, found.cited, "", *(fill(part, 110) for part in found.about.splitlines()), ""]
    for name, scale in found.scales.items():
        lines.append(f"  python -m lottery paper {found.name} --scale {name:<5}  # {scale.cost}")
    lines += ["", f"Figures: {', '.join(figure.name for figure in found.figures)}", f"The grid: {found.path}"]
    return "\n".join(lines)
