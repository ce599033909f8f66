"""The probes on the real lab: what they measure of a trained network, what is kept of it, and what is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line_tools import call
from omegaconf import DictConfig, OmegaConf
from torch.nn.functional import cross_entropy

from lottery.compose import composed
from lottery.errors import ConfigError
from lottery.probes.adversarial import FGSM
from lottery.probes.corruptions import CORRUPTIONS, SEVERITIES, Corruptions
from lottery.probes.gradients import GradientNorm
from lottery.probes.ood import OutOfDistribution
from lottery.probes.quality import Quality
from lottery.record.run import Run
from lottery.stages.bench import Bench
from lottery.stages.lab import Lab
from lottery.stages.round import Round
from lottery.study import Study
from lottery.ticket import Mask

TWIN = {"_target_": "lottery.data.sources.digits", "name": "twin", "classes": 10, "shape": [1, 8, 8], "scaling": "unit"}
ENOUGH = "data.limit=400"  # at least ten training images of each class
SIGNALS = ("data=mnist1d", "model=mlp")


@pytest.fixture
def lab(make_lab: Callable[..., Lab]) -> Bench:
    return Bench(make_lab(ENOUGH))


@pytest.fixture
def dense(lab: Bench) -> Round:
    return Round(0, lab.initial, lab.train(lab.initial))


def results(lab: Bench) -> list[dict[str, Any]]:
    """What the evaluate stages keep."""
    return [json.loads(path.read_text()) for path in (lab.store.root / "evaluate").glob("*/result.json")]


def test_likelihood_is_the_tables_test_loss(lab: Bench, dense: Round) -> None:
    found = Quality()(dense, None, lab)
    assert list(found) == ["nll", "ece", "brier"]
    assert found["nll"] == pytest.approx(dense.trained.result["test_loss"], rel=1e-5)
    [kept] = results(lab)
    pairs = zip(kept["reliability_accuracy"], kept["reliability_count"], strict=True)
    right = sum(accuracy * count for accuracy, count in pairs if count)
    assert right / 360 == pytest.approx(dense.trained.result["test_accuracy"])
    assert [len(value) for value in kept.values() if isinstance(value, list)] == [15] * 3


def test_a_replay_measures_nothing(lab: Bench, dense: Round, monkeypatch: pytest.MonkeyPatch) -> None:
    probes = (Quality(), GradientNorm(), FGSM(), Corruptions(limit=40), OutOfDistribution({"twin": TWIN}))
    first = [probe(dense, None, lab) for probe in probes]

    def refuse(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(Bench, "trained_network", refuse)
    monkeypatch.setattr(Bench, "start_network", refuse)
    assert [probe(dense, None, lab) for probe in probes] == first
    assert all(isinstance(value, float) for figures in first for value in figures.values())
    for other in (Quality(bins=10), GradientNorm(per_class=2), GradientNorm(seed=1), FGSM(epsilon=0.1), FGSM(limit=9)):
        with pytest.raises(AssertionError, match="measured again"):  # options are part of what is looked up
            other(dense, None, lab)


def test_an_attack_costs_accuracy_and_one_that_is_too_small_nothing(lab: Bench, dense: Round) -> None:
    clean = dense.trained.result["test_accuracy"]
    assert clean > 0.4  # it has learnt something
    accuracies = [FGSM(epsilon=epsilon)(dense, None, lab)["accuracy_fgsm"] for epsilon in (1e-7, 8 / 255, 0.1)]
    assert accuracies[0] == clean
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[2] < clean - 0.2


def test_corruptions_report_the_means_of_what_is_kept(lab: Bench, dense: Round) -> None:
    found = Corruptions()(dense, None, lab)
    [kept] = results(lab)
    assert set(kept) == {f"accuracy_{kind}_{severity}" for kind in CORRUPTIONS for severity in SEVERITIES}
    for kind in CORRUPTIONS:
        assert found[f"accuracy_{kind}"] == pytest.approx(sum(kept[f"accuracy_{kind}_{s}"] for s in SEVERITIES) / 5)
    assert found["accuracy_corrupted"] == pytest.approx(sum(found[f"accuracy_{kind}"] for kind in CORRUPTIONS) / 4)
    assert len(found) == 5
    assert all(360 * value == pytest.approx(round(360 * value)) for value in kept.values())


def test_the_size_of_a_batch_is_a_matter_of_memory(make_lab: Callable[..., Lab]) -> None:
    found = []
    for size in (1000, 7):
        lab = Bench(make_lab(f"train.eval_batch_size={size}", runs=f"runs{size}"))
        dense = Round(0, lab.initial, lab.train(lab.initial))
        probes = (Quality(), FGSM(limit=50), Corruptions(limit=50))
        found.append({name: value for probe in probes for name, value in probe(dense, None, lab).items()})
    assert found[0] == pytest.approx(found[1], abs=0.02 / 5)  # one image of 50 at one of five severities


def test_a_set_is_not_out_of_its_own_distribution(lab: Bench, dense: Round) -> None:
    """The same test images on both sides: 1/2, as every pair has its mirror. Whatever scaling the other one names."""
    probe = OutOfDistribution({"twin": TWIN, "other": TWIN | {"scaling": "l2", "validation": 5}})
    probe.check(lab)
    found = probe(dense, None, lab)
    assert found == {"ood_auc_twin": pytest.approx(0.5), "ood_auc_other": pytest.approx(0.5)}


def test_the_gradient_is_that_of_the_tickets_start(make_lab: Callable[..., Lab], half: Callable[..., Mask]) -> None:
    """Of the start weights under the mask, by autograd on the same images; and not of the trained network."""
    lab = Bench(make_lab(ENOUGH, "model.dropout=0"))
    dense = Round(0, lab.initial, lab.train(lab.initial))
    ticket = replace(dense.ticket, mask=half(dense.mask))
    found = GradientNorm(per_class=1)(Round(1, ticket, dense.trained), None, lab)
    network = lab.network(0).train()
    network.load_state_dict(ticket.mask.apply(ticket.state.tensors()))
    loss = cross_entropy(network(lab.data.sample(1, 0)[0]), lab.data.sample(1, 0)[1])
    loss.backward()
    weights = dict(network.named_parameters())
    expected = torch.cat([weights[name].grad[kept] for name, kept in ticket.mask.items()]).norm()
    assert found == {"gradient_norm_start": pytest.approx(float(expected), rel=1e-5)}
    assert GradientNorm(per_class=1)(dense, None, lab) != found
    assert len(results(lab)) == 2


# --- A study ---


def with_probes(cfg: DictConfig, *groups: str) -> DictConfig:
    """The small study with these files of conf/probes, and another data set of its shape where `ood` is among them."""
    cfg.probes = composed([f"probes=[{','.join(groups)}]"]).probes
    if "ood" in cfg.probes:
        cfg.probes.ood.other = OmegaConf.create({"twin": TWIN})
    return cfg


@pytest.mark.usefixtures("undrawn")
def test_a_study_with_everything(configure: Callable[..., DictConfig]) -> None:
    cfg = with_probes(configure(ENOUGH, "method.rounds=1", "controls.reinit=1"), "robustness", "ood_mnist")
    study = Study(cfg)
    rows = study.run()
    assert len(rows) == 3
    names = {"nll", "ece", "brier", "gradient_norm_start", "accuracy_fgsm", "accuracy_corrupted", "ood_auc_twin"}
    names |= {f"accuracy_{kind}" for kind in CORRUPTIONS} | {"l2_from_start", "angle_from_start", "sign_changes"}
    for row in rows:
        measured = {name.removeprefix("probe/"): value for name, value in row.items() if name.startswith("probe/")}
        assert names <= set(measured)
        assert all(isinstance(measured[name], float) for name in names)
    assert Run(study.folder.path).rows == rows
    store = Path(cfg.paths.store) / "evaluate"
    assert len(list(store.glob("*/DONE"))) == 3 * 5
    told = json.loads((study.folder.path / "rounds" / "round_001.json").read_text())["stages"]
    assert {key for key in told if key.startswith("evaluate ")} == {
        "evaluate quality", "evaluate gradient norm", "evaluate fgsm", "evaluate corruptions", "evaluate ood twin",
    }  # fmt: skip
    assert all((store / key / "result.json").exists() for name, key in told.items() if name.startswith("evaluate "))
    again = Study(cfg).run()
    assert [{**row, "cached": None, "seconds": None} for row in again] == [
        {**row, "cached": None, "seconds": None} for row in rows
    ]
    assert len(list(store.glob("*/DONE"))) == 3 * 5


# --- Refusals ---


@pytest.mark.parametrize(
    ("probe", "name"),
    [(FGSM(), "fgsm"), (Corruptions(), "corruptions"), (OutOfDistribution({"twin": TWIN}), "ood")],
)
def test_signals_have_no_pixels(probe: Any, name: str, make_lab: Callable[..., Lab]) -> None:
    with pytest.raises(ConfigError) as caught:
        probe.check(Bench(make_lab(*SIGNALS)))
    expected = f"probes.{name}: data: got 'mnist1d', expected a data set of 8-bit images: pixels in [0, 1] are needed"
    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value)


def test_quality_and_gradients_of_signals(make_lab: Callable[..., Lab]) -> None:
    lab = Bench(make_lab(*SIGNALS))
    dense = Round(0, lab.initial, lab.train(lab.initial))
    assert Quality()(dense, None, lab)["nll"] == pytest.approx(dense.trained.result["test_loss"], rel=1e-5)
    assert GradientNorm(per_class=2)(dense, None, lab)["gradient_norm_start"] > 0


def test_the_sample_has_to_be_there(lab: Bench) -> None:
    fewest = min(lab.data.class_sizes)
    GradientNorm(per_class=fewest).check(lab)
    with pytest.raises(ConfigError, match=rf"^probes\.gradient_norm\.per_class: got {fewest + 1}, expected at most"):
        GradientNorm(per_class=fewest + 1).check(lab)


def refused(cwd: Path, *overrides: str) -> str:
    """The one line that the command line has for it; nothing was trained and nothing written."""
    outcome = call("tracker=none", "trainer=cpu", "paths.runs=runs", *overrides)
    assert outcome.status == 2
    assert not (cwd / "runs").exists()
    return outcome.line


def test_what_is_refused_before_anything_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    line = refused(tmp_path, "data=digits", "probes=ood_mnist")
    assert "probes.ood.other.mnist: got [1, 28, 28], expected [1, 8, 8], the shape of our images" in line
    line = refused(tmp_path, "probes=[light,robustness]")
    assert "probes.fgsm: data: got 'mnist1d', expected a data set of 8-bit images" in line
    line = refused(tmp_path, "data=digits", "probes=robustness", "probes.fgsm.epsilon=8")
    assert "probes.fgsm.epsilon: got 8, expected a number > 0 and ≤ 1" in line
    line = refused(tmp_path, "data=digits", "probes=quality", "probes.gradient_norm.per_class=1000")
    assert "probes.gradient_norm.per_class: got 1000, expected at most" in line
    line = refused(tmp_path, "data=digits", "probes=[quality,robustnes]")
    assert "did you mean 'robustness'?" in line


# --- Choosing them ---


def test_lists_of_groups() -> None:
    both = composed(["data=fashion_mnist", "probes=[robustness,ood_mnist,ood_cifar10]"]).probes
    robust = composed(["probes=robustness"]).probes
    assert {name: node for name, node in both.items() if name != "ood"} == robust
    assert [both.ood.other[name].name for name in ("mnist", "cifar10")] == ["mnist", "cifar10"]
    assert composed(["probes=[quality,robustness]"]).probes == robust
    light, quality = composed(["probes=light"]).probes, composed(["probes=quality"]).probes
    assert light.items() <= quality.items() <= robust.items()
    assert composed(["probes=none"]).probes == {}
    mine = composed(["probes=ood_mnist", "+data@probes.ood.other.mine=digits"]).probes
    assert list(mine.ood.other) == ["mnist", "mine"]


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
@pytest.mark.data
def test_mnist_beside_fashion_mnist(tmp_path: Path) -> None:
    """A LeNet of 200 steps on Fashion-MNIST is less sure of digits: far above chance, and below perfection."""
    folder = os.environ.get("LOTTERY_DATA")
    if not folder or not all((Path(folder) / f"{name}.safetensors").exists() for name in ("mnist", "fashion_mnist")):
        pytest.skip("mnist and fashion_mnist are not in $LOTTERY_DATA")
    cfg = composed([
        "data=fashion_mnist", f"paths.data={folder}", f"paths.runs={tmp_path}", "model=lenet_300_100",
        "train.steps=200it", "train.eval_every=100it", "optim=adam", "optim.lr=0.001", "method.rounds=0",
        "probes=ood_mnist", "tracker=none", "trainer=cpu", "trainer.progress=false",
    ])  # fmt: skip
    [row] = Study(cfg).run()
    assert 0.6 < row["probe/ood_auc_mnist"] < 1
