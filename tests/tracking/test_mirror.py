"""What a mirror hands to a service: everything once, however often the study is run, and nothing a service drops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from recording import RecordingSink, Refused, Service

from lottery.config import Config, Tracker
from lottery.figures.study import ALWAYS, INSTEAD, LADDER
from lottery.record.names import SEARCH_COLUMNS
from lottery.tracking.items import MORE, Artifact, Metrics, RunInfo, curve_rows, round_row, search_rows
from lottery.tracking.mirror import Mirror

KEY = "0123456789ab"
YAML = "name: imp\nseed: 3\ndata: {name: mnist1d}\nmodel: {_target_: a.mlp}\nmethod: {_target_: b.IMP}\n"
INFO = RunInfo(KEY, f"imp ({KEY})", "imp", "imp", ["mnist1d"], {"name": "imp"})
HIDDEN = {"round", "curve/total_step", "curve/step", "curve/round", "search/step"}  # axes, hidden in wandb.py
PNG = b"\x89PNG\r\n"


def run(study: Any, sink: RecordingSink, rounds: range, status: str = "finished", **changes: Any) -> None:
    """A study, run or run again: each round with a control, then a figure."""
    mirror = Mirror(Config(name="imp", seed=3, tracker=Tracker()), KEY, study.folder, sink)
    mirror.start(YAML)
    for index in rounds:
        mirror.round(study.row(index, **changes), study.curve(index), study.mask_path(index))
        mirror.round(study.row(index, "random"), study.curve(index), study.mask_path(index))
    if status == "finished":
        figure = study.folder / "accuracy.png"
        figure.write_bytes(PNG)
        mirror.figure(figure)
    mirror.close(status)


def test_a_study_cut_short_anywhere_and_run_again_is_recorded_as_if_it_had_not_been(study: Any, tmp_path: Path) -> None:
    whole = Service()
    run(study, RecordingSink(whole), range(3))
    for cut in range(1, 4):
        service = Service()
        run(study, RecordingSink(service), range(cut), status="failed")
        assert service.exit_code == 1
        run(study, RecordingSink(service), range(3))
        assert (service.rows, service.masks, service.images) == (whole.rows, whole.masks, whole.images)
        assert (service.summary, service.exit_code) == (whole.summary, 0)
        assert service.tables[-1] == whole.tables[-1]
        assert [info.key for info in service.runs] == [KEY, KEY]


def test_what_was_lost_in_the_middle_of_a_round_is_all_that_is_handed_over_again(study: Any) -> None:
    whole, service = Service(), Service()
    run(study, RecordingSink(whole), range(3))
    run(study, RecordingSink(service), range(3), status="failed")
    lost = service.rows[5:9]
    service.rows[5:9] = []
    service.items -= {Metrics(row).id for row in lost} | {Artifact("m", "mask", 1, study.masks[1].digest).id}
    del service.masks[1]
    run(study, RecordingSink(service), range(3))
    assert service.rows[-4:] == lost
    assert sorted(map(str, service.rows)) == sorted(map(str, whole.rows))
    assert sorted(map(str, service.masks)) == sorted(map(str, whole.masks))


def test_a_finished_study_that_is_run_again_does_not_open_its_run(study: Any) -> None:
    service = Service()
    run(study, RecordingSink(service), range(3))
    again = RecordingSink(service)
    run(study, again, range(3))
    assert len(service.runs) == 1
    assert again.state == "left"


def test_a_row_with_other_figures_than_on_record_is_recorded_too(study: Any) -> None:
    service = Service()
    run(study, RecordingSink(service), range(2))
    run(study, RecordingSink(service), range(2), test_accuracy=0.25)
    found = [row["round/test_accuracy"] for row in service.rows if row.get("round/test_accuracy")]
    assert found == pytest.approx([0.8, 0.7, 0.25, 0.25])


def test_the_round_is_an_axis_whatever_the_number_of_rounds(study: Any) -> None:
    """The recording refuses more than 1,000 names, and any step."""
    service = Service()
    mirror = Mirror(Config(name="imp", tracker=Tracker()), KEY, study.folder, RecordingSink(service))
    mirror.start(YAML)
    for index in range(200):
        row = study.row(0, round=index)
        mirror.round(row, study.curve(0), study.mask_path(0))
    assert not mirror.lost
    assert len(service.rows) == 800
    assert len({alias for _, alias, _ in service.masks}) == 200
    assert len(service.keys) < 40


def test_a_row_is_the_same_row_however_its_numbers_are_written() -> None:
    assert Metrics({"a": 1, "b": 0.5}).id == Metrics({"b": 0.5, "a": 1.0}).id
    assert Metrics({"a": float("nan")}).id == Metrics({"a": float("nan")}).id
    assert len({Metrics(row).id for row in ({"a": 1}, {"a": 2}, {"b": 1}, {"a": 1, "b": 1}, {"a": float("inf")})}) == 5


def test_a_service_that_drops_rows_without_a_word_is_told_of(study: Any, warnings_of: Callable[[], list[str]]) -> None:
    class Dropping(RecordingSink):
        def metrics(self, figures: Any) -> None:
            if figures.get("curve/step") != 10:
                super().metrics(figures)

    run(study, Dropping(Service()), range(2))
    (warning,) = warnings_of()
    assert "the recording failed" in warning
    assert "4 of 20 entries are not on its record" in warning


@pytest.mark.parametrize("call", ["recorded", "open", "metrics", "image", "artifact", "summary", "close"])
def test_whatever_fails_costs_one_warning_and_the_mirror(
    study: Any, warnings_of: Callable[[], list[str]], call: str
) -> None:
    class Failing(RecordingSink):
        pass

    def fail(*_: Any) -> None:
        raise SystemExit("no\nreason")

    setattr(Failing, call, fail)
    sink = Failing(Service())
    run(study, sink, range(3))
    (warning,) = warnings_of()
    assert "the recording failed (SystemExit: no)" in warning
    assert str(study.folder) in warning
    assert sink.state == "left", "what it did to the process is undone"


def test_a_mask_file_that_is_not_the_tables_mask_is_not_recorded(
    study: Any, warnings_of: Callable[[], list[str]]
) -> None:
    study.mask_path(1).write_bytes(study.mask_path(2).read_bytes())
    service = Service()
    run(study, RecordingSink(service), range(3))
    assert [alias for _, alias, _ in service.masks] == ["round-000"]
    (warning,) = warnings_of()
    assert "holds another mask" in warning


# -- the recording itself ----------------------------------------------------------------------------------------------


def opened(service: Service | None = None) -> RecordingSink:
    sink = RecordingSink(service or Service())
    sink.enter()
    sink.open(INFO)
    return sink


@pytest.mark.parametrize(
    "figures",
    [
        {"_step": 1},
        {"step": 1},
        {"a": None},
        {"a": "1"},
        {"a": True},
        {f"round_{k}/accuracy": 0.5 for k in range(1001)},
    ],
    ids=["_step", "step", "None", "text", "bool", "1001 names"],
)
def test_the_recording_refuses_rows_that_a_service_would_lose(figures: dict[str, Any]) -> None:
    with pytest.raises(Refused):
        opened().metrics(figures)


def test_the_recording_refuses_names_files_and_sizes(study: Any) -> None:
    mask = Artifact.mask("imp", KEY, study.row(0), study.mask_path(0))
    for wrong in (replace(mask, name="masks imp"), replace(mask, name="a/b"), replace(mask, path=Path("no"))):
        with pytest.raises(Refused):
            opened().artifact(wrong, {})
    with pytest.raises(Refused):
        opened().artifact(mask, {"text": "x" * (1 << 20)})
    with pytest.raises(ValueError, match="JSON"):
        opened().artifact(mask, {"density": float("nan")})
    with pytest.raises(Refused):
        opened().image("figure/a", study.mask_path(0))
    with pytest.raises(Refused):
        RecordingSink(Service()).open(INFO)
    with pytest.raises(Refused):
        opened(opened().service).open(INFO)


@pytest.mark.parametrize("call", ["metrics", "summary"])
def test_the_recording_refuses_what_comes_after_the_end(call: str) -> None:
    sink = opened()
    sink.close(0)
    with pytest.raises(Refused):
        getattr(sink, call)({"a": 1.0})
    other = RecordingSink(sink.service)
    other.enter()
    with pytest.raises(Refused, match="one run"):
        other.open(replace(INFO, key="f" * 12))


def test_a_figure_for_each_layer_has_a_name_of_its_own(study: Any) -> None:
    """W&B would draw nothing of a mapping; what was not measured is left out."""
    row = round_row(study.row(1) | {"probe/pq_layers": {"fc1.weight": 0.5, "fc2.weight": None}})
    assert row["more/round/probe/pq_layers/fc1.weight"] == 0.5
    assert not any("fc2" in key for key in row if "pq_layers" in key)
    assert "more/round/probe/pq_layers" not in row


def test_points_are_recorded_as_they_come_and_once(study: Any) -> None:
    """A curve sent while its training goes on, or before it was cut short, is not sent again with its round."""
    whole, service = Service(), Service()
    run(study, RecordingSink(whole), range(3))
    for rounds in (1, 3):
        mirror = Mirror(Config(name="imp", seed=3, tracker=Tracker()), KEY, study.folder, RecordingSink(service))
        mirror.start(YAML)
        trainings = [(index, control) for index in range(rounds) for control in (None, "random")]
        for index, control in trainings:
            curve = study.curve(index)
            for step in (0, 10, 20):
                points = [point for point in curve if point[0] == step]
                mirror.points({"round": index, "control": control, "copy": 0}, points)
                if rounds == 1 and control and step == 10:  # cut short in this training
                    assert service.rows[-1]["more/curve/control/random-0/val_loss"] == points[-1][2]
                    break
            else:
                mirror.round(study.row(index, control), curve, study.mask_path(index))
        mirror.close("failed")
    key = lambda row: sorted(row.items())  # noqa: E731
    assert sorted(service.rows, key=key) == sorted(whole.rows, key=key)


def test_at_most_30_charts_are_drawn_by_default(study: Any) -> None:
    """With every control in three copies, probes, a search, and a network of many layers."""
    layers = {f"blocks.{k}.weight": 0.5 for k in range(100)}
    probes = {f"probe/{k}": 0.5 for k in range(30)} | {"probe/layers": layers}
    rows = [study.row(1, layer_density=layers, **probes)]
    rows += [study.row(1, kind, k, **probes) for kind in ("reinit", "random", "shuffle", "invert") for k in range(3)]
    (study.folder / "search.csv").write_text(f"round,{','.join(SEARCH_COLUMNS)},score_bin_01\n1{',1' * 9}\n")
    keys = {key for row in rows for key in round_row(row) | curve_rows(row, study.curve(1), 0)[1]}
    keys |= {key for row in search_rows(study.folder, 1) for key in row}
    drawn = {key for key in keys if not key.startswith(MORE)} - HIDDEN
    figures = {*LADDER, *INSTEAD, *ALWAYS} - {"regimes"}  # images; a study has one figure of INSTEAD at most
    assert len(drawn | figures | {"rounds"}) <= 30
    assert {"round/test_accuracy", "round/control/invert-0/test_accuracy", "curve/val_loss"} <= drawn
    assert len(keys) > 400


def test_controls_have_the_density_at_which_their_accuracy_is_drawn(study: Any) -> None:
    row = round_row(study.row(1, "invert", density=0.7))
    assert (row["round/density"], row["round/control/invert-0/test_accuracy"]) == (0.7, pytest.approx(0.4))


def test_the_table_has_a_row_for_each_row_of_the_study(study: Any) -> None:
    service = Service()
    run(study, RecordingSink(service), range(2))
    (table,) = service.tables
    found = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [(row["round"], row["control"], row["density"]) for row in found] == [
        (0, None, study.masks[0].density), (0, "random", study.masks[0].density),
        (1, None, study.masks[1].density), (1, "random", study.masks[1].density),
    ]  # fmt: skip
    assert found[2]["test_accuracy"] == pytest.approx(0.7)
    assert found[2]["probe/overlap"] == 0.5
