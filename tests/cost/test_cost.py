"""What networks cost: counts by closed form, memory, counters of energy; and the probe in a study."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import VisionTransformer
from training_tools import SMALL

from lottery.compose import composed
from lottery.cost.counts import counted, multiply_adds, training_memory
from lottery.cost.measure import inference, joules, paired, speed_up, training_step
from lottery.errors import Interrupted
from lottery.models.mlp import mlp
from lottery.models.resnet import resnet
from lottery.models.zoo import from_timm
from lottery.probes.cost import Cost
from lottery.signals import StopFlag
from lottery.stages.bench import Bench
from lottery.stages.lab import Lab
from lottery.stages.round import Round
from lottery.study import Study

CPU = torch.device("cpu")
COMMON = [option for option in SMALL if not option.startswith(("method.", "model=", "probes="))]
RESNET = ["model=resnet20", "model.depth=14", "model.width=8"]


@pytest.mark.parametrize(
    ("depth", "shortcut", "expected"),
    # docs/methods/layers.md: ResNet-32 by either shortcut; of ResNet-56 the share of a block (3.75 %) fits Table 4.
    [(32, "projection", 69_124_736), (32, "pad", 68_862_592), (56, "projection", 69_124_736 + 12 * 4_718_592)],
)
def test_multiply_adds_of_residual_networks(depth: int, shortcut: str, expected: int) -> None:
    network = resnet(shape=(3, 32, 32), classes=10, depth=depth, shortcut=shortcut).eval()
    images = torch.zeros(2, 3, 32, 32)
    assert sum(multiply_adds(network, images).values()) == expected
    assert counted(network, images) == expected


def test_all_operations_are_those_of_layers_and_of_attention() -> None:
    """The two products of a ViT's attention: 2 · tokens² · width a block, which torch 2.14 does not count on a CPU."""
    options = {"patch_size": 4, "depth": 3}
    network = from_timm(shape=(3, 16, 16), classes=10, name="vit_tiny_patch16_224", options=options).eval()
    images = torch.zeros(1, 3, 16, 16)
    tokens, width = 17, 192
    assert counted(network, images) == sum(multiply_adds(network, images).values()) + 3 * 2 * tokens**2 * width


def test_a_vit_in_numbers() -> None:
    """Depth 2, 65 tokens of width 192: 57,706,368 of the layers, and 2 · 2 · 65² · 192 of attention."""
    options = {"patch_size": 4, "depth": 2}
    network = from_timm(shape=(1, 32, 32), classes=10, name="vit_tiny_patch16_224", options=options).eval()
    assert counted(network, torch.zeros(1, 1, 32, 32)) == 57_706_368 + 3_244_800 == 60_951_168


class Doing(nn.Module):
    def __init__(self, operation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        return self.operation(x)


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        (lambda x: x[0] @ x[0].T, 3 * 4 * 3),
        (lambda x: x[0] @ x[0, 0], 3 * 4),
        (lambda x: x[0, 0] @ x[0, 1], 4),
        (lambda x: torch.addmv(x.new_ones(3), x[0], x[0, 0]), 3 * 4),
        (lambda x: torch.addbmm(x.new_ones(3, 3), x, x.mT), 3 * 4 * 3),
        (lambda x: torch.einsum("bij,bkj->bik", x, x), 3 * 4 * 3),
        (lambda x: F.scaled_dot_product_attention(x, x[:, :2], x[:, :2]), 2 * 3 * 2 * 4),
        (lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True), 2 * 3 * 3 * 4),
        (lambda x: torch.cat((x.relu(), x.softmax(1))).mean(0) + x.double(), 0),
    ],
)
def test_products_of_all_kinds_are_counted(operation: Callable[[Tensor], Tensor], expected: int) -> None:
    assert counted(Doing(operation), torch.ones(1, 3, 4)) == expected


def test_what_cannot_be_counted_is_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING", "lottery")
    assert counted(nn.LSTM(4, 5), torch.ones(1, 3, 4)) is None
    assert counted(Doing(lambda x: torch.cdist(x, x)), torch.ones(1, 3, 4)) is None
    assert [record.getMessage().partition(": ")[0] for record in caplog.records] == ["cost_macs_all is null"] * 2
    assert "aten._cdist_forward" in caplog.text


def test_attention_that_is_one_module_counts_too() -> None:
    """torchvision's ViT, whose attention calls no layers and, in evaluation mode, a kernel that no counter knows."""
    tokens, width, hidden, blocks = 17, 32, 64, 2
    options = {"image_size": 32, "patch_size": 8, "num_heads": 2, "num_classes": 10}
    network = VisionTransformer(num_layers=blocks, hidden_dim=width, mlp_dim=hidden, **options).eval()
    images = torch.zeros(2, 3, 32, 32)
    ends = 16 * (3 * 8 * 8) * width + width * 10  # the patches and the classifier
    expected = ends + blocks * tokens * (4 * width**2 + 2 * width * hidden)
    assert sum(multiply_adds(network, images).values()) == expected
    assert counted(network, images) == expected + blocks * 2 * tokens**2 * width
    assert torch.backends.mha.get_fastpath_enabled()


def test_projections_of_keywords_and_of_other_widths() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.MultiheadAttention(4, 2, kdim=6, vdim=10, batch_first=True)

        def forward(self, images: Tensor) -> Tensor:
            return self.inner(images, value=images.new_zeros(1, 5, 10), key=images.new_zeros(1, 5, 6))[0]

    found = multiply_adds(Attention().eval(), torch.zeros(1, 3, 4))
    assert found == {"inner.in_proj": 3 * 4 * 4 + 5 * 6 * 4 + 5 * 10 * 4, "inner.out_proj": 3 * 4 * 4}


def test_memory_is_that_of_weights_optimizer_and_what_backward_needs() -> None:
    """Of an MLP: parameters three times; its input, each activation after ReLU, the log-probabilities, the labels."""
    network = mlp(shape=(1, 1, 20), classes=10, hidden=[30])
    images, labels = torch.randn(8, 1, 1, 20), torch.arange(8)
    parameters = 20 * 30 + 30 + 30 * 10 + 10
    saved = 8 * (20 + 30 + 10)
    found = training_memory(network, images, labels)
    assert 4 * (3 * parameters + saved) <= found <= 4 * (3 * parameters + saved) + 8 * 8 + 64
    assert training_memory(network, torch.randn(80, 1, 1, 20)[:8], labels) == found  # a part of more images
    assert network.training
    assert all(parameter.grad is None for parameter in network.parameters())


def test_half_of_the_blocks_need_less_memory() -> None:
    images, labels = torch.randn(4, 3, 16, 16), torch.arange(4)
    deep, shallow = (resnet(shape=(3, 16, 16), classes=10, depth=depth, width=4) for depth in (32, 14))
    share = training_memory(shallow, images, labels) / training_memory(deep, images, labels)
    assert 0.3 < share < 0.6  # 6 of 15 blocks, and the ends


def test_networks_are_timed_in_turn() -> None:
    calls: list[str] = []
    works = {name: (lambda name=name: calls.append(name)) for name in ("a", "b")}
    found = paired(works, repeats=3, device=CPU)
    assert calls == ["a", "b"] * 4  # one warms up
    assert [len(found[name]) for name in ("a", "b")] == [3, 3]
    assert all(seconds > 0 for times in found.values() for seconds in times)


def test_a_speed_up_is_the_median_of_those_within_repeats() -> None:
    """A machine that is slow for a while is so for both."""
    assert speed_up([2.0, 20.0, 2.2], [1.0, 10.0, 1.0]) == 2.0


def test_timing_leaves_the_weights_alone() -> None:
    network = resnet(shape=(1, 8, 8), classes=10, depth=8, width=4)
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    training_step(network, torch.randn(4, 1, 8, 8), torch.arange(4))()
    inference(network, torch.randn(4, 1, 8, 8))()
    assert all(torch.equal(parameter, before[name]) for name, parameter in network.named_parameters())


# -- energy -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def powercap(tmp_path: Path) -> Callable[..., Path]:
    """A tree as Linux shows it: packages, a part of one, the whole board (2), and how far a counter goes."""

    def make(**counters: int) -> Path:
        for name, value in counters.items():
            folder = tmp_path / f"intel-rapl:{name.removeprefix('package').replace('_', ':')}"
            folder.mkdir()
            (folder / "name").write_text("psys\n" if name == "package2" else f"package-{name[-1]}\n")
            (folder / "energy_uj").write_text(f"{value}\n")
            (folder / "max_energy_range_uj").write_text("10000000\n")
        return tmp_path

    return make


def test_energy_is_that_of_all_packages_and_not_of_their_parts_again(powercap: Callable[..., Path]) -> None:
    root = powercap(package0=1_000_000, package1=9_500_000, package0_0=5, package2=7)

    def work() -> None:
        for name, value in {
            "0": 3_500_000,
            "1": 500_000,
            "0:0": 9_000_000,
            "2": 9_500_000,
        }.items():  # of package 1 it began anew
            (root / f"intel-rapl:{name}" / "energy_uj").write_text(f"{value}\n")

    assert joules(work, CPU, root) == pytest.approx(2.5 + 1.0)


@pytest.mark.usefixtures("undrawn")
def test_without_a_counter_nothing_is_made_up(tmp_path: Path) -> None:
    assert joules(lambda: pytest.fail("there was nothing to measure"), CPU, tmp_path) is None


# -- the probe --------------------------------------------------------------------------------------------------------


def rows(tmp_path: Path, *overrides: str) -> tuple[list[dict[str, Any]], str]:
    cfg = composed([*COMMON, f"paths.runs={tmp_path}", "probes=cost", "probes.cost.repeats=1", *overrides])
    study = Study(cfg)
    found = study.run()
    return found, (study.folder.path / "study.log").read_text()


@pytest.mark.slow
def test_the_probe_shows_the_shallow_network_beside_the_dense_one(tmp_path: Path) -> None:
    layers = ["method=layers", "layer_criterion=l1", "method.remove=[2]", "controls.random=1"]
    (dense, ticket, control), log = rows(tmp_path, *RESNET, *layers)
    shape = (1, 8, 8)
    whole = resnet(shape=shape, classes=10, depth=14, width=8)
    block = 2 * 9 * 8**2 * 8 * 8  # multiply-adds, whichever stage
    macs = sum(multiply_adds(whole.eval(), torch.zeros(1, *shape)).values())
    assert dense["probe/cost_macs"] == macs
    assert "probe/cost_dense_macs" not in dense
    for row in (ticket, control):
        assert row["probe/cost_dense_macs"] == macs
        assert row["probe/cost_macs"] == macs - 2 * block
        assert row["probe/cost_macs_share"] == pytest.approx(1 - 2 * block / macs)
        assert row["probe/cost_parameters_share"] < 1
        assert row["probe/cost_memory_share"] < 1
        assert row["probe/cost_step_speedup"] > 0
        assert row["probe/cost_unstructured"] == 0
    assert dense["probe/cost_parameters"] == sum(parameter.numel() for parameter in whole.parameters())
    assert f"{100 * (1 - 2 * block / macs):.1f}% of the multiply-adds" in log
    again, _ = rows(tmp_path, *RESNET, *layers)
    assert json.loads(json.dumps(again)) == json.loads(json.dumps([dense, ticket, control]))  # measured once


def test_whole_filters_are_taken_out_before_measuring(tmp_path: Path) -> None:
    pytest.importorskip("torch_pruning")
    layers = "prunable.exclude=[conv1,'*.conv2','*shortcut*',fc]"
    (_, ticket), _ = rows(tmp_path, *RESNET, "method=filters", "method.density=0.5", layers)
    assert 0.4 < ticket["probe/cost_macs_share"] < 0.6
    assert ticket["probe/cost_parameters_share"] < 0.6


def test_of_single_weights_it_says_that_nothing_gets_faster(tmp_path: Path) -> None:
    (_, ticket), log = rows(tmp_path, "model=mlp", "method.rounds=1")
    assert ticket["probe/cost_unstructured"] == 1
    assert ticket["probe/cost_macs_share"] == 1
    assert "no dense kernel gets faster" in log


def test_a_ticket_that_is_the_dense_network_stands_beside_it(tmp_path: Path) -> None:
    """No unit removed (specs, T6.5): the same state as round 0's, and yet a comparison."""
    layers = ["method=layers", "layer_criterion=l1", "method.remove=[0]"]
    dense, ticket = rows(tmp_path, *RESNET, *layers)[0]
    assert ticket["weights_digest"] == dense["weights_digest"]
    assert ticket["probe/cost_macs_share"] == ticket["probe/cost_memory_share"] == 1
    assert ticket["probe/cost_step_speedup"] > 0


def test_what_is_measured_draws_nothing_from_the_studys_noise(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab("model.dropout=0.5")
    dense = Round(0, lab.initial, lab.train(lab.initial))
    before = torch.get_rng_state()
    Cost(repeats=1)(dense, None, Bench(lab, [dense]))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_signal_ends_the_measuring(make_lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch) -> None:
    stop = StopFlag()
    lab = make_lab(stop=stop)
    dense = Round(0, lab.initial, lab.train(lab.initial))
    monkeypatch.setattr("lottery.cost.counts.training_memory", lambda *_: setattr(stop, "signum", signal.SIGTERM))
    with pytest.raises(Interrupted, match="while a network was measured"):
        Cost(repeats=1)(dense, None, Bench(lab, [dense]))
    assert not list((lab.store.root / "evaluate").glob("*/DONE"))


def test_filters_that_cannot_be_taken_out_are_said_to_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("lottery.probes.cost", "lottery.stages.bench"):
        monkeypatch.setattr(f"{module}.find_spec", lambda name: None)
    excluded = "prunable.exclude=[conv1,'*.conv2','*shortcut*',fc]"
    (_, ticket), log = rows(tmp_path, *RESNET, "method=filters", "method.density=0.5", excluded)
    assert ticket["probe/cost_macs_share"] == 1
    assert "removed filters are measured as zeros, since torch-pruning" in log


def test_energy_becomes_emissions_by_a_stated_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lottery.cost.measure.joules", lambda work, device: 3.6)
    (dense,), log = rows(tmp_path, "model=mlp", "method.rounds=0", "probes.cost.grid=500")
    assert "no energy" not in log
    assert dense["probe/cost_joules"] > 0
    assert dense["probe/cost_grams_co2e"] == pytest.approx(dense["probe/cost_joules"] / 3.6e6 * 500)


@pytest.mark.slow
def test_input_channels_that_are_gone_are_taken_out_too(tmp_path: Path) -> None:
    pytest.importorskip("torch_pruning")
    options = ["method=bip", "method.steps=4it", "method.pattern=channel", "method.density=0.5"]
    (_, ticket), _ = rows(tmp_path, *RESNET, *options, "prunable.exclude=[conv1,'*.conv1','*shortcut*',fc]")
    assert ticket["probe/cost_unstructured"] == 0
    assert ticket["probe/cost_macs_share"] < 0.7
