"""A training step reads nothing back from its device: reading makes the processor wait until a GPU is done.

Three checks. The source of every function that a step runs has no call that reads a tensor, also where this step's
branches do not come. A step runs on the meta device, whose tensors have no values, so that reading one is an error,
also by `if tensor`. Where there is a GPU, CUDA itself refuses to wait.
"""

from __future__ import annotations

import ast
import inspect
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import CodeType, FrameType

import pytest
import torch
from torch import Tensor
from training_tools import AUGMENTED, MOMENTUM

import lottery
from lottery.data.imagefolder import FolderDataset, FolderStream
from lottery.methods import bip, bip_released, edge_popup, jackpot
from lottery.ranks import batch_norm
from lottery.ranks.group import Ranks
from lottery.search import rules, top
from lottery.stages.lab import Lab
from lottery.ticket import Mask
from lottery.training.module import MaskedTraining
from lottery.training.progress import Progress
from lottery.training.search import ScoreSearch

STEPS = 8  # so that a second epoch is begun
EVERYTHING = (*MOMENTUM, *AUGMENTED, "optim.clip_norm=0.5", "train.precision=bf16", "train.channels_last=true")
RECIPES = {
    "sgd": (*EVERYTHING, "train.label_smoothing=0.1", "schedule.name=one_cycle", "schedule.warmup=9it"),
    "adam": (*AUGMENTED, "data.padding=reflect", "optim=adam", "train.batch_size=20"),
}


@pytest.fixture(params=RECIPES.values(), ids=list(RECIPES))
def begin(
    request: pytest.FixtureRequest, make_lab: Callable[..., Lab], half: Callable[..., Mask]
) -> Callable[[str], MaskedTraining]:
    """Begins a training on a device, with neither measurements nor a terminal."""

    def begin(device: str) -> MaskedTraining:
        lab = make_lab(*request.param)
        ticket = replace(lab.initial, mask=half(lab.initial.mask))
        # The meta device has neither autocast nor fused optimizers; what is inside of them is torch's own affair.
        recipe = replace(lab.recipe, precision="32") if device == "meta" else lab.recipe
        module = MaskedTraining(lab.network(), ticket, recipe, lab.data_on, Progress(0))
        module.measure_when_due = lambda: None  # type: ignore[method-assign]
        module.next_tick = math.inf
        module.to(device)
        plain = torch.optim.SGD(module.network.parameters(), momentum=0.9)
        module.prepare(plain if device == "meta" else module.configure_optimizers())
        return module

    return begin


# -- examples of what the checks must find -----------------------------------------------------------------------------


def item(loss: Tensor) -> object:
    return loss.item()


def number(loss: Tensor) -> object:
    return float(loss.detach())


def truth(loss: Tensor) -> object:
    return bool(loss)


def moved(loss: Tensor) -> object:
    return loss.cpu()


def listed(loss: Tensor) -> object:
    return loss.tolist()


def array(loss: Tensor) -> object:
    return loss.detach().numpy()


def condition(loss: Tensor) -> object:
    return 1 if loss > 0 else 0


CALLS = [item, number, truth, moved, listed, array]


def plant(module: MaskedTraining, example: Callable[[Tensor], object]) -> None:
    """Have the example read the loss of each step."""
    loss = module.loss

    def reading(*batch: object) -> Tensor:
        found = loss(*batch)  # type: ignore[arg-type]
        example(found)
        return found

    module.loss = reading  # type: ignore[method-assign]


# -- the source --------------------------------------------------------------------------------------------------------

Code = tuple[str, int, str]  # a function: its file, first line and name
READS = {"item", "cpu", "tolist", "numpy", "nonzero", "masked_select", "unique", "synchronize"}
CONVERSIONS = {"bool", "float", "int"}
REACHED = {
    "MaskedTraining.update", "MaskedTraining.loss", "MaskedStep.__call__", "TensorStream.batch", "TensorStream._begin_",
    "FlipCrop.__call__", "FlipCrop.draw_", "Order.locate", "LearningRate.__call__", "Alone.mean_loss", "reseed",
}  # fmt: skip
# Functions of a step that one process on a CPU does not run.
ELSEWHERE = [
    Ranks.mean_loss, Ranks.gradient_sum, Ranks.agreement, batch_norm.GlobalNorms.batch_norm, batch_norm._Norm.forward,
    batch_norm._Norm.backward, batch_norm.whole_statistics, FolderStream.batch, FolderDataset.read,
    ScoreSearch.loss_of, ScoreSearch.effective_weights, ScoreSearch.mask_effective_, ScoreSearch.gradient,
    ScoreSearch.move_weights, ScoreSearch.move_further, ScoreSearch.move_scores, ScoreSearch.project,
    ScoreSearch.ranked, top.Top._on_accelerator, top._by_threshold, top.write, rules.TopGroups.__call__,
    rules._group_norms, rules.NM.__call__, rules._pairwise, rules._sorted, bip.BiP.update, bip.hypergradient,
    bip_released.score_gradient, edge_popup.EdgePopup.update, edge_popup.score_gradient, jackpot.Jackpot.update,
    jackpot.score_gradient,
]  # fmt: skip
# What looks like a read, and is right.
HARMLESS = {
    ("MaskedTraining.advance", "loss.item()"),  # twice a second, for the terminal
    ("Ranks.mean_loss", "bool(own)"),  # a whole number
    ("Ranks.agreement", "bool(leave)"),  # a whole number
}


@cache
def tree(file: str) -> ast.AST:
    return ast.parse(Path(file).read_text(encoding="utf-8"))


def reads(code: Code) -> set[tuple[str, str]]:
    """The calls in a function, and in functions within it, that read a tensor's values, or may."""
    found = [node for node in ast.walk(tree(code[0])) if is_at(node, *code[1:])]
    assert found, f"{code}: no such function"
    calls = [each for node in found for each in ast.walk(node) if isinstance(each, ast.Call)]
    return {(code[2], ast.unparse(call)) for call in calls if is_read(call.func)}


def is_at(node: ast.AST, line: int, name: str) -> bool:
    if isinstance(node, ast.Lambda):
        return node.lineno == line and name.endswith("<lambda>")
    if not isinstance(node, ast.FunctionDef):
        return False
    return min([node.lineno, *(each.lineno for each in node.decorator_list)]) == line and name.endswith(node.name)


def is_read(function: ast.expr) -> bool:
    if isinstance(function, ast.Attribute):
        return function.attr in READS
    return isinstance(function, ast.Name) and function.id in CONVERSIONS


def code_of(code: CodeType) -> Code:
    return code.co_filename, code.co_firstlineno, code.co_qualname


def run_by(work: Callable[[], object]) -> set[Code]:
    """Every function of lottery, and of this file, that `work` runs. Comprehensions belong to the function around."""
    files, found = (str(Path(lottery.__file__).parent), __file__), set()

    def profile(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(files):
            found.add(code_of(frame.f_code))

    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
    return {code for code in found if not code[2].endswith(("comp>", "<genexpr>"))}


def all_reads(codes: set[Code]) -> set[tuple[str, str]]:
    return {read for code in codes for read in reads(code)}


def test_no_function_of_a_step_reads_a_tensor(begin: Callable[[str], MaskedTraining]) -> None:
    module = begin("cpu")
    codes = run_by(lambda: module.advance(STEPS))
    assert {name for _, _, name in codes} >= REACHED
    codes |= {code_of(inspect.unwrap(function).__code__) for function in ELSEWHERE}  # type: ignore[attr-defined]
    assert all_reads(codes) == HARMLESS


@pytest.mark.parametrize("example", CALLS)
def test_a_read_in_a_step_would_be_found_in_the_source(
    begin: Callable[[str], MaskedTraining], example: Callable[[Tensor], object]
) -> None:
    module = begin("cpu")
    plant(module, example)
    found = all_reads(run_by(lambda: module.advance(1)))
    assert [name for name, _ in found - HARMLESS] == [example.__name__]


# -- the meta device ---------------------------------------------------------------------------------------------------


def test_a_step_needs_no_values(begin: Callable[[str], MaskedTraining]) -> None:
    module = begin("meta")
    assert len(module.advance(STEPS)) == STEPS
    assert next(module.network.parameters()).is_meta


@pytest.mark.parametrize("example", [*CALLS, condition])
def test_a_read_in_a_step_would_fail_on_the_meta_device(
    begin: Callable[[str], MaskedTraining], example: Callable[[Tensor], object]
) -> None:
    module = begin("meta")
    plant(module, example)
    with pytest.raises((RuntimeError, NotImplementedError, TypeError), match="meta") as caught:
        module.advance(1)
    assert example.__name__ in [entry.name for entry in caught.traceback]


# -- a GPU -------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_cuda_is_not_waited_for(begin: Callable[[str], MaskedTraining]) -> None:
    module = begin("cuda")
    module.advance(1)  # loads kernels, which may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        module.advance(STEPS)
    finally:
        torch.cuda.set_sync_debug_mode("default")
