"""Execute a notebook and save it with its outputs, the same bytes for the same runs.

    python notebooks/execute.py NAME --out FILE.ipynb [--runs FOLDER_OR_PATTERN ...] [--scale smoke]

The source is NAME.py beside this file. Runs and figures go to ./runs and ./figures of where you stand, as with `python
-m lottery paper`. The saved notebook has the sources of NAME.py as they are, whatever runs it was given, and says
below its first code cell which scale it shows. --in-place writes NAME.ipynb beside NAME.py: the committed outputs.
"""

from __future__ import annotations

import argparse
import base64
import io
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).parent
PARAMETERS = "parameters"  # the tag of the cell that says which runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(path.stem for path in HERE.glob("*.py") if path != Path(__file__)))
    parser.add_argument("--runs", nargs="+", default=[], help="run folders or patterns; by default those of the scale")
    parser.add_argument("--scale", help="of the runs; by default smoke, where --runs names none")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path, help="the file to write")
    where.add_argument("--in-place", action="store_true", help="write NAME.ipynb beside NAME.py: the committed outputs")
    given = parser.parse_args()
    runs = [str(Path(path).absolute()) for path in given.runs]
    notebook = execute(read(HERE / f"{given.name}.py"), Path.cwd(), RUNS=runs, SCALE=given.scale or "smoke")
    out = given.out or HERE / f"{given.name}.ipynb"
    check_portable(notebook, [Path.cwd(), *map(Path, runs)])
    say_scale(notebook, given.scale or ("" if runs else "smoke"))
    nbformat.write(notebook, out)
    print(out)


def read(path: Path) -> nbformat.NotebookNode:
    """The notebook of a .py file; its cells are numbered, where Jupyter would give them random names."""
    notebook = jupytext.read(path)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
    return notebook


def execute(
    notebook: nbformat.NotebookNode, folder: Path, timeout: float | None = None, **parameters: object
) -> nbformat.NotebookNode:
    """The notebook with its outputs, run in this folder, the parameters in place of those that its cell sets.

    Raises nbclient's CellExecutionError where a cell fails.
    """
    cell = next(cell for cell in notebook.cells if PARAMETERS in cell.metadata.get("tags", ()))
    source = cell.source
    cell.source = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    client = NotebookClient(
        notebook, timeout=timeout, kernel_name="python3", record_timing=False, resources={"metadata": {"path": folder}}
    )
    client.execute()
    cell.source = source
    shrink(notebook)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def say_scale(notebook: nbformat.NotebookNode, scale: str) -> None:
    """Show below the cell of the parameters which runs the outputs are of: "", or a scale."""
    words = f"The outputs below are of scale {scale}." if scale else "The outputs below are of runs that were given."
    cell = next(cell for cell in notebook.cells if PARAMETERS in cell.metadata.get("tags", ()))
    cell.outputs = [nbformat.v4.new_output("display_data", data={"text/plain": words})]


def shrink(notebook: nbformat.NotebookNode) -> None:
    """Give figures 256 colours, which is all that they have, so that a notebook takes a third of the space."""
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", ()):
                image = Image.open(io.BytesIO(base64.b64decode(output["data"]["image/png"]))).convert("RGB")
                image.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
                    small := io.BytesIO(), "PNG"
                )
                output["data"]["image/png"] = base64.b64encode(small.getvalue()).decode()


def check_portable(notebook: nbformat.NotebookNode, folders: list[Path]) -> None:
    """Exit where an output names a folder of this machine."""
    private = {str(path) for path in (Path.home(), *folders, *(path.parent for path in folders)) if len(path.parts) > 2}
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            text = str(output.get("text", "")) + str({**output.get("data", {}), "image/png": ""})
            if named := sorted(path for path in private if path in text):
                raise SystemExit(f"{cell.id}: its output names {named[0]}; let it show names, not paths")


if __name__ == "__main__":
    main()
