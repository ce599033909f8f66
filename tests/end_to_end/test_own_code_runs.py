"""A user's own code is edited and the study run again: what depends on it is computed anew, and the log says so."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from training_tools import draw_nothing

from lottery.compose import checked, composed
from lottery.study import Study

FILES = {
    "ours/__init__.py": "",
    "ours/nets.py": """
from collections import OrderedDict
from torch import nn
from .heads import pooled

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv = nn.Conv2d(1, 12, 3)
        self.fc = nn.Linear(12, classes)

    def forward(self, images):
        return self.fc(pooled(self.conv(images).relu()))

def net(*, shape, classes):
    return Net(classes)
""",
    "ours/heads.py": "def pooled(features):\n    return features.flatten(2).mean(2)\n",
    "ours/digits.py": """
from lottery.data.sources import digits

def source(options, folder):
    found = digits(options, folder)
    return {**found, "train_labels": found["train_labels"] + 0}
""",
    "ours/criteria.py": """
def scored(at):
    at.network()  # so that scores are kept as a stage
    return {name: weight.abs() for name, weight in at.weights.items()}
""",
    "ours/methods.py": """
from dataclasses import dataclass
from lottery.methods.imp import IMP

RATE = 0.5

@dataclass
class Mine(IMP):
    def __call__(self, lab):
        self.rate = RATE
        yield from super().__call__(lab)
""",
    "ours/probes.py": """
def steps(round, previous, lab):
    return lab.evaluated("steps", {"state": round.trained.state.digest}, lambda: {"figure": 1.0})
""",
    "ours/allocations.py": "from lottery.pruning.allocations import uniform as shares\n",
    "ours/units.py": """
def scored(at):
    return {name: float(number) for number, name in enumerate(at.units)}
""",
    "unrelated.py": "# a comment\n",
}
SMALL = (
    "data=digits", "data._target_=ours.digits.source", "data.limit=96", "data.validation=40", "train.steps=12it",
    "train.batch_size=16", "train.eval_every=6it", "rewind=weights", "rewind.to=3it", "probes=none", "tracker=none",
    "trainer=cpu", "trainer.progress=false",
)  # fmt: skip
OWN = {
    "model": {"_target_": "ours.nets.net"},
    "method": {"_target_": "ours.methods.Mine", "rounds": 1},
    "criterion": {"_target_": "ours.criteria.scored", "_partial_": True},
    "probes": {"ours": {"_target_": "ours.probes.steps", "_partial_": True}},
}


Rows = list[dict[str, Any]]
compose = cache(composed)


@dataclass
class Project:
    """A user's files, a study that reads them, and what its last run said."""

    folder: Path
    trained: int = 0  # trainings that the last run did

    def write(self) -> None:
        """All files as they were."""
        for name, text in FILES.items():
            (self.folder / name).parent.mkdir(exist_ok=True)
            (self.folder / name).write_text(text)

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.folder / name
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    def run(self, *overrides: str, own: dict[str, Any] = OWN, runs: str = "runs") -> tuple[Rows, list[str]]:
        """The table, and what this run has said of own code, as in a new process. No figures, which take long."""
        forget()
        cfg = compose((*SMALL, *overrides)).copy()
        for key, node in own.items():
            OmegaConf.update(cfg, key, node, merge=False, force_add=True)
        cfg.paths.runs = str(self.folder / runs)
        study = Study(checked(cfg))
        log = study.folder.path / "study.log"
        begun = len(log.read_text()) if log.exists() else 0
        before = self._trainings(runs)
        rows = study.run()
        self.trained = self._trainings(runs) - before
        return rows, [line for line in log.read_text()[begun:].splitlines() if "own code: " in line]

    def _trainings(self, runs: str) -> int:
        return len(list((self.folder / runs / ".store" / "train").glob("*/DONE")))


def forget() -> None:
    """Have Python read the user's files anew."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "ours"]:
        del sys.modules[name]
    importlib.invalidate_caches()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    project = Project(tmp_path_factory.mktemp("project"))
    project.write()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(project.folder))
        patch.setattr(sys, "dont_write_bytecode", True)
        draw_nothing(patch)
        yield project
    forget()


@pytest.fixture(autouse=True)
def _restored(project: Project) -> Iterator[None]:
    """No test finds what another one has edited."""
    yield
    project.write()


@pytest.fixture(scope="module")
def first(project: Project) -> Rows:
    """The table before anything was edited."""
    return project.run()[0]


def numbers(rows: Rows) -> list[Any]:
    return [{key: value for key, value in row.items() if key not in ("cached", "seconds")} for row in rows]


def differ(one: Rows, other: Rows) -> list[bool]:
    return [a != b for a, b in zip(numbers(one), numbers(other), strict=True)]


EDITS = {  # the file, what is replaced, whether the dense training is done again, and the ticket's
    "model": ("ours/nets.py", ".relu()", ".tanh()", True, True),
    "module that a model imports": ("ours/heads.py", ".mean(2)", ".amax(2)", True, True),
    "data source": ("ours/digits.py", '["train_labels"] + 0', '["train_labels"] // 2', True, True),
    "method": ("ours/methods.py", "RATE = 0.5", "RATE = 0.25", False, True),
    "criterion": ("ours/criteria.py", "weight.abs()", "-weight.abs()", False, True),
}


@pytest.mark.parametrize("what", EDITS)
def test_what_depends_on_edited_code_is_computed_again(what: str, project: Project, first: Rows) -> None:
    """The issue's example: `.mean(1)` became `.amax(1)`, and every row said `cached`, with the old numbers."""
    name, old, new, dense, ticket = EDITS[what]
    project.edit(name, old, new)
    after, said = project.run()
    assert project.trained == [dense, ticket].count(True)
    assert differ(first, after) == [dense, ticket]
    [line] = said
    assert str(project.folder / name) in line
    assert "unrelated" not in line
    project.edit(name, new, old)
    assert numbers(project.run()[0]) == numbers(first), "the old rows are found again"


def test_nothing_is_said_or_computed_where_nothing_changed(project: Project, first: Rows) -> None:
    project.edit("unrelated.py", "a comment", "another comment")
    rows, said = project.run()
    assert said == []
    assert project.trained == 0
    assert numbers(rows) == numbers(first)


def test_a_probe_measures_again_and_trains_nothing(project: Project, first: Rows) -> None:
    project.edit("ours/probes.py", '"figure": 1.0', '"figure": 2.0')
    rows, said = project.run()
    assert project.trained == 0
    assert [row["probe/figure"] for row in (*first, *rows)] == [1.0, 1.0, 2.0, 2.0]
    assert len(said) == 1
    assert project.run()[1] == [], "it is said once"


def test_an_allocation_draws_its_mask_again(project: Project) -> None:
    own = {"method.allocation": {"_target_": "ours.allocations.shares", "_partial_": True}}
    options = ("method=random", "allocation=uniform", "method.density=0.5", "model=mlp")
    before, _ = project.run(*options, own=own)
    project.edit("ours/allocations.py", "uniform", "erk")
    after, said = project.run(*options, own=own)
    assert differ(before, after) == [False, True]
    assert len(said) == 1


def test_a_layer_criterion_ranks_units_again(project: Project) -> None:
    own = {"method.criterion": {"_target_": "ours.units.scored", "_partial_": True}}
    network = ("model=resnet20", "model.depth=14", "model.width=2")
    options = ("method=layers", "layer_criterion=l1", "method.remove=[1]", *network)
    before, _ = project.run(*options, own=own)
    project.edit("ours/units.py", "float(number)", "-float(number)")
    after, said = project.run(*options, own=own)
    assert project.trained == 1
    assert before[1]["removed_units"] != after[1]["removed_units"]
    assert len(said) == 1


def test_a_search_in_a_network_of_ones_own_is_done_again(project: Project) -> None:
    own = {"model": OWN["model"]}
    options = ("method=edge_popup", "method.steps=4it", "method.density=0.5")
    before, _ = project.run(*options, own=own)
    project.edit("ours/heads.py", ".mean(2)", ".amax(2)")
    after, said = project.run(*options, own=own)
    assert project.trained == len(after)
    assert all(differ(before, after))
    assert len(said) == 1
