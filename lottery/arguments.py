"""Read the command line: options, overrides, and the help. Torch-free."""

from __future__ import annotations

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from textwrap import shorten, wrap
from typing import NoReturn

from lottery.errors import ConfigError, nearest

USAGE = """\
python -m lottery +exp=NAME [GROUP=OPTION ...] [KEY=VALUE ...]    run a study
python -m lottery -m +exp=NAME seed=0,1,2 [...]                   run a sweep
python -m lottery --config RUN_FOLDER/config.yaml [KEY=VALUE ...] run it again

  --config-dir DIR  add your own configs: DIR/exp/NAME.yaml, DIR/model/NAME.yaml
  --cfg [KIND]      print the configuration, every key and its value, and stop
                    (KIND: job, hydra or all; --package KEY: a part of it)
  --info [KIND]     print how Hydra composes it: all, config, defaults,
                    defaults-tree, plugins or searchpath
  --shell-completion install=bash   (zsh, fish) complete `lottery` in a shell
  --version         print the version
  --help GROUP      list the options of a group; of all groups: --help all

Exit status: 0 done; 1 the run failed; 2 the configuration is wrong, nothing was
written; 130, 143 interrupted, and the same command continues.

A first one: +exp=imp_rewind. --help exp lists the experiments."""

FLAGS = {
    "-h": "help", "--help": "help", "--version": "version", "-m": "sweep", "--multirun": "sweep",
    "-r": "run", "--run": "run", "--resolve": "run", "-sc": "completion", "--shell-completion": "completion",
}  # fmt: skip
VALUED = {
    "--config": "config", "--config-dir": "config_dir", "-cd": "config_dir", "--package": "package", "-p": "package",
}  # fmt: skip
KINDS = {  # options with an optional word after them: field, the words, the word that is meant without one
    "--cfg": ("show", ("job", "hydra", "all"), "job"),
    "--info": ("info", ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"), "all"),
}
SHORT = {"-c": "--cfg", "-i": "--info"}
REFUSED = {  # options of Hydra that this command line cannot have
    **dict.fromkeys(("--config-name", "-cn"), "there is one configuration; a whole experiment is +exp=NAME"),
    **dict.fromkeys(("--config-path", "-cp"), "your own configs are added by --config-dir DIR"),
    "--experimental-rerun": "a study is run again by --config RUN_FOLDER/config.yaml",
}
WIDTH = 80  # columns of the help


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
    package: str = ""
    help: bool = False
    topics: list[str] = field(default_factory=list)  # what to help with
    version: bool = False
    show: str = ""  # the kind of configuration to print
    info: str = ""
    completion: bool = False
    sweep: bool = False
    run: bool = False  # what happens without it, too

    @classmethod
    def parse(cls, args: Sequence[str], commands: Collection[str] = ()) -> Arguments:
        """Parse the arguments. Raises ConfigError for unknown, incomplete or contradictory ones."""
        asked, rest = cls(), list(args)
        asked.help = bool({"-h", "--help"} & set(args))
        while rest:
            arg = rest.pop(0)
            name, given, value = arg.partition("=")
            name = SHORT.get(name, name)
            if arg in FLAGS:
                setattr(asked, FLAGS[arg], True)
            elif name in VALUED or name in KINDS:
                asked._take(name, value if given else None, rest)
            elif arg.startswith("-"):
                asked.overrides.append(long_override(arg))
            elif given or arg.startswith("~"):
                asked.overrides.append(arg)
            elif asked.help:
                asked.topics.append(arg)
            else:
                raise ConfigError(unknown_word(arg, commands))
        if asked.config and (asked.sweep or asked.config_dir):
            raise ConfigError("--config: a saved configuration is complete, it goes with neither -m nor --config-dir")
        if asked.sweep and (asked.show or asked.info):
            raise ConfigError(f"--{'cfg' if asked.show else 'info'}: prints the configuration of one study, without -m")
        return asked

    def _take(self, name: str, value: str | None, rest: list[str]) -> None:
        """Set an option that takes a value: its own after `=`, or the next argument, which is then removed."""
        attribute, words, default = KINDS.get(name, (VALUED.get(name, ""), (), ""))
        if value is None and rest and (not words or rest[0] in words):
            value = rest.pop(0)
        value = default if value is None else value
        if words and value not in words:
            raise ConfigError.of(name, value, f"one of {', '.join(words)}{nearest(value, words)}")
        if not value or value.startswith("-"):
            what = {"config": "a file", "package": "a key"}.get(attribute, "a folder")
            raise ConfigError(f"{name}: expected {what} after it")
        setattr(self, attribute, value)


def long_override(arg: str) -> str:
    """Return the override in `--key=value`, as W&B's sweep agents write it. Raises ConfigError for any other option."""
    name, given, _ = arg.partition("=")
    if name in REFUSED:
        raise ConfigError(f"{name}: not an option here: {REFUSED[name]}")
    override = arg.removeprefix("--")
    options = [*FLAGS, *VALUED, *KINDS]
    if given and arg.startswith("--"):
        from lottery.compose import groups
        from lottery.saved import kinds

        known = {"hydra", *groups(), *(key.partition(".")[0] for key in kinds())}
        if override[:1] in "+~" or override.partition("=")[0].partition(".")[0].partition("/")[0] in known:
            return override
        options += [f"--{key}" for key in (*known, *kinds())]
    raise ConfigError(f"{name}: no such option{nearest(name, options)}; --help lists them")


def unknown_word(word: str, commands: Collection[str]) -> str:
    """Return the error message for a word that is neither a command nor an override."""
    from lottery.compose import groups

    experiments = groups()["exp"]
    if word in experiments:
        return f"{word}: an experiment is run as +exp={word}"
    what = f"a command ({', '.join(commands)}) or key=value" if commands else "key=value, group=option or +exp=NAME"
    return f"{word}: expected {what}{nearest(word, [*commands, *(f'+exp={name}' for name in experiments)])}"


def help_text(topics: Sequence[str], config_dir: str | None, commands: Collection[str]) -> str:
    """Return the usage, or on the options of these groups a line each. Raises ConfigError for an unknown group."""
    from lottery.compose import groups

    known = groups(config_dir)
    counts = [f"{group} ({len(options)})" for group, options in known.items()]
    if not topics:
        words = wrap(f"Commands: {', '.join(commands)}", WIDTH, subsequent_indent=" " * 10) if commands else []
        return "\n".join([USAGE, "", *words, *wrap(f"Groups: {', '.join(counts)}", WIDTH, subsequent_indent=" " * 8)])
    lines: list[str] = []
    for topic in known if "all" in topics else topics:
        if topic not in known:
            raise ConfigError.of("--help", topic, f"all, or one of {', '.join(known)}{nearest(topic, known)}")
        head = "Experiments (+exp=NAME):" if topic == "exp" else f"{topic}=NAME:"
        lines += ["", head, *option_lines(topic, known[topic], config_dir)]
    return "\n".join([USAGE, *lines] if "all" in topics else lines[1:])


def option_lines(group: str, names: Sequence[str], config_dir: str | None) -> list[str]:
    """Return a line for each option of a group: its name, and the first words of the comment at the top of its file."""
    from lottery.compose import config_files

    width, lines = max(map(len, names)), []
    for name in names:
        text = config_files(config_dir, f"{group}/{name}.yaml")[0].read_text(encoding="utf-8")
        head = [line for line in text.splitlines() if "@package" not in line][:1]
        about = "".join(line for line in head if line[:1] == "#").lstrip("# ").partition(": ")[0]
        lines.append(f"  {name:<{width}}  {shorten(about, WIDTH - 4 - width, placeholder=' ...')}".rstrip())
    return lines
