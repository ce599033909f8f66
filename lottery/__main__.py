"""`python -m lottery +exp=NAME [group=option] [key=value]`: read the arguments, and do what they say."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from lottery import __version__
from lottery.errors import ConfigError, nearest
from lottery.run import reported, run, stop_on_signals
from lottery.training.signals import StopFlag

# Words before the overrides: word -> "module:function", a function of the other arguments that returns an exit status.
COMMANDS: dict[str, str] = {}

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


def main(argv: Sequence[str] | None = None) -> int:
    """Run, and return the exit status of contract 4.1: 0, 1, 2, or 128 + signal."""
    args = list(sys.argv[1:] if argv is None else argv)
    with stop_on_signals() as stop:
        return reported(lambda: dispatch(args, stop))


def dispatch(args: list[str], stop: StopFlag) -> int:
    """A command, the help, the version, the printed configuration, a sweep, or one study."""
    if args and args[0] in COMMANDS:
        module, _, function = COMMANDS[args[0]].partition(":")
        return getattr(import_module(module), function)(args[1:])
    asked = Arguments.parse(args)
    if asked.help or not args:
        return show(help_text(asked.config_dir))
    if asked.version:
        return show(f"lottery {__version__}")
    if asked.sweep:
        from lottery.sweep import sweep

        return sweep(asked.overrides, asked.config_dir, stop)
    from lottery.compose import composed, loaded

    cfg = loaded(Path(asked.config), asked.overrides) if asked.config else composed(asked.overrides, asked.config_dir)
    if asked.show:
        from omegaconf import OmegaConf

        return show(OmegaConf.to_yaml(cfg, resolve=True).rstrip())
    return run(cfg, stop)


def show(text: str) -> int:
    print(text)
    return 0


@dataclass
class Arguments:
    """The command line, read."""

    overrides: list[str] = field(default_factory=list)
    config: str | None = None
    config_dir: str | None = None
    help: bool = False
    version: bool = False
    show: bool = False
    sweep: bool = False

    @classmethod
    def parse(cls, args: Sequence[str]) -> Arguments:
        """Raises ConfigError for an unknown option, one without its value, and a word that is no override."""
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
                raise ConfigError(unknown_word(arg))
            else:
                asked.overrides.append(arg)
        if asked.config and (asked.sweep or asked.config_dir):
            raise ConfigError("--config: a saved configuration is complete, it goes with neither -m nor --config-dir")
        return asked


def unknown_word(word: str) -> str:
    """A word that is neither a command nor an override."""
    from lottery.compose import groups

    if word in groups()["exp"]:
        return f"{word}: an experiment is run as +exp={word}"
    what = f"a command ({', '.join(COMMANDS)}) or key=value" if COMMANDS else "key=value, group=option or +exp=NAME"
    return f"{word}: expected {what}{nearest(word, [*COMMANDS, *(f'+exp={name}' for name in groups()['exp'])])}"


def help_text(config_dir: str | None) -> str:
    """The usage, the experiments with what they are, and every other group with its options."""
    from textwrap import shorten, wrap

    from lottery.compose import found_in, groups

    options = groups(config_dir)
    experiments = options.pop("exp")
    width = max(map(len, experiments))
    lines = [USAGE, "", "Experiments (+exp=NAME):"]
    for name in experiments:
        comments = [line for line in found_in("exp", name, config_dir).read_text().splitlines() if line[:1] == "#"]
        about = next((line for line in comments if "@package" not in line), "").lstrip("# ").partition(": ")[0]
        lines.append(f"  {name:<{width}}  {shorten(about, 110 - width, placeholder=' ...')}".rstrip())
    lines += ["", "Groups and their options (GROUP=OPTION):"]
    for group, names in options.items():
        lines += wrap(", ".join(names), 118, initial_indent=f"  {group:<11} ", subsequent_indent=" " * 14)
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
