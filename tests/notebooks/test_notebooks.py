"""The notebooks: each is executed from runs made here, and saved with outputs of real data, beside its source."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from paper_scale import make

from lottery import papers

pytest.importorskip("jupytext", reason="needs the extra `notebooks`")
pytest.importorskip("nbclient", reason="needs the extra `notebooks`")

import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.util import run_sync

FOLDER = Path(__file__).parents[2] / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "execute")
FIGURES = {  # at least: what each draws at its smallest scale
    "lth": 6, "stabilizing": 3, "lmc": 2, "rewinding": 1,
    "random_pruning": 4, "bip": 3, "jackpots": 3, "layer_tickets": 2, "dynamic": 3,
}  # fmt: skip


def _execute() -> ModuleType:
    spec = importlib.util.spec_from_file_location("notebooks_execute", FOLDER / "execute.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


execute = _execute()


def saved(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.ipynb").read_text())


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook["cells"] for output in cell.get("outputs", ())]


def texts(notebook: Any) -> list[str]:
    """What the outputs say; images are left out."""
    found = []
    for output in outputs(notebook):
        kinds = {"stream": output["text"]} if "text" in output else output["data"]
        found += ["".join(text) for kind, text in kinds.items() if kind != "image/png"]
    return found


def test_every_paper_with_a_sweep_has_a_notebook():
    further = {"lth_conv2": "lth", "rewinding_resnet": "rewinding"}  # sweeps of other networks, from the same papers
    assert sorted({further.get(name, name) for name in papers.names()}) == NAMES == sorted(FIGURES)


@pytest.mark.parametrize("name", NAMES)
def test_the_saved_notebook_has_the_cells_of_its_source(name):
    source = execute.read(FOLDER / f"{name}.py")
    cells = saved(name)["cells"]
    assert [(cell["cell_type"], "".join(cell["source"])) for cell in cells] == [
        (cell.cell_type, cell.source) for cell in source.cells
    ]
    assert [cell["id"] for cell in cells] == [cell.id for cell in source.cells]


def test_committed_outputs_are_not_overwritten_unasked(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["execute.py", NAMES[0]])
    with pytest.raises(SystemExit) as ended:
        execute.main()
    assert ended.value.code == 2
    assert "one of the arguments --out --in-place is required" in capsys.readouterr().err


def test_a_saved_notebook_says_which_scale_it_shows():
    notebook = execute.read(FOLDER / f"{NAMES[0]}.py")
    execute.say_scale(notebook, "small")
    assert texts(notebook) == ["The outputs below are of scale small."]
    execute.say_scale(notebook, "")
    assert texts(notebook) == ["The outputs below are of runs that were given."]
    scales = {name: texts(saved(name))[0] for name in NAMES}
    assert scales.pop("lth") == "The outputs below are of runs that were given."
    assert set(scales.values()) == {"The outputs below are of scale small."}


@pytest.mark.parametrize("name", NAMES)
def test_the_saved_notebook_was_executed_from_its_beginning_without_an_error(name):
    notebook = saved(name)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert {output["output_type"] for output in outputs(notebook)} <= {"execute_result", "display_data"}, "no warnings"
    assert sum("image/png" in output.get("data", ()) for output in outputs(notebook)) >= FIGURES[name]


@pytest.mark.parametrize("name", NAMES)
def test_the_saved_outputs_are_of_real_data_and_several_seeds(name):
    table = next(text for text in texts(saved(name)) if "trainings" in text and "seeds" in text)
    assert re.search(r"on (MNIST|Fashion-MNIST|CIFAR-10)\b", table)
    assert "MNIST-1D" not in table
    assert "digits" not in table
    assert "0, 1, 2" in table


@pytest.mark.parametrize("name", NAMES)
def test_the_saved_notebook_says_what_agrees(name):
    table = texts(saved(name))[-1]
    assert all(word in table for word in ("claim", "published", "here", "holds_in", "agrees"))
    assert "yes" in table


@pytest.mark.parametrize("name", NAMES)
def test_the_saved_notebook_is_small_and_names_no_folder_of_a_machine(name):
    path = FOLDER / f"{name}.ipynb"
    assert path.stat().st_size < 400_000
    private = re.compile(r"(?<![\w.])/(home|root|tmp|work|Users|scratch|mnt)/")
    assert not [text for text in texts(saved(name)) if private.search(text)]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_says_which_command_makes_its_runs_and_what_they_cost(name):
    words = "\n".join(cell.source for cell in execute.read(FOLDER / f"{name}.py").cells if cell.cell_type == "markdown")
    assert f"python -m lottery paper {name} --scale small" in words
    assert f"python -m lottery paper {name} --scale paper --launcher slurm" in words
    assert f"](../experiments/{name})" in words
    costs = texts(saved(name))[1]
    for scale in papers.load(name).scales.values():
        assert scale.cost in costs


@pytest.fixture
def emptied(tmp_path, monkeypatch):
    """Empties the namespace of the one kernel, in `tmp_path`, that executes notebooks: others would import again."""
    monkeypatch.delenv("LOTTERY_DATA", raising=False)
    manager = AsyncKernelManager(kernel_name="python3")
    run_sync(manager.start_kernel)(cwd=str(tmp_path))
    monkeypatch.setattr(execute, "NotebookClient", partial(NotebookClient, km=manager))
    reset = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("%reset -f")])
    yield lambda: execute.NotebookClient(reset).execute()
    run_sync(manager.shutdown_kernel)(now=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_from_nothing_and_draws_the_largest_scale(name, tmp_path, emptied, monkeypatch):
    notebook = execute.execute(execute.read(FOLDER / f"{name}.py"), tmp_path, timeout=300, SCALE="smoke", RUNS=[])
    printed = "".join(output["text"] for output in outputs(notebook) if output["output_type"] == "stream")
    missing = len(papers.jobs(papers.load(name), "smoke"))
    assert [line.partition("]")[0] for line in printed.splitlines()] == [
        f"[{k}/{missing}" for k in range(1, missing + 1)
    ], "what is run, and no warning"
    assert sum("image/png" in output.get("data", ()) for output in outputs(notebook)) >= FIGURES[name]
    assert len(list((tmp_path / "figures" / name).glob("*.svg"))) >= FIGURES[name]
    assert list((tmp_path / "runs" / name).glob("*/rounds.jsonl"))
    execute.check_portable(notebook, [tmp_path])

    made = make(name, tmp_path / "runs", tmp_path / "paper")
    emptied()
    largest = execute.execute(execute.read(FOLDER / f"{name}.py"), tmp_path, timeout=300, SCALE="paper", RUNS=["paper"])
    assert {output["output_type"] for output in outputs(largest)} <= {"execute_result", "display_data"}, "no warnings"
    counted = next(text for text in texts(largest) if "trainings" in text and "seeds" in text)
    assert made >= 4
    assert "CIFAR-10" in counted
    if name == "rewinding":  # the cheapest one: of the same runs it is the same, output for output
        monkeypatch.setattr(execute, "NotebookClient", NotebookClient)  # in processes of their own
        again = execute.execute(execute.read(FOLDER / f"{name}.py"), tmp_path, SCALE="smoke", RUNS=[])
        drawn = [[each for each in outputs(one) if "image/png" in each.get("data", ())] for one in (notebook, again)]
        assert drawn[0] == drawn[1]
        assert outputs(again)[-1] == outputs(notebook)[-1]
        given = execute.execute(execute.read(FOLDER / f"{name}.py"), tmp_path, SCALE="paper", RUNS=["runs/rewinding/*"])
        assert outputs(given)[-1] == outputs(again)[-1]


@pytest.mark.slow
def test_the_parameters_are_those_of_the_source_again_once_it_was_run(tmp_path):
    path = tmp_path / "tiny.py"
    cells = ['# %% tags=["parameters"]\nSCALE = "smoke"', "# %%\nprint(SCALE)"]
    path.write_text("\n\n".join(cells) + "\n")
    notebook = execute.execute(execute.read(path), tmp_path, SCALE="small")
    assert notebook.cells[0].source == 'SCALE = "smoke"'
    assert notebook.cells[1].outputs[0]["text"] == "small\n"
    notebook.cells[1].outputs[0]["text"] = "/far/away/runs/a"
    with pytest.raises(SystemExit, match=r"cell-01: its output names /far/away; let it show names, not paths"):
        execute.check_portable(notebook, [Path("/far/away/runs")])


def test_an_unknown_notebook_is_one_line():
    done = subprocess.run(
        [sys.executable, FOLDER / "execute.py", "lhl"], capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 2
    assert "invalid choice: 'lhl' (choose from" in done.stderr


def test_sources_hold_no_output_and_no_absolute_path():
    for name in NAMES:
        text = (FOLDER / f"{name}.py").read_text()
        ast.parse(text)
        assert not re.search(r"[\"'(]/(home|root|tmp|work)/", text)
