"""The project's sweep files: every study composes, every figure is one that can be drawn, every number has a source."""

from __future__ import annotations

import inspect
import tomllib
from pathlib import Path, PurePosixPath

import pytest

from lottery.combine import Composer
from lottery.compose import composed, config_folder
from lottery.config import study_key
from lottery.figures.rewinding import DISTANCES
from lottery.papers import load, names
from lottery.papers.drawing import plot
from lottery.papers.paper import SCALES, key_of, merged
from lottery.papers.studies import jobs_of

PAPERS = [
    "bip", "dynamic", "jackpots", "layer_tickets", "lmc", "lth", "lth_conv2", "random_pruning", "rewinding",
    "rewinding_resnet", "stabilizing",
]  # fmt: skip
NEEDS_FILES = ("mnist", "fashion_mnist", "cifar10", "cifar100", "imagefolder")


def test_the_papers() -> None:
    assert names() == PAPERS
    assert all(list(load(name).scales) == list(SCALES) for name in PAPERS)


def test_the_wheel_takes_every_sweep_file() -> None:
    """A new paper's too, without an edit of pyproject.toml."""
    text = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    wheel = tomllib.loads(text)["tool"]["hatch"]["build"]["targets"]["wheel"]
    for name in (*PAPERS, "new_paper"):
        file = PurePosixPath(f"/experiments/{name}/sweep.yaml")
        assert any(file.match(pattern) for pattern in wheel["include"])
    assert wheel["sources"] == {"conf": "lottery/conf", "experiments": "lottery/experiments"}


@pytest.fixture(scope="module")
def composer() -> Composer:
    """One for all, since papers have much in common."""
    return Composer()


@pytest.mark.parametrize("name", PAPERS)
def test_every_block_composes_at_every_scale(name: str, composer: Composer) -> None:
    """Its first study; the others differ in the swept values, which `jobs_of` has read."""
    paper, smallest = load(name), dict[str, int]()
    for scale in paper.scales:
        sweeps = paper.sweeps(scale)
        jobs = {block.name: jobs_of(overrides) for block, overrides in sweeps.items()}
        smallest[scale] = sum(map(len, jobs.values()))
        for block, studies in jobs.items():
            cfg = composer(studies[0])
            assert (cfg.name, cfg.tracker.name) == (name, "none"), block
            if scale == "smoke":
                assert cfg.data.name not in NEEDS_FILES, "smoke needs no file and no network"
                assert int(cfg.train.steps.removesuffix("it").removesuffix("ep")) <= 300
    assert smallest["smoke"] <= smallest["small"]
    assert all(block.overrides[0].removeprefix("+exp=") in presets() for block in paper.blocks)


def presets() -> set[str]:
    return {path.stem for path in (config_folder() / "exp").glob("*.yaml")}


@pytest.mark.parametrize("name", PAPERS)
def test_every_figure_is_one_that_can_be_drawn(name: str) -> None:
    """Its function is there, takes what it is given, and every published number says where it comes from."""
    paper = load(name)
    assert paper.figures
    for figure in paper.figures:
        takes = inspect.signature(plot(figure.plot)).parameters
        given = {*figure.arguments, *(["published"] if figure.published else [])}
        assert given <= set(takes), figure.name
        for point in paper.published(figure.name):
            assert "et al." in point["label"] or " & " in point["label"]
            if figure.plot == "stability":
                assert (point["x"], point["panel"] in DISTANCES) == (0, True)
                assert 0 < point["y"] < (90 if "angle" in point["panel"] else 300)
                continue
            assert point["x"] > 0
            assert (1 < point["y"] < 3) if "panel" in point else (0 < point["y"] < 1), "accuracies are fractions"


def test_the_last_override_of_a_key_wins_where_the_first_one_stood() -> None:
    given = ["+exp=a", "seed=0", "~method.rates", "method.rates={b: 1}", "exp=c", "seed=1,2"]
    assert merged(given) == ["exp=c", "seed=1,2", "~method.rates", "method.rates={b: 1}"]
    assert key_of("+exp=a=b") == "exp"


def test_lth_small_is_the_recipe_of_the_paper_on_its_own_ladder(composer: Composer) -> None:
    """Frankle & Carbin 2019, Fig. 2: Adam at 1.2e-3, batches of 60; three of their prunings at once."""
    [overrides] = load("lth").sweeps("small").values()
    jobs = jobs_of(overrides)
    assert len(jobs) == 3
    cfg = composer(jobs[0])
    assert (cfg.data.name, cfg.optim.name, cfg.optim.lr, cfg.train.batch_size) == ("mnist", "adam", 1.2e-3, 60)
    assert (cfg.controls.reinit, cfg.controls.random, cfg.rewind.to) == (1, 1, "init")
    assert 1 - cfg.method.rate == pytest.approx(0.8**3)
    assert 1 - cfg.method.rates.output == pytest.approx(0.9**3)


def test_studies_are_those_that_hydra_composes(composer: Composer) -> None:
    """A list of options (probes=[light,copies]) is composed once for all studies that choose it."""
    job = jobs_of(next(iter(load("stabilizing").sweeps("smoke").values())))[0]
    assert any(override.startswith("probes=[") for override in job)
    assert study_key(composer(job)) == study_key(composed(job))
