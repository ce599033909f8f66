"""`python -m lottery doctor`: what this machine and its cluster offer a study, and what is wrong."""

from __future__ import annotations

from pathlib import Path

from lottery.arguments import CommandParser
from lottery.checkup.cluster import check_cluster
from lottery.checkup.findings import Finding, show
from lottery.checkup.folders import check_data, check_folders
from lottery.compose import composed
from lottery.config import Config, settings
from lottery.launch import scheduler

ABOUT = """\
Look at what studies need here: the scheduler with its limits and signals, the folders that studies write to, the
libraries, the data sets, the devices and W&B. What is wrong comes first, with what to do about it.

It takes the overrides of a study, such as paths.store=/scratch/me/store or data=cifar10 trainer=gpu, and tries files in
the folders that these name; nothing stays there. Exit status: 0 when there is no problem, 1 when there is one."""


def doctor(args: list[str]) -> int:
    """The command. Raises ConfigError for overrides that are wrong."""
    parser = CommandParser("doctor", ABOUT)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for a study")
    parser.add_argument("--config-dir", metavar="DIR", help="your own configs")
    asked = parser.parse_args(args)
    config = settings(composed(asked.overrides, asked.config_dir))
    found = quick(config)
    show(found)
    slow = devices_and_wandb(config)
    show(slow)
    wrong = [finding.topic for finding in (*found, *slow) if finding.level == "problem"]
    topics = ", ".join(dict.fromkeys(wrong))
    print(f"\n{len(wrong)} {'problem' if len(wrong) == 1 else 'problems'}: {topics}" if wrong else "\nno problem found")
    return 1 if wrong else 0


def quick(config: Config) -> list[Finding]:
    """Everything that needs no slow import."""
    from lottery.checkup.machine import check_libraries, check_processors

    folders = {"paths.runs": Path(config.paths.runs), "paths.store": Path(config.paths.store)}
    return [
        *check_cluster(config.train.checkpoint_minutes),
        *check_folders(folders, scheduler.available()),
        *check_libraries(),
        *check_processors(config),
        *check_data(Path(config.paths.data), config.data),
    ]


def devices_and_wandb(config: Config) -> list[Finding]:
    """What only torch and wandb know."""
    from lottery.checkup.machine import check_devices, check_wandb

    return [*check_devices(config), *check_wandb(config)]
