"""Read the command line: options, overrides, and the help. Torch-free."""

from __future__ import annotations

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from textwrap import shorten, wrap
from typing import NoReturn

from lottery.errors import ConfigError, nearest

USAGE = """\
python -m lottery +exp=NAME [group=option ...] [key=value ...]      run a study, or continue it
python -m lottery -m +exp=NAME seed=0,1,2 [...]                      run a sweep: a study for each combination
python -m lottery --config RUN_FOLDER/config.yaml [key=value ...]    run a study again from its run folder

  --config-dir DIR   add your own configs: DIR/exp/NAME.yaml, DIR/model/NAME.yaml, ...
  --cfg              print the whole configuration, every key and its value, and stop
  --version          print the version
  --help             print this text

Exit status: 0 done; 1 the run failed; 2 the configuration is wrong, nothing was written; 130, 143 interrupted, and
the same command continues."""

FLAGS = {"-h": "help", "--help": "help", "--version": "version", "--cfg": "show", "-m": "sweep", "--multirun": "sweep"}
VALUED = {"--config": "config", "--config-dir": "config_dir"}


class CommandParser(ArgumentParser):
    """A parser of a command's arguments (`python -m lottery store ...`) that raises ConfigError for wrong ones."""

    def __init__(self, command: str, about: str) -> None:
        prog = f"python -m lottery {command}"
        super().__init__(prog, description=about, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog.rpartition('lottery ')[2]}: {message}; --help says more")


@dataclass
class Arguments:
    """The parsed command line of a study or a sweep."""

    overrides: list[str] = field(default_factory=list)
    config: str | None = None
    config_dir: str | None = None
    help: bool = False
    version: bool = False
    show: bool = False
    sweep: bool = False

    @classmethod
    def parse(cls, args: Sequence[str], commands: Collection[str] = ()) -> Arguments:
        """Parse the arguments. Raises ConfigError for unknown, incomplete or contradictory ones."""
        asked, rest = cls(), iter(args)
        for arg in rest:
            name, given, value = arg.partition("=")
            if arg in FLAGS:
                setattr(asked, FLAGS[arg], True)
            elif name in VALUED:
                value = value if given else next(rest, "")
                if not value or value.startswith("-"):
                    raise ConfigError(f"{name}: expected {'a file' if name == '--config' else 'a folder'} after it")
                setattr(asked, VALUED[name], value)
            elif arg.startswith("-"):
                raise ConfigError(f"{name}: no such option{nearest(name, [*FLAGS, *VALUED])}; --help lists them")
            elif not given and not arg.startswith("~"):
                raise ConfigError(unknown_word(arg, commands))
            else:
                asked.overrides.append(arg)
        if asked.config and (asked.sweep or asked.config_dir):
            raise ConfigError("--config: a saved configuration is complete, it goes with neither -m nor --config-dir")
        if asked.show and asked.sweep:
            raise ConfigError("--cfg: prints the configuration of one study, without -m")
        return asked


def unknown_word(word: str, commands: Collection[str]) -> str:
    """Return the error message for a word that is neither a command nor an override."""
    from lottery.compose import groups

    experiments = groups()["exp"]
    if word in experiments:
        return f"{word}: an experiment is run as +exp={word}"
    what = f"a command ({', '.join(commands)}) or key=value" if commands else "key=value, group=option or +exp=NAME"
    return f"{word}: expected {what}{nearest(word, [*commands, *(f'+exp={name}' for name in experiments)])}"


def help_text(config_dir: str | None, commands: Collection[str]) -> str:
    """Return the usage, the experiments with a short description, and every other group with its options."""
    from lottery.compose import groups

    options = groups(config_dir)
    lines = [USAGE]
    if commands:
        lines += ["", f"Commands (python -m lottery COMMAND --help): {', '.join(commands)}"]
    lines += ["", "Experiments (+exp=NAME):", *experiment_lines(options.pop("exp"), config_dir)]
    lines += ["", "Groups and their options (GROUP=OPTION):"]
    for group, names in options.items():
        lines += wrap(", ".join(names), 118, initial_indent=f"  {group:<11} ", subsequent_indent=" " * 14)
    return "\n".join(lines)


def experiment_lines(names: Sequence[str], config_dir: str | None) -> list[str]:
    """Return a line for each experiment: its name, and the first words of the comment at the top of its file."""
    from lottery.compose import config_files

    width, lines = max(map(len, names)), []
    for name in names:
        text = config_files(config_dir, f"exp/{name}.yaml")[0].read_text(encoding="utf-8")
        comments = [line for line in text.splitlines() if line[:1] == "#" and "@package" not in line]
        about = "".join(comments[:1]).lstrip("# ").partition(": ")[0]
        lines.append(f"  {name:<{width}}  {shorten(about, 110 - width, placeholder=' ...')}".rstrip())
    return lines
