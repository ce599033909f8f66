"""What a training imports, and that nothing is missing for anyone else in its process."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import pytest
from command_line_tools import QUICK, SLOW_IMPORTS, environment

from lottery.data import sources
from lottery.imports import deferred, load, uncollected


def run(program: str, *args: str, cwd: Path) -> str:
    """Run a program in a process of its own, and return what it printed."""
    command = [sys.executable, "-W", "ignore", "-c", program, *args]
    done = subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


# -- a training -------------------------------------------------------------------------------------------------------


def test_a_training_imports_what_it_needs(tmp_path: Path) -> None:
    """At its first step only torch and Lightning are there of what is slow to import."""
    program = f"""
import os, sys
from lottery.__main__ import main
from lottery.methods.imp import IMP
call = IMP.__call__
def until_first_step(self, lab):
    from lottery.training.module import MaskedTraining
    def update(training, step):
        print(*sorted(set({SLOW_IMPORTS}) & set(sys.modules)), flush=True)
        os._exit(0)
    MaskedTraining.update = update
    return call(self, lab)
IMP.__call__ = until_first_step
main(sys.argv[1:])
"""
    sources._mnist1d()  # now it is in the cache folder
    out = run(program, "+exp=imp_rewind", *QUICK, "rewind.to=10it", cwd=tmp_path)
    assert out.splitlines()[-1] == "pytorch_lightning torch"


@pytest.mark.slow
def test_the_rest_of_torchmetrics_is_there_for_whoever_uses_it(tmp_path: Path) -> None:
    """Lightning logs its metrics, they are the classes that Lightning knows, and they draw themselves."""
    program = """
import sys
from lottery.training.lightning import pl
import torch
assert "torchmetrics.classification" not in sys.modules
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import BinaryAccuracy
import torchmetrics
from pytorch_lightning.core import module
assert module.Metric is Metric is torchmetrics.Metric is torchmetrics.metric.Metric
assert module.MetricCollection is MetricCollection is torchmetrics.MetricCollection
assert issubclass(torchmetrics.MeanMetric, Metric)
assert torchmetrics.__version__ == torchmetrics.__about__.__version__
accuracy = BinaryAccuracy()
accuracy.update(torch.ones(3), torch.ones(3))
figure, _ = accuracy.plot()
figure.savefig("accuracy.png")
class Network(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer, self.mean = torch.nn.Linear(1, 1), torchmetrics.MeanMetric()
    def training_step(self, batch, number):
        self.mean.update(2.0)
        self.log("mean", self.mean, on_step=False, on_epoch=True)
        return self.layer(batch).sum()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
trainer = pl.Trainer(max_epochs=1, accelerator="cpu", **quiet)
trainer.fit(Network(), torch.utils.data.DataLoader(torch.ones(4, 1)))
print(trainer.callback_metrics["mean"])
"""
    assert run(program, cwd=tmp_path).splitlines()[-1] == "tensor(2.)"
    assert (tmp_path / "accuracy.png").exists()


# -- a module whose code is deferred ----------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package that counts how often its code runs, with a submodule that needs one of its names."""
    folder = tmp_path / "late"
    folder.mkdir()
    (folder / "__init__.py").write_text("import builtins\nbuiltins.ran += 1\nsize = 3\nfrom late.part import word\n")
    (folder / "part.py").write_text("from late import size\nword = 'a' * size\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("builtins.ran", 0, raising=False)
    yield "late"
    for name in [name for name in sys.modules if name.partition(".")[0] == "late"]:
        del sys.modules[name]


def ran() -> int:
    return vars(sys.modules["builtins"])["ran"]


def test_it_runs_when_it_is_asked_for_what_it_does_not_have(package: str) -> None:
    late = deferred(package, size=2)
    part = import_module("late.part")
    assert (late.size, part.word, ran()) == (2, "aa", 0)
    assert (late.word, late.size, ran()) == ("aa", 3, 1)
    with pytest.raises(AttributeError, match="no attribute 'other'"):
        late.other  # noqa: B018
    load(late)
    assert ran() == 1


def test_a_submodule_can_be_deferred(package: str) -> None:
    late = deferred(package, size=2)
    part = deferred("late.part", word="b")
    from late.part import word  # type: ignore[import-not-found]

    assert (word, late.part, ran()) == ("b", part, 0)
    load(part)
    assert (part.word, ran()) == ("aa", 0)


def test_one_that_is_not_installed_is_an_import_error() -> None:
    with pytest.raises(ImportError, match="No module named 'no_such_package'"):
        deferred("no_such_package")
    assert "no_such_package" not in sys.modules


# -- garbage collection -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_collection_is_as_it_was_afterwards(enabled: bool) -> None:
    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with suppress(KeyError), uncollected():
            assert not gc.isenabled()
            raise KeyError
        assert gc.isenabled() is enabled
        assert gc.get_freeze_count()
    finally:
        gc.unfreeze()
        (gc.enable if before else gc.disable)()
