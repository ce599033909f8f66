"""`python -m lottery +exp=NAME [group=option] [key=value]`: read the arguments, compose, check, run."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from lottery import __version__
from lottery.arguments import Arguments, help_text
from lottery.errors import ConfigError, reported
from lottery.imports import importable
from lottery.printing import prepare_streams
from lottery.runner import run_composed
from lottery.signals import StopFlag, stop_on_signals

# Commands: name -> "module:function", a function of the remaining arguments that returns the exit status.
COMMANDS: dict[str, str] = {
    "submit": "lottery.launch.commands:submit",
    "status": "lottery.launch.status:status",
    "cancel": "lottery.launch.commands:cancel",
    "store": "lottery.inventory.command:store",
    "sync": "lottery.tracking.sync:sync",
    "doctor": "lottery.doctor:doctor",
    "compare": "lottery.analysis.compare:compare",
    "report": "lottery.report.command:report",
    "export": "lottery.export.command:export",
    "paper": "lottery.papers.command:paper",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit status: 0 done, 1 failed, 2 wrong configuration, 128 + signal.

    Errors are printed as one line on stderr. Nothing slow is imported before the configuration is known to be valid.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    prepare_streams()
    if args and args[0] in COMMANDS:
        return reported(lambda: command(*args))
    with stop_on_signals() as stop:
        return reported(lambda: dispatch(args, stop))


def check_directory() -> None:
    """Find modules in the working directory, by the `lottery` script too. Raises ConfigError where it is gone."""
    try:
        importable(os.getcwd())
    except FileNotFoundError as error:
        raise ConfigError("the working directory was deleted; change to one that exists") from error


def command(word: str, *args: str) -> int:
    """Run one of COMMANDS. A signal ends a command at once, as it has no state to save."""
    check_directory()
    module, _, function = COMMANDS[word].partition(":")
    return getattr(import_module(module), function)(list(args))


def dispatch(args: list[str], stop: StopFlag) -> int:
    """Show the help, the version or the configuration, or run a sweep or one study."""
    check_directory()
    asked = Arguments.parse(args, COMMANDS)
    if asked.help or not args:
        return show(help_text(asked.topics, asked.config_dir, COMMANDS))
    if asked.version:
        return show(f"lottery {__version__}")
    if asked.sweep:
        from lottery.sweep import sweep

        return sweep(asked.overrides, asked.config_dir, stop)
    if asked.info or asked.completion:
        from lottery.hydra_flags import shell_completion, show_info

        if asked.completion:
            return shell_completion(asked.overrides, asked.config_dir)
        return show_info(asked.info, asked.overrides, asked.config_dir)
    from lottery.compose import composed, loaded

    if asked.config:
        from lottery.record.provenance import code_folders

        importable(*code_folders(Path(asked.config).parent))
    cfg = loaded(Path(asked.config), asked.overrides) if asked.config else composed(asked.overrides, asked.config_dir)
    if asked.show:
        from lottery.hydra_flags import shown_config

        return show(shown_config(cfg, asked.show, asked.package, asked.overrides, asked.config_dir))
    return run_composed(cfg, stop)


def show(text: str) -> int:
    """Print the text, and return 0, the exit status of success."""
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
