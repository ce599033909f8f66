"""The report: one file that is complete, safe whatever a configuration says, small, and as right as its run folders."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig
from PIL import Image
from report_tools import HOSTILE, make_row, masked, write_run, write_study

from lottery.errors import ConfigError, LotteryError
from lottery.figures.curves import curves
from lottery.figures.experiments import experiments as experiments_of
from lottery.printing import printable_lines
from lottery.record.masks import read_mask
from lottery.record.table import load_runs
from lottery.report import bundle as bundles
from lottery.report.charts import experiment_chart, training_curves
from lottery.report.command import report, write_report
from lottery.report.markup import Html, embedded, tag
from lottery.report.masks import LEVELS, explorer, thumbnail
from lottery.report.study import ReportedRun, grouped, read_studies
from lottery.study import Study
from lottery.ticket import Mask


@pytest.fixture
def two_seeds(tmp_path: Path) -> Path:
    for seed in range(2):
        write_study(tmp_path / "runs", seed)
    return tmp_path / "runs"


class Parsed(HTMLParser):
    """Elements by name with their attributes, and the text of each script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == name]


def written(runs: Path, out: Path, **options: Any) -> str:
    write_report(runs, out, **options)
    return out.read_text(encoding="utf-8")


def page_data(text: str) -> dict[str, Any]:
    """What the page's script reads."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    return json.loads(found[1])


# -- markup ------------------------------------------------------------------------------------------------------------


@given(st.text(), st.text())
def test_text_and_attributes_come_back_as_they_were(text: str, value: str) -> None:
    text, value = (re.sub(r"[\r\0]", "", each) for each in (text, value))  # which HTML itself does not keep
    found: list[str] = []
    parser = Parsed("")
    parser.handle_data = found.append  # type: ignore[method-assign]
    parser.feed(tag("p", text, title=value))
    parser.close()
    assert parser.elements == [("p", {"title": printable_lines(value)})]
    assert "".join(found) == printable_lines(text)


@given(st.dictionaries(st.text(st.characters(exclude_characters="\\")), st.text() | st.integers() | st.none()))
def test_embedded_json_comes_back_and_cannot_end_its_script(value: dict[str, Any]) -> None:
    text = embedded(value)
    shown = {key: printable_lines(each) if isinstance(each, str) else each for key, each in value.items()}
    assert json.loads(text) == {printable_lines(key): each for key, each in shown.items()}
    assert not set(text) & set("<>&")


def test_a_number_that_is_none_is_null() -> None:
    assert embedded([float("nan"), float("inf"), 0.5]) == "[null,null,0.5]"


def test_only_html_is_not_escaped() -> None:
    assert tag("p", Html("<b>"), "<b>", None, hidden=True, id=None) == "<p hidden><b>&lt;b&gt;</p>"


# -- experiments -------------------------------------------------------------------------------------------------------


def test_seeds_of_one_experiment_are_gathered_and_another_rate_is_another(tmp_path: Path) -> None:
    for seed in (1, 0):
        write_study(tmp_path / "a", seed)
    write_study(tmp_path / "b", 0, optim={"name": "adam", "lr": 0.1})
    found = grouped(read_studies(tmp_path))
    assert [[study.seed for study in each.studies] for each in found] == [[0, 1], [0]]
    assert [each.words for each in found] == [
        "LeNet-300-100 on MNIST, reset to init; optim.lr 0.0012",
        "LeNet-300-100 on MNIST, reset to init; optim.lr 0.1",
    ]


def test_runs_that_differ_in_controls_alone_count_once(tmp_path: Path) -> None:
    write_run(tmp_path / "runs/a", [make_row(0), make_row(1), make_row(1, "reinit")], controls={"reinit": 1})
    write_run(
        tmp_path / "runs/b",
        [make_row(0), make_row(1, **{"probe/ece": 0.1}), make_row(1, "random")],
        controls={"random": 1},
    )
    (only,) = grouped(read_studies(tmp_path / "runs"))
    assert [(each["round"], each["control"]) for each in only.rows] == [
        (0, None),
        (1, None),
        (1, "random"),
        (1, "reinit"),
    ]
    assert only.rows[1]["probe/ece"] == 0.1


def test_densities_of_a_one_shot_method_are_points_of_one_line_and_share_the_dense_network(tmp_path: Path) -> None:
    for seed in range(2):
        for density in (0.05, 0.1):
            sizes = [{"density": each, "density_weights": each} for each in (1.0, density)]
            rows = [make_row(k, test_accuracy=0.9 + seed / 100, **size) for k, size in enumerate(sizes)]
            method = {"_target_": "lottery.methods.bip.BiP", "density": density}
            write_run(tmp_path / "runs" / f"{seed}-{density}", rows, seed, method=method)
    (only,) = grouped(read_studies(tmp_path / "runs"))
    (line,) = experiment_chart(only)["lines"]
    assert line["x"]["density"] == [100, 10, 5]
    assert [n for *_, n in line["y"]["test_accuracy"]] == [2, 2, 2]
    text = written(tmp_path / "runs", tmp_path / "report.html", interactive=False)
    assert len(Parsed(text).all("img")) == 2


def test_lines_are_those_of_the_figures(tmp_path: Path) -> None:
    """The chart's means, ranges and n are those of the static figures."""
    for seed in range(3):
        write_study(tmp_path / "runs", seed, copies=2)
    (experiment,) = grouped(read_studies(tmp_path / "runs"))
    lines = experiment_chart(experiment)["lines"]
    groups = experiments_of(load_runs(tmp_path / "runs"))
    for line, curve in zip(lines, curves(groups, "test_accuracy", "density_weights", "trainings"), strict=True):
        expected = curve.points[::-1].to_numpy() * [100, 100, 100, 100, 1]
        points = zip(line["x"]["density"], line["y"]["test_accuracy"], strict=True)
        found = [(x, *y) for x, y in points]
        assert np.allclose(found, expected)
    assert [line["y"]["test_accuracy"][-1][3] for line in lines] == [3, 6]


def test_training_curves_are_the_tickets_in_per_cent(tmp_path: Path) -> None:
    run = write_study(tmp_path / "runs", 0, rounds=1)
    with (run / "curves.csv").open("a") as file:
        file.write("1,reinit,0,100,validation,9.0,0.1\n1,,0,950,train,0.5,\n")
    (study,) = training_curves(grouped(read_studies(tmp_path / "runs")))
    dense, pruned = study["splits"]["validation"]
    assert (dense["round"], pruned["round"], dense["density"], pruned["density"]) == (
        0,
        1,
        100,
        pytest.approx(80, 0.01),
    )
    assert pruned["step"][::16] == [100, 900]
    assert pruned["accuracy"][::16] == pytest.approx([91, 99])
    assert [line["step"] for line in study["splits"]["train"]] == [[950]]


# -- masks -------------------------------------------------------------------------------------------------------------


def picture(bits: torch.Tensor, edge: int, folder: Path) -> tuple[list[list[int]], float]:
    path = folder / "mask.safetensors"
    Mask({"w": bits}).save(path, round=0, study="s", parent=None)
    layer = thumbnail(read_mask(path), "w", edge)
    return layer.picture.tolist(), layer.fullest


def test_a_thumbnail_shows_which_block_is_kept(tmp_path: Path) -> None:
    bits = torch.zeros(200, 300, dtype=torch.bool)
    bits[:100, :150] = True
    bits[:100, 150:225] = True
    top = LEVELS - 1
    assert picture(bits, 2, tmp_path) == ([[top, (top + 1) // 2], [0, 0]], 1.0)


def test_a_thumbnail_of_filters_averages_kernels(tmp_path: Path) -> None:
    bits = torch.ones(3, 4, 3, 3, dtype=torch.bool)
    bits[1] = False
    top = LEVELS - 1
    assert picture(bits, 8, tmp_path) == ([[top] * 4, [0] * 4, [top] * 4], 1.0)
    assert picture(torch.zeros(3, 4, dtype=torch.bool), 8, tmp_path) == ([[0] * 4] * 3, 0.0)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.integers(0, 99))
def test_a_thumbnail_says_where_nothing_is_kept(
    tmp_path_factory: pytest.TempPathFactory, rows: int, columns: int, edge: int, seed: int
) -> None:
    bits = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < 0.05
    shades, fullest = picture(bits, edge, tmp_path_factory.mktemp("masks"))
    lines = [k * rows // min(edge, rows) for k in range(min(edge, rows))]
    places = [k * columns // min(edge, columns) for k in range(min(edge, columns))]
    blocks = [
        [
            bits[top : [*lines, rows][i + 1], left : [*places, columns][j + 1]].float().mean().item()
            for j, left in enumerate(places)
        ]
        for i, top in enumerate(lines)
    ]
    assert fullest == pytest.approx(max(map(max, blocks)))
    assert [[shade > 0 for shade in line] for line in shades] == [[share > 0 for share in line] for line in blocks]


def test_overlap_with_other_seeds_is_that_of_the_masks(two_seeds: Path) -> None:
    one, other = explorer(grouped(read_studies(two_seeds)))
    ours, theirs = masked(0, 0.8**2)["fc2.weight"], masked(1, 0.8**2)["fc2.weight"]
    iou = ((ours & theirs).sum() / (ours | theirs).sum()).item()
    ((seed, found, chance),) = one["shared"][1][2]
    assert (seed, found) == (1, pytest.approx(iou))
    assert chance == pytest.approx(iou, abs=0.01)  # independent masks
    assert other["shared"][1][2] == [[0, found, chance]]
    assert one["shared"][1][0][0][1] == 1.0  # of dense masks


def test_a_damaged_mask_is_named_and_left_out(two_seeds: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = sorted(two_seeds.rglob("round_002.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:-1] + b"\xff\xff")
    one, _ = explorer(grouped(read_studies(two_seeds)))
    assert one["sizes"][0][2] is None
    assert one["sizes"][0][1] is not None
    assert str(path) in caplog.text


# -- the file ----------------------------------------------------------------------------------------------------------


def test_the_file_is_complete_and_the_run_folders_are_as_before(two_seeds: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in two_seeds.rglob("*")}
    text = written(two_seeds, tmp_path / "report.html")
    assert {path: path.stat().st_mtime_ns for path in two_seeds.rglob("*")} == before
    parsed = Parsed(text)
    for _, attributes in parsed.elements:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
    assert all("default-src 'none'" in str(meta["content"]) for meta in parsed.all("meta") if "http-equiv" in meta)
    for figure in parsed.all("img"):
        image = Image.open(io.BytesIO(base64.b64decode(str(figure["src"]).partition(",")[2])))
        assert image.width == 960
        assert 600 <= image.height <= 700, "the legend stands below the axes"
        assert figure["alt"]


def test_every_level_is_in_a_table_with_its_n(two_seeds: Path, tmp_path: Path) -> None:
    text = written(two_seeds, tmp_path / "report.html", interactive=False)
    # round 2 of seeds 0 and 1: 0.976 and 0.977
    cells = re.findall(r"<tr><td>ticket</td><td[^>]*>2</td><td[^>]*>64.*?</tr>", text)
    assert re.sub(r"<[^>]+>", " ", cells[0]).split()[3:7] == ["2", "97.65", "97.60", "97.70"]


def test_without_plotly_the_file_has_static_figures_and_says_so(
    two_seeds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundles, "find_spec", lambda name: None)
    text = written(two_seeds, tmp_path / "report.html")
    parsed = Parsed(text)
    assert "<code>pip install plotly</code>, and write the report again" in text
    assert 'id="plotly"' not in text
    assert len(parsed.all("img")) == 2
    assert next(each for each in parsed.all("details") if each.get("id") == "static") == {"id": "static", "open": None}
    assert len(text) < 500_000


def test_a_run_folder_s_report_names_the_command_for_an_interactive_one(two_seeds: Path, tmp_path: Path) -> None:
    """It was asked to be static: Plotly may well be there."""
    run = sorted(two_seeds.iterdir())[0]
    text = written(run, tmp_path / "report.html", interactive=False)
    assert f"The figures are static. <code>python -m lottery report {run}</code> writes a page" in text
    assert "pip install" not in text


def heads(text: str, caption: str) -> list[str]:
    """The headings of the table with this caption."""
    table = text[text.index(f"<caption>{caption}") :]
    return re.findall(r'<th scope="col">(.*?)</th>', table[: table.index("</thead>")])


def test_columns_that_would_repeat_are_left_out_at_n_1(two_seeds: Path, tmp_path: Path) -> None:
    several = written(two_seeds, tmp_path / "report.html", interactive=False)
    assert {"n", "Lowest", "Highest"} <= set(heads(several, "Test accuracy by round: mean and range of n trainings"))
    assert {"Study", "Seed"} <= set(heads(several, "All rounds"))
    single = written(sorted(two_seeds.iterdir())[0], tmp_path / "report.html", interactive=False)
    expected = ["Network", "Round", "Prunable weights (%)", "Test acc. (%)", "Early-stop step"]
    assert heads(single, "Test accuracy by round (n = 1)") == expected
    assert "n" not in heads(single, "Experiments: one seed each (n = 1)")
    assert heads(single, "All rounds")[:3] == ["Round", "Control", "Prunable weights (%)"]


def test_a_mask_that_was_not_trained_has_no_early_stop(tmp_path: Path) -> None:
    """Its steps are 0, and so is the step that its row has: "450, then 0" would say that it was best at once."""
    rows = [make_row(0, test_accuracy=0.9, early_stop_step=450)]
    rows += [make_row(1, test_accuracy=0.8, steps=0, early_stop_step=0, density=0.1)]
    run = write_run(tmp_path / "run", rows)
    (group,) = grouped(read_studies([run]))
    stops = experiment_chart(group)["lines"][0]["y"]["early_stop_step"]
    assert [stop and stop[0] for stop in stops] == [450, None]
    text = written(run, tmp_path / "report.html", interactive=False)
    assert re.search(r'<tr><td>ticket</td>.*?<td class="number"></td></tr>', text)


def test_what_a_configuration_says_is_text(tmp_path: Path) -> None:
    run = write_study(tmp_path / "runs", 0, data={"name": HOSTILE, "_target_": HOSTILE}, extra={HOSTILE: HOSTILE})
    write_study(tmp_path / "runs", 1, data={"name": HOSTILE + "2", "_target_": HOSTILE}, extra={HOSTILE: "b"})
    rows = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    rows = [row | {"control": HOSTILE} for row in rows if not row["control"]]
    with (run / "rounds.jsonl").open("a") as file:
        for each in rows:
            layers = {HOSTILE: 0.5}
            file.write(json.dumps(each | {"layer_density": layers, f"probe/{HOSTILE}": 1.0}) + "\n")
    parsed = Parsed(written(tmp_path / "runs", tmp_path / "report.html"))
    assert not any("pwned" in script for script in parsed.scripts if not script.lstrip().startswith("{"))
    assert not any("onerror" in attributes for _, attributes in parsed.elements)
    assert len(parsed.all("script")) == 2 + (bundles.plotly_bundle() is not None)


def test_each_study_says_how_to_run_it_again(two_seeds: Path, tmp_path: Path) -> None:
    text = written(two_seeds, tmp_path / "report.html", interactive=False)
    for run in sorted(two_seeds.iterdir()):
        assert f"python -m lottery --config {run / 'config.yaml'}" in text
        assert tag("pre", (run / "config.yaml").read_text(), tabindex="0", class_="config") in text


def test_configuration_differences_are_the_keys_that_differ(tmp_path: Path) -> None:
    write_study(tmp_path / "runs", 0)
    write_study(tmp_path / "runs", 1, optim={"name": "sgd", "lr": 0.0012}, paths={"runs": "elsewhere"})
    text = written(tmp_path / "runs", tmp_path / "report.html", interactive=False)
    table = text[text.index('id="differences"') : text.index('id="reproduce"')]
    assert re.findall(r'<th scope="row">(.*?)</th>', table) == ["optim.name"]


def test_an_unfinished_study_is_marked_and_its_damaged_line_left_out(
    two_seeds: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = sorted(two_seeds.iterdir())[0]
    (run / "study.log").unlink()
    lines = (run / "rounds.jsonl").read_text().splitlines(keepends=True)
    (run / "rounds.jsonl").write_text("".join([*lines[:-1], "{broken\n"]))
    text = written(two_seeds, tmp_path / "report.html", interactive=False)
    assert f"Unfinished, with the rounds that they have: runs/{run.name}." in text
    assert f"{run / 'rounds.jsonl'}, line {len(lines)}" in caplog.text


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_twenty_rounds_of_five_seeds_take_less_than_5_mb(tmp_path: Path) -> None:
    for seed in range(5):
        write_study(tmp_path / "runs", seed, rounds=20)
    text = written(tmp_path / "runs", tmp_path / "report.html")
    data = page_data(text)
    assert len(text.encode()) < 5_000_000
    assert [len(each["sizes"]) * len(each["sizes"][0]) for each in data["masks"]] == [3 * 21] * 5
    assert all(size for each in data["masks"] for line in each["sizes"] for size in line)
    if bundles.plotly_bundle() is not None:
        assert len(data["curves"]) == 5


def test_torch_is_never_imported(two_seeds: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    code = (
        "import sys; from lottery.report.command import report\n"
        f"assert report([{str(two_seeds)!r}, '-o', {str(out)!r}]) == 0\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out} ({out.stat().st_size / 1e6:.1f} MB)\n"


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def test_no_run_folder_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(LotteryError, match=r"no run folder in it; `python -m lottery \+exp=imp_rewind` makes one"):
        report([str(tmp_path), "-o", str(tmp_path / "report.html")])
    assert not (tmp_path / "report.html").exists()


def test_runs_without_a_round_have_no_report(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [])
    with pytest.raises(LotteryError, match="has not finished a round yet; run it first"):
        report([str(run), "-o", str(tmp_path / "report.html")])


def test_a_folder_is_no_file_to_write(two_seeds: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--out: got .*, expected a file, such as report.html"):
        report([str(two_seeds), "-o", str(tmp_path)])


def test_a_study_reads_what_its_folder_says(two_seeds: Path) -> None:
    study = ReportedRun(sorted(two_seeds.iterdir())[1])
    assert (study.seed, study.finished, len(study.rows), study.environment) == (1, True, 7, {})


def test_a_study_ends_with_a_report_and_is_done_without_one(configure: Callable[..., DictConfig]) -> None:
    """The page says that the study is finished; where it cannot be written the study says so, and is done."""
    cfg = configure("method.rounds=1", "controls=none")
    study = Study(cfg)
    study.run()
    folder = study.folder.path
    page = (folder / "report.html").read_text()
    assert folder.name in page
    assert "nfinished" not in page
    assert "data:image/png;base64," in page
    (folder / "report.html").unlink()
    (folder / "report.html").mkdir()
    (folder / "report.html" / "in_the_way").touch()
    Study(cfg).run()
    assert json.loads((folder / "status.json").read_text())["state"] == "done"
    assert "report.html could not be written" in (folder / "study.log").read_text()
