"""`python -m lottery +exp=NAME [group=option] [key=value]`: compose, check, run. The only place that drives Hydra."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

from lottery.errors import LotteryError

USAGE = """\
python -m lottery +exp=NAME [group=option ...] [key=value ...]      run a study
python -m lottery -m +exp=NAME seed=0,1,2 [...]                      run a sweep, one study after the other
python -m lottery --config RUN_FOLDER/config.yaml [key=value ...]    run a study again from its run folder

  --config-dir DIR   add your own configs (DIR/exp/NAME.yaml, DIR/model/NAME.yaml, ...)
  --cfg              print the composed configuration and stop
  --help             this text
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run, and return the exit status of contract 4.1: 0, 1, 2, or 128 + signal."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        return dispatch(args)
    except LotteryError as error:
        print(f"lottery: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("lottery: interrupted; the same command continues from the last saved state", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"lottery: {error.filename or ''}: {error.strerror or error}".replace(" : ", " "), file=sys.stderr)
        return 1
    except Exception as error:  # whatever it was: one line here, the traceback where it can be read later
        print(f"lottery: {type(error).__name__}: {error}\n{traceback.format_exc()}", file=sys.stderr)
        return 1


def dispatch(args: list[str]) -> int:
    """Help, the printed configuration, a sweep, or one study."""
    if not args or {"-h", "--help"} & set(args):
        print(help_text())
        return 0
    from lottery.compose import composed, loaded

    if "-m" in args or "--multirun" in args:
        return sweep(args)
    show = "--cfg" in args
    config_dir, args = option(args, "--config-dir")
    config_file, args = option([a for a in args if a not in ("--cfg", "job")], "--config")
    from pathlib import Path

    cfg = loaded(Path(config_file), args) if config_file else composed(args, config_dir)
    if show:
        from omegaconf import OmegaConf

        print(OmegaConf.to_yaml(cfg, resolve=True), end="")
        return 0
    return run(cfg)


def run(cfg) -> int:  # type: ignore[no-untyped-def] # a DictConfig; omegaconf is imported only when needed
    """One study. Heavy imports start here, when the configuration is known to be valid."""
    from lottery.training.signals import StopFlag

    stop = StopFlag()
    stop.install()
    from lottery.study import Study

    Study(cfg, stop).run()
    return 0


def sweep(args: list[str]) -> int:
    """A Hydra multirun: every job's configuration is checked before the first starts."""
    import hydra

    from lottery.compose import composed, config_folder
    from lottery.config import register

    register()
    values = [a for a in args if a not in ("-m", "--multirun")]
    config_dir, values = option(values, "--config-dir")
    first = [v if "=" not in v else f"{v.partition('=')[0]}={v.partition('=')[2].split(',')[0]}" for v in values]
    composed([v for v in first if not v.startswith("hydra")], config_dir)
    sys.argv = [sys.argv[0], *args]
    statuses: list[int] = []

    def job(cfg) -> int:  # type: ignore[no-untyped-def]
        from lottery.compose import checked

        statuses.append(run(checked(cfg)))
        return statuses[-1]

    hydra.main(config_path=str(config_folder()), config_name="config", version_base="1.3")(job)()
    return max(statuses, default=0)


def option(args: list[str], name: str) -> tuple[str | None, list[str]]:
    """Take `NAME VALUE` or `NAME=VALUE` out of the arguments."""
    rest, found, pending = [], None, False
    for arg in args:
        if pending:
            found, pending = arg, False
        elif arg == name:
            pending = True
        elif arg.startswith(f"{name}="):
            found = arg.partition("=")[2]
        else:
            rest.append(arg)
    return found, rest


def help_text() -> str:
    """The usage, and every group with its options, read from the config folder."""
    from lottery.compose import config_folder

    lines = [USAGE, "Groups and options:"]
    for group in sorted(path for path in config_folder().iterdir() if path.is_dir()):
        names = ", ".join(sorted(path.stem for path in group.glob("*.yaml")))
        prefix = "+" if group.name == "exp" else ""
        lines.append(f"  {prefix}{group.name:<10} {names}")
    return "\n".join(lines)


if __name__ == "__main__":
    os.environ.setdefault("HYDRA_FULL_ERROR", "0")
    sys.exit(main())
