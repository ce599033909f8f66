"""`python -m lottery doctor`: check whether this machine and its cluster are ready for studies."""

from __future__ import annotations

from pathlib import Path

from lottery.arguments import CommandParser
from lottery.checkup.cluster import check_cluster
from lottery.checkup.findings import Finding, show
from lottery.checkup.folders import check_data, check_folders
from lottery.checkup.machine import check_devices, check_libraries, check_processors, check_wandb
from lottery.compose import composed
from lottery.config import Config, settings
from lottery.launch import scheduler

ABOUT = """\
Look at what studies need here: the scheduler with its limits and signals, the folders that studies write to, the
libraries, the data sets, the devices and W&B. What is wrong comes first, with what to do about it.

It takes the overrides of a study, such as paths.store=/scratch/me/store or data=cifar10 trainer=gpu, and tries files in
the folders that these name; nothing stays there. Exit status: 0 when there is no problem, 1 when there is one."""


def doctor(args: list[str]) -> int:
    """Run the command; return 1 where a check finds a problem, else 0. Raises ConfigError for wrong overrides."""
    parser = CommandParser("doctor", ABOUT)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for a study")
    parser.add_argument("--config-dir", metavar="DIR", help="your own configs")
    asked = parser.parse_args(args)
    config = settings(composed(asked.overrides, asked.config_dir))
    found = quick(config)
    show(found)
    slow = [*check_devices(config), check_wandb(config)]
    show(slow)
    wrong = [finding.topic for finding in (*found, *slow) if finding.level == "problem"]
    topics = ", ".join(dict.fromkeys(wrong))
    print(f"\n{len(wrong)} {'problem' if len(wrong) == 1 else 'problems'}: {topics}" if wrong else "\nno problem found")
    return 1 if wrong else 0


def quick(config: Config) -> list[Finding]:
    """Run every check that needs no slow import."""
    folders = {"paths.runs": Path(config.paths.runs), "paths.store": Path(config.paths.store)}
    return [
        *check_cluster(config.train.checkpoint_minutes),
        *check_folders(folders, scheduler.available()),
        *check_libraries(),
        *check_processors(config),
        *check_data(Path(config.paths.data), config.data),
    ]
