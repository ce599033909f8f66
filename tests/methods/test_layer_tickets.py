"""Layer and filter tickets as rounds over the lab (docs/methods/layers.md)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from command_line_tools import call
from omegaconf import DictConfig
from training_tools import MOMENTUM, STEPWISE, Start, assert_pruned_are_zero, assert_same_bits

from lottery.cost.counts import multiply_adds
from lottery.errors import Interrupted, LotteryError
from lottery.methods.filters import FilterTickets
from lottery.methods.layers import LayerTickets
from lottery.signals import StopFlag
from lottery.stages.bench import Bench
from lottery.stages.controls import run_control
from lottery.stages.lab import Lab
from lottery.stages.round import Round
from lottery.state import State
from lottery.study import Study
from lottery.ticket import Mask

pytestmark = pytest.mark.usefixtures("undrawn")

MakeLab = Callable[..., Lab]
NETWORK = ("model=resnet20", "model.depth=14", "model.width=4")  # 6 blocks, 4 of them removable
CANDIDATES = ["stages.0.0", "stages.0.1", "stages.1.1", "stages.2.1"]
QUIET = ("tracker=none", "trainer.progress=false", "train.steps=6it", "train.eval_every=3it", "probes=none",
         "data=digits", "data.limit=64", "train.batch_size=16")  # fmt: skip


def by(name: str, **options: object) -> dict[str, object]:
    return {"_target_": f"lottery.layers.{name}", "_partial_": True, **options}


ONE = "method.criterion.per_class=1"
L1 = by("from_weights.l1")
SNIP = by("from_weights.snip", per_class=1)


def rounds(lab: Lab, **options: object) -> list[Round]:
    return list(LayerTickets(**{"criterion": L1, "remove": [1, 2]} | options)(lab))


def within(lab: Lab, removed: tuple[str, ...]) -> set[str]:
    """The tensors of these blocks, by their names alone."""
    return {name for name in lab.network(0).state_dict() if name.startswith(tuple(f"{unit}." for unit in removed))}


# -- what is trained --------------------------------------------------------------------------------------------------


def test_kept_weights_start_at_the_bits_of_step_i_and_the_schedule_goes_on_there(
    make_lab: MakeLab, starts: list[Start]
) -> None:
    """T6.2, T6.7: the shallow network holds θ_i, and its first rate is the dense one's at step i, for n - i steps."""
    lab = make_lab(*NETWORK, *MOMENTUM, *STEPWISE)
    dense, one, two = rounds(lab)
    assert len(two.ticket.removed) == 2
    at_i = dense.trained.at(7).tensors()
    gone = within(lab, two.ticket.removed)
    assert gone
    assert_same_bits(starts[-1].network, {name: value for name, value in at_i.items() if name not in gone})
    assert starts[-1].rates == starts[0].rates[7:]
    assert (one.ticket.step, one.ticket.steps) == (7, 23)


def test_what_is_stored_is_the_dense_network_with_silent_blocks(make_lab: MakeLab) -> None:
    """T6.1: the trained shallow network computes what the dense one does that holds its stored state."""
    lab = make_lab(*NETWORK)
    _, _, two = rounds(lab)
    state = two.trained.state.tensors()
    assert_pruned_are_zero(state, two.mask)
    parameters = {name for name, _ in lab.network(0).named_parameters()}
    assert not any(state[name].any() for name in within(lab, two.ticket.removed) & parameters)
    images, labels = next(iter(lab.data.batches("test", 1000)))
    network = Bench(lab).trained_network(two.trained)
    with torch.no_grad():
        logits = network(images)
        shallow = lab.layers.shallow_(network, two.ticket.removed)
        torch.testing.assert_close(shallow(images), logits, atol=1e-6, rtol=1e-5)
    assert set(shallow.state_dict()) == set(state) - within(lab, two.ticket.removed)
    assert len(labels) == lab.data.sizes["test"]
    accuracy = float((logits.argmax(1) == labels).float().mean())
    assert accuracy == pytest.approx(two.trained.result["test_accuracy"])


def test_scored_at_init_nothing_is_rewound(make_lab: MakeLab, starts: list[Start]) -> None:
    """Algorithm 2: θ_0, the whole schedule, whatever the rewind point of the configuration."""
    lab = make_lab(*NETWORK)
    _, one, _ = rounds(lab, scored="init", criterion=SNIP)
    initial = lab.network(0).state_dict()
    gone = within(lab, one.ticket.removed)
    assert (one.ticket.step, one.ticket.steps) == (0, 30)
    assert_same_bits(starts[1].network, {name: value for name, value in initial.items() if name not in gone})


def test_without_a_removed_unit_it_is_the_dense_run(make_lab: MakeLab) -> None:
    """T6.5: p = 0."""
    lab = make_lab(*NETWORK)
    dense, none = rounds(lab, scored="init", remove=[0])
    assert none.ticket.removed == ()
    assert none.trained.key == dense.trained.key
    assert none.trained.cached


def test_parameters_and_operations_fall_by_those_of_the_blocks(make_lab: MakeLab) -> None:
    """T6.3."""
    lab = make_lab(*NETWORK)
    _, _, two = rounds(lab)
    dense, shallow = lab.network(0), lab.layers.shallow_(lab.network(0), two.ticket.removed)
    gone = within(lab, two.ticket.removed) & {name for name, _ in dense.named_parameters()}
    sizes = {name: parameter.numel() for name, parameter in dense.named_parameters()}
    assert sum(p.numel() for p in shallow.parameters()) == sum(sizes.values()) - sum(sizes[name] for name in gone)
    images = torch.zeros(1, *lab.data.shape)
    before, after = multiply_adds(dense, images), multiply_adds(shallow, images)
    assert after == {name: count for name, count in before.items() if f"{name}.weight" not in gone}


def test_the_lowest_go_and_rounds_are_nested(make_lab: MakeLab) -> None:
    lab = make_lab(*NETWORK)
    dense, *tickets = rounds(lab, remove=[1, 2, 4], criterion=L1)
    assert list(lab.layers.units) == CANDIDATES
    state = dense.trained.state.tensors()
    mean = {
        unit: torch.cat([state[f"{unit}.conv{i}.weight"].abs().flatten() for i in (1, 2)]).mean().item()
        for unit in CANDIDATES
    }
    lowest = sorted(CANDIDATES, key=lambda unit: mean[unit])
    for ticket, count in zip(tickets, (1, 2, 4), strict=True):
        assert set(ticket.ticket.removed) == set(lowest[:count])
    assert all(later.mask.issubset(earlier.mask) for earlier, later in pairwise(tickets))


def test_iterative_removal_scores_the_ticket_trained_last(make_lab: MakeLab) -> None:
    lab = make_lab(*NETWORK)
    _, one, two = rounds(lab, iterative=True)
    assert set(one.ticket.removed) < set(two.ticket.removed)
    state = one.trained.state.tensors()
    left = [unit for unit in CANDIDATES if unit not in one.ticket.removed]
    mean = {
        unit: torch.cat([state[f"{unit}.conv{i}.weight"].abs().flatten() for i in (1, 2)]).mean().item()
        for unit in left
    }
    assert set(two.ticket.removed) - set(one.ticket.removed) == {min(left, key=lambda unit: mean[unit])}


def test_it_combines_with_a_weight_mask(make_lab: MakeLab, half: Callable[..., Mask]) -> None:
    """A ticket may have both: the shallow network is trained under what is left of the mask."""
    lab = make_lab(*NETWORK)
    mask = half(lab.initial.mask)
    ticket = lab.layers.ticket(replace(lab.initial, mask=mask), ["stages.1.1"])
    gone = {"stages.1.1.conv1.weight", "stages.1.1.conv2.weight"}
    assert all(not ticket.mask[name].any() for name in gone)
    assert all(torch.equal(ticket.mask[name], mask[name]) for name in mask if name not in gone)
    state = lab.train(ticket).state.tensors()
    assert_pruned_are_zero(state, ticket.mask)
    assert any(state[name][mask[name]].any() for name in mask if name not in gone)


def test_a_killed_training_of_a_shallow_network_goes_on_to_the_same_bits(
    make_lab: MakeLab, on_batch: list[Callable[[int], object]]
) -> None:
    whole = make_lab(*NETWORK, *MOMENTUM, runs="whole")
    expected = whole.train(whole.layers.ticket(whole.initial, ["stages.0.1"]))
    stop = StopFlag()
    lab = make_lab(*NETWORK, *MOMENTUM, stop=stop)
    on_batch.append(lambda step: setattr(stop, "signum", 15) if step == 13 else None)
    with pytest.raises(Interrupted):
        lab.train(lab.layers.ticket(lab.initial, ["stages.0.1"]))
    on_batch.clear()
    again = make_lab(*NETWORK, *MOMENTUM)
    found = again.train(again.layers.ticket(again.initial, ["stages.0.1"]), keep=[20])
    assert_same_bits(found.state.tensors(), expected.state.tensors())
    assert found.key == expected.key
    kept: State = found.at(20).tensors()
    assert set(kept) == set(expected.state.tensors())


# -- controls ---------------------------------------------------------------------------------------------------------


def test_controls_remove_as_many_other_units(make_lab: MakeLab) -> None:
    lab = make_lab(*NETWORK)
    _, _, two = rounds(lab)
    for kind in ("random", "shuffle", "invert", "reinit"):
        control = run_control(lab, two, kind, 0)
        assert len(control.ticket.removed) == 2
        assert control.units is not None
        assert control.units.kept == 2
        assert (control.ticket.step, control.ticket.steps) == (two.ticket.step, two.ticket.steps)
    assert not set(run_control(lab, two, "invert", 0).ticket.removed) & set(two.ticket.removed)  # 2 of 4
    assert run_control(lab, two, "reinit", 0).ticket.removed == two.ticket.removed
    draws = {lab.layers.control(two.ticket, "random", copy, 2).removed for copy in range(12)}
    assert len(draws) > 2
    assert all(set(draw) != set(two.ticket.removed) for draw in draws)


def test_the_shuffled_control_removes_as_many_units_of_each_stage(make_lab: MakeLab) -> None:
    lab = make_lab("model=resnet20", "model.depth=26", "model.width=4")  # 4 blocks a stage, 10 of them removable
    ticket = lab.layers.ticket(lab.initial, ["stages.0.0", "stages.1.2", "stages.1.3", "stages.2.1"])
    drawn = {lab.layers.control(ticket, "shuffle", copy, 1).removed for copy in range(10)}
    assert len(drawn) > 2
    for removed in drawn:
        assert sorted(unit[7] for unit in removed) == ["0", "1", "1", "2"]
        assert removed != ticket.removed


def test_controls_stay_among_the_units_that_may_go(make_lab: MakeLab) -> None:
    lab = make_lab(*NETWORK)
    _, one = rounds(lab, remove=[1], among=["stages.0.*"])
    drawn = {lab.layers.control(one.ticket, "random", copy, 1).removed for copy in range(4)}
    assert drawn == {tuple({"stages.0.0", "stages.0.1"} - set(one.ticket.removed))}


def test_at_once_every_ticket_comes_from_the_dense_network(make_lab: MakeLab) -> None:
    """Learning-rate rewinding: the trained dense weights go on, in each round anew; iteratively, the ticket's."""
    for iterative in (False, True):
        lab = make_lab(*NETWORK, "rewind=lr", "rewind.to=7it", "rewind.order=keep")
        dense, one, two = rounds(lab, iterative=iterative)
        assert one.ticket.state == dense.trained.state
        assert two.ticket.state == (one if iterative else dense).trained.state
        assert two.ticket.order_step == (53 if iterative else 30)


@pytest.mark.slow
def test_a_ticket_scored_at_init_was_rewound_to_step_0(make_lab: MakeLab) -> None:
    lab = make_lab(*NETWORK, "prunable=no_fc", "criterion=magnitude")
    assert [round.rewound for round in rounds(lab, scored="init")] == [None, 0, 0]
    assert [round.rewound for round in FilterTickets(scored="init")(lab)] == [None, 0]


def test_an_unknown_unit_is_refused(make_lab: MakeLab) -> None:
    lab = make_lab(*NETWORK)
    with pytest.raises(LotteryError, match=r"no removable unit 'stages\.9\.9'; there are stages\.0\.0, "):
        lab.layers.ticket(lab.initial, ["stages.9.9"])


# -- the study --------------------------------------------------------------------------------------------------------


@pytest.fixture
def study(tmp_path: Path) -> Callable[..., tuple[Path, list[dict[str, object]]]]:
    def run(*overrides: str) -> tuple[Path, list[dict[str, object]]]:
        from lottery.compose import composed

        cfg: DictConfig = composed([*QUIET, *NETWORK, f"paths.runs={tmp_path / 'runs'}", *overrides])
        made = Study(cfg)
        return made.folder.path, made.run()

    return run


def test_a_study_records_its_units(study: Callable[..., tuple[Path, list[dict[str, object]]]]) -> None:
    folder, rows = study("method=layers", "layer_criterion=l1", "method.remove=[1,3]", "controls.random=1")
    assert [(row["round"], row["control"]) for row in rows] == [
        (0, None), (1, None), (1, "random"), (2, None), (2, "random"),
    ]  # fmt: skip
    for row in rows:
        name = f"round_{row['round']:03d}" + (f".{row['control']}-0" if row["control"] else "")
        units = Mask.load(folder / "masks" / f"{name}.units.safetensors")
        assert list(units) == CANDIDATES
        assert [unit for unit in units if not units[unit].item()] == row["removed_units"]
        mask = Mask.load(folder / "masks" / f"{name}.safetensors")
        assert mask.kept == row["kept"]
        assert row["prunable"] == rows[0]["kept"]
        assert row["collapsed_layers"] == []
        layers = json.loads(json.dumps(row["layer_density"]))
        assert {layer for layer, density in layers.items() if density == 0} == {
            f"{unit}.conv{i}.weight" for unit in row["removed_units"] for i in (1, 2)
        }
    again_folder, again = study("method=layers", "layer_criterion=l1", "method.remove=[1,3]", "controls.random=1")
    assert again_folder == folder
    assert again == rows


@pytest.mark.slow
def test_probes_measure_layer_tickets_as_they_are(study: Callable[..., tuple[Path, list[dict[str, object]]]]) -> None:
    """Calibration and robustness are those of the shallow network, whose own test loss the row has."""
    options = ["method=layers", "layer_criterion=kl", "method.criterion.per_class=1", "method.remove=[3]"]
    _, (_, ticket) = study(*options, "probes=[quality,robustness,light]", "probes.gradient_norm.per_class=1")
    assert ticket["probe/nll"] == pytest.approx(ticket["test_loss"], rel=1e-5)
    assert ticket["probe/density_effective"] == pytest.approx(ticket["density"])  # what is left is connected


@pytest.mark.slow
def test_where_no_removed_weight_is_prunable_there_are_controls_and_measurements_all_the_same(
    study: Callable[..., tuple[Path, list[dict[str, object]]]],
) -> None:
    options = ["method=layers", "layer_criterion=l1", "method.remove=[1,2]", "method.scored=init", "controls.random=1"]
    probes = ["probes=quality", "probes.gradient_norm.per_class=1"]
    _, rows = study(*options, *probes, "prunable.exclude=['stages.0*','stages.1.1*','stages.2.1*']")
    assert [(row["round"], row["control"]) for row in rows] == [
        (0, None),
        *[(k, c) for k in (1, 2) for c in (None, "random")],
    ]
    assert {row["density"] for row in rows} == {1.0}
    tickets = [row["probe/gradient_norm_start"] for row in rows if not row["control"]]
    assert len(set(tickets)) == 3


@pytest.mark.slow
def test_seeds_are_compared_by_the_number_of_removed_units(
    study: Callable[..., tuple[Path, list[dict[str, object]]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their densities differ, as other units have other sizes."""
    monkeypatch.chdir(tmp_path)  # where the figure goes
    runs = [study("method=layers", "layer_criterion=random", "method.remove=[1,2]", f"seed={seed}") for seed in (0, 1)]
    assert runs[0][1][2]["density"] != runs[1][1][2]["density"]
    outcome = call("compare", *(str(folder) for folder, _ in runs))
    assert outcome.status == 0, outcome.err
    assert f"{100 * runs[0][1][2]['density']:.1f}" in outcome.out


def test_weights_that_may_not_be_pruned_leave_with_their_unit(
    study: Callable[..., tuple[Path, list[dict[str, object]]]],
) -> None:
    """density_weights counts all convolution and linear weights that are left."""
    _, rows = study("method=layers", "layer_criterion=l1", "method.remove=[4]", "prunable.exclude=['*conv2*']")
    widths = {"stages.0.0": 4, "stages.0.1": 4, "stages.1.1": 8, "stages.2.1": 16}
    gone = sum(2 * 9 * width**2 for width in widths.values())
    stages = [4 * 4 * 9 * 4, 4 * 8 * 9 + 8 * 8 * 9 * 3 + 4 * 8, 8 * 16 * 9 + 16 * 16 * 9 * 3 + 8 * 16]
    total = 4 * 9 + sum(stages) + 16 * 10
    assert rows[0]["density_weights"] == 1
    assert rows[1]["density_weights"] == pytest.approx((total - gone) / total)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["layer_criterion=l1", "method.remove=[5]"], "method.remove: got 5, expected at most 4, .*stages.0.0"),
        (["layer_criterion=l1", "method.remove=[2,1]"], r"method.remove: got \[2, 1\]"),
        (["layer_criterion=l1", "method.scored=start"], "method.scored: got 'start', expected trained or init"),
        (["layer_criterion=l1", "method.among=['*.attn']"], r"method.among: got '\*.attn', .*stages.0.0"),
        (["layer_criterion=l1", "method.scored=init", "method.iterative=true"], "method.iterative: got True"),
        ([], "method.criterion: nothing chosen; choose one with layer_criterion=NAME"),
        (
            ["layer_criterion=l1", "method.iterative=true", "rewind=lr", "controls.random=1"],
            "controls.random: got 1, expected 0 with method.iterative=true and rewind.weights=keep",
        ),
        (
            ["layer_criterion=l1", "method.remove=[4]", "prunable.exclude=[conv1,fc,'stages.1.0*','stages.2.0*']"],
            "method.remove: got 4, expected less than 4, or nothing prunable would be left",
        ),
        (["layer_criterion=snip", ONE, "method.criterion.agg=median"], "method.criterion.agg: got 'median', expected"),
        (["layer_criterion=pls", ONE, "method.criterion.of=input"], "method.criterion.of: got 'input', expected"),
        (["layer_criterion=l1", "model=mlp"], "model: has no removable units"),
        (["layer_criterion=snip", "method.criterion.per_class=1000"], "method.criterion.per_class: got 1000"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path: Path, overrides: list[str], expected: str) -> None:
    network = () if "model=mlp" in overrides else NETWORK
    outcome = call(*QUIET, *network, "method=layers", f"paths.runs={tmp_path / 'runs'}", *overrides)
    assert outcome.status == 2, outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
    assert re.search(expected, outcome.err), outcome.err
    assert not (tmp_path / "runs").exists()


# -- filters ----------------------------------------------------------------------------------------------------------


def test_filter_tickets_lose_the_same_share_of_every_layer(make_lab: MakeLab) -> None:
    lab = make_lab(*NETWORK, "prunable=no_fc", "criterion=magnitude")
    dense, ticket = FilterTickets(density=0.5, scored="trained")(lab)
    assert ticket.ticket.silent
    assert ticket.ticket.step == 7
    state = dense.trained.state.tensors()
    for name, kept in ticket.mask.items():
        filters = kept.flatten(1)
        assert torch.equal(filters.any(1), filters.all(1))
        assert int(filters.all(1).sum()) == len(kept) // 2
        means = state[name].abs().double().flatten(1).mean(1)
        assert means[filters.all(1)].min() >= means[~filters.all(1)].max()
    trained = ticket.trained.state.tensors()
    gone = ~ticket.mask["stages.1.1.conv1.weight"].flatten(1).any(1)
    assert not trained["stages.1.1.bn1.bias"][gone].any()
    start = Bench(lab).start_network(ticket.ticket).state_dict()
    assert not start["stages.1.1.bn1.weight"][gone].any()  # as the training begins
    assert start["stages.1.1.bn1.weight"][~gone].all()


def test_controls_of_filter_tickets_have_whole_filters(make_lab: MakeLab) -> None:
    lab = make_lab(*NETWORK, "prunable=no_fc", "criterion=magnitude")
    _, ticket = FilterTickets(density=0.5)(lab)
    control = run_control(lab, ticket, "random", 0).mask
    assert control != ticket.mask
    assert control.layer_kept == ticket.mask.layer_kept
    assert all(torch.equal(kept.flatten(1).any(1), kept.flatten(1).all(1)) for kept in control.values())


def test_a_study_of_filter_tickets_names_layers_that_have_no_filters(tmp_path: Path) -> None:
    outcome = call(*QUIET, *NETWORK, "method=filters", f"paths.runs={tmp_path / 'runs'}")
    assert outcome.status == 2
    assert re.search("prunable.exclude: 'fc.weight' is no convolution and has no filters", outcome.err), outcome.err
    assert not (tmp_path / "runs").exists()
