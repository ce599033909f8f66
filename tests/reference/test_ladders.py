"""The density ladders of iterative pruning, counted by pruning, against the published and the closed-form numbers.

Numbers: computed in float64 from the formulas of docs/methods/imp.md; the
densities are those that Frankle & Carbin 2019 (LTH) print on their x-axes. Only the counts matter, so the scores are
random and the shapes are written out here.
"""

from __future__ import annotations

import pytest
import torch

from lottery.pruning.prune import prune
from lottery.ticket import Mask

Shapes = dict[str, tuple[int, ...]]

LENET: Shapes = {"fc1.weight": (300, 784), "fc2.weight": (100, 300), "output.weight": (10, 100)}
LENET_RATES = {"output": 0.1}  # LTH Fig. 2: fully connected 20 %, output layer at half of it
# CIFAR-10 halves twice a side by pooling: 16 x 16 after one pool (Conv-2), 8 x 8 after two (Conv-4).
CONV2: Shapes = {"conv1.weight": (64, 3, 3, 3), "conv2.weight": (64, 64, 3, 3), "fc1.weight": (256, 16 * 16 * 64)}
CONV4: Shapes = {"conv1.weight": (64, 3, 3, 3), "conv2.weight": (64, 64, 3, 3), "conv3.weight": (128, 64, 3, 3)}
CONV4 |= {"conv4.weight": (128, 128, 3, 3), "fc1.weight": (256, 8 * 8 * 128)}
HEAD: Shapes = {"fc2.weight": (256, 256), "output.weight": (10, 256)}
CONV2, CONV4 = CONV2 | HEAD, CONV4 | HEAD
CONV_RATES = {"conv*": 0.1, "output": 0.1}  # LTH Fig. 2: convolutions 10 %, fully connected 20 %, output 10 %

# CIFAR ResNet-20: a first convolution and three stages of three blocks; 1x1 shortcuts open stages two and three.
RESNET20: Shapes = {"conv.weight": (16, 3, 3, 3)}
for _stage, (_width, _before) in enumerate([(16, 16), (32, 16), (64, 32)]):
    for _block in range(3):
        _first = _before if _block == 0 else _width
        RESNET20[f"s{_stage}.{_block}.conv1.weight"] = (_width, _first, 3, 3)
        RESNET20[f"s{_stage}.{_block}.conv2.weight"] = (_width, _width, 3, 3)
SHORTCUTS_AND_FC: Shapes = {"s1.0.shortcut.weight": (32, 16, 1, 1), "s2.0.shortcut.weight": (64, 32, 1, 1)}
SHORTCUTS_AND_FC |= {"fc.weight": (10, 64)}


def count(shapes: Shapes) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes.values())


def ladder(shapes: Shapes, rounds: int, rate: float = 0.2, **options: object) -> list[Mask]:
    """The masks of `rounds` rounds of pruning by random scores, drawn anew each round; entry 0 is dense."""
    generator = torch.Generator().manual_seed(0)
    masks = [Mask.ones({name: torch.Size(shape) for name, shape in shapes.items()})]
    for _ in range(rounds):
        # float64: among a few million float32 draws some would be equal, and a value cutoff drops those together.
        scores = {name: torch.rand(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
        masks.append(prune(masks[-1], scores, rate, **options))  # type: ignore[arg-type]
    return masks


def test_lenet_counts() -> None:
    masks = ladder(LENET, 20, scope="layer", rates=LENET_RATES)
    assert masks[0].kept == 266_200
    known = {1: 213_060, 2: 170_538, 3: 136_511, 7: 56_094, 9: 35_981, 15: 9_537, 18: 4_928, 20: 3_179}
    assert {k: masks[k].kept for k in known} == known
    assert list(masks[7].layer_kept.values()) == [49_325, 6_291, 478]


def test_lenet_closed_form_is_lth_axis() -> None:
    masks = ladder(LENET, 20, scope="layer", rates=LENET_RATES)
    for k, mask in enumerate(masks):
        assert mask.density == pytest.approx((265_200 * 0.8**k + 1_000 * 0.9**k) / 266_200, abs=2e-5)
    printed = {3: 51.28, 7: 21.07, 9: 13.52, 15: 3.58, 18: 1.85, 20: 1.19}
    assert {k: round(100 * masks[k].density, 2) for k in printed} == printed


def test_lenet_glth_switch() -> None:
    masks = ladder(LENET, 20, scope="layer", rates=LENET_RATES, count="glth")
    assert (masks[7].kept, masks[20].kept) == (56_081, 3_160)


def test_lenet_openlth_switch() -> None:
    """OpenLTH never prunes the output layer, but counts its 1,000 weights, both in the total and in what to prune."""
    hidden = {name: shape for name, shape in LENET.items() if name != "output.weight"}
    output = count(LENET) - count(hidden)
    masks = ladder(hidden, 20, count="openlth", ignored=output)
    known = {1: 212_959, 3: 136_291, 7: 55_820, 20: 3_062}
    assert {k: masks[k].kept + output for k in known} == known


@pytest.mark.parametrize(
    ("shapes", "size", "printed"),
    [(CONV2, 4_300_992, {11: 8.81, 14: 4.57}), (CONV4, 2_425_024, {11: 11.06, 12: 9.18})],
    ids=["conv2", "conv4"],
)
def test_conv_is_lth_axis(shapes: Shapes, size: int, printed: dict[int, float]) -> None:
    masks = ladder(shapes, max(printed), scope="layer", rates=CONV_RATES)
    assert masks[0].kept == size
    slow = count({name: shape for name, shape in shapes.items() if "conv" in name or "output" in name})
    for k, mask in enumerate(masks):
        assert mask.density == pytest.approx((slow * 0.9**k + (size - slow) * 0.8**k) / size, abs=1e-5)
    assert {k: round(100 * masks[k].density, 2) for k in printed} == printed


def test_resnet20_density_weights_is_lth_axis() -> None:
    """LTH prunes the 3x3 convolutions globally and prints kept / all weights, shortcuts and classifier included."""
    never = count(SHORTCUTS_AND_FC)
    total = count(RESNET20) + never
    assert (never, total) == (3_200, 270_896)
    masks = ladder(RESNET20, 10, scope="global")
    density_weights = [(mask.kept + never) / total for mask in masks]
    for k, density in enumerate(density_weights):
        assert density == pytest.approx((3_200 + 267_696 * 0.8**k) / 270_896, abs=1e-5)
    printed = {4: 41.66, 6: 27.09, 7: 21.91, 10: 11.79}
    assert {k: round(100 * density_weights[k], 2) for k in printed} == printed
