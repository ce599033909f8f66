"""Composing and checking a configuration: what is accepted, what a saved one means, and what a wrong one is told."""

from __future__ import annotations

import difflib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command_line_tools import ROOT, SLOW_IMPORTS, environment
from omegaconf import OmegaConf

from lottery.combine import Composer, labels
from lottery.compose import composed, config_folder, groups, loaded
from lottery.config import settings, study_key
from lottery.errors import ConfigError, LotteryError, cause, nearest
from lottery.preset import tell
from lottery.sweep import planned

# -- one configuration ------------------------------------------------------------------------------------------------


def test_every_option_of_every_group_composes() -> None:
    """The first of every group together, then the second of every group, and so on."""
    apart = ("exp", "model", "allocation", "layer_criterion")
    listed = {group: options for group, options in groups().items() if group not in apart}
    for number in range(max(map(len, listed.values()))):
        chosen = [f"{group}={options[number % len(options)]}" for group, options in listed.items()]
        needed = ["schedule.milestones=[2ep,4ep]"] if "schedule=multistep" in chosen else []
        needed += ["allocation=erk"] if {"method=random", "method=jackpot"} & set(chosen) else []
        needed += ["layer_criterion=snip"] if "method=layers" in chosen else []
        composed([*chosen, *needed])


@pytest.mark.parametrize("name", groups()["allocation"])
def test_every_allocation_is_an_option_of_the_methods_that_have_one(name: str) -> None:
    needed = ["method.allocation.path=mask.safetensors"] if name == "from_mask" else []
    for method in ("random", "pai"):
        assert composed([f"method={method}", f"allocation={name}", *needed]).method.allocation._partial_
    with pytest.raises(ConfigError, match=r"method\.allocation: no such key"):
        composed([f"allocation={name}", *needed])


@pytest.mark.parametrize("name", groups()["layer_criterion"])
def test_every_layer_criterion_is_an_option_of_the_method_that_has_one(name: str) -> None:
    assert composed(["method=layers", f"layer_criterion={name}"]).method.criterion._partial_
    with pytest.raises(ConfigError, match=r"method\.criterion: no such key"):
        composed([f"layer_criterion={name}"])


def test_the_method_is_completed_and_typed() -> None:
    """So that the study key does not depend on which options a yaml lists, nor on how a number is written."""
    bare = {"_target_": "lottery.methods.imp.IMP", "rounds": 3, "rate": 0.5}
    cfg = composed(["method.rounds=3", "method.rate=0.5"])
    written = composed(["method.rounds='3'", "method.rate=5e-1"])
    assert set(cfg.method) > set(bare)
    assert study_key(written) == study_key(cfg)


def test_a_key_of_the_study_key_is_not_lost(tmp_path: Path) -> None:
    """Paths, tracker and machine stay out of the key; everything else is in it."""
    key = study_key(composed([]))
    assert study_key(composed(["paths.runs=elsewhere", "tracker=none", "trainer=cpu", "name=other"])) == key
    for change in ("seed=1", "seeds.order=1", "optim.lr=0.2", "method.rate=0.3", "probes=none", "data.limit=100"):
        assert study_key(composed([change])) != key


@pytest.mark.parametrize(
    ("overrides", "lr", "to"),
    [
        (["optim={lr: 0.5}"], 0.5, "100it"),  # values for some keys of a group, not an option of it
        (["rewind=init"], 0.1, "init"),
        (["rewind=init", "rewind.to=2ep"], 0.1, "2ep"),
    ],
)
def test_what_is_chosen_for_a_group_wins_over_an_experiment(
    own: Path, overrides: list[str], lr: float, to: str
) -> None:
    (own / "exp" / "late.yaml").write_text("# @package _global_\nrewind: {to: 100it}\noptim: {lr: 0.1}\n")
    cfg = composed(["+exp=late", *overrides], str(own))
    assert (cfg.optim.lr, cfg.rewind.to) == (lr, to)


def test_groups_come_from_the_config_folder() -> None:
    found = groups()
    assert set(found) == {path.parent.name for path in config_folder().glob("*/*.yaml")}
    assert "imp_rewind" in found["exp"]


# -- a user's own configs ---------------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder of a user, at a path that Hydra's grammar would trip over."""
    folder = tmp_path / "my configs, 'own' [1]=a"
    (folder / "exp").mkdir(parents=True)
    (folder / "exp" / "mine.yaml").write_text("# @package _global_\nname: mine\noptim: {lr: 0.25}\n")
    return folder


def test_own_configs_are_found(own: Path) -> None:
    cfg = composed(["+exp=mine"], str(own))
    assert (cfg.name, cfg.optim.lr) == ("mine", 0.25)


def test_own_configs_are_found_by_a_relative_path(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(own.parent)
    assert composed(["+exp=mine"], own.name).name == "mine"


def test_an_own_option_is_taken_before_the_projects(own: Path) -> None:
    """Otherwise a user's `adam` would be ignored without a word."""
    (own / "optim").mkdir()
    (own / "optim" / "adam.yaml").write_text("name: adam\nlr: 0.125\n")
    assert composed(["optim=adam"], str(own)).optim.lr == 0.125


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("optim: {lrr: 1}\n", "optim.lrr: no such key (did you mean 'optim.lr'?)"),
        ("optim: {lr: fast}\n", "optim.lr: got 'fast', expected a number"),
        ("optim: {lr: -1}\n", "optim.lr: got -1.0, expected a number > 0"),
        ("optim: [1, 2\n", "bad.yaml, line 3, column 1: not valid YAML"),
        ("defaults: [override /model: lenett]\n", "model: got 'lenett', expected one of "),
        ("defaults: [override /modle: mlp]\n", "modle: no such key (did you mean 'model'?)"),
        ("just a text\n", "bad"),
        ("optim: {lr: '${nothing}'}\n", "optim.lr: Interpolation key 'nothing' not found"),
    ],
)
def test_a_wrong_own_config_is_told_in_one_line(own: Path, text: str, expected: str) -> None:
    (own / "exp" / "bad.yaml").write_text(f"# @package _global_\n{text}")
    with pytest.raises(ConfigError) as caught:
        composed(["+exp=bad"], str(own))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_whole_configuration_is_no_folder_of_configs(own: Path) -> None:
    """Given a run folder, Hydra would take its config.yaml for the project's, without any schema."""
    (own / "config.yaml").write_text("seed: 1\n")
    with pytest.raises(ConfigError, match="--config"):
        composed([], str(own))


# -- a saved configuration --------------------------------------------------------------------------------------------


def save(overrides: list[str], folder: Path) -> tuple[str, Path]:
    """What a study writes into its folder: its key, and config.yaml's path."""
    cfg = composed(overrides)
    path = folder / study_key(cfg) / "config.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(OmegaConf.to_yaml(cfg, resolve=True))
    return study_key(cfg), path


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["+exp=imp_rewind"],
        ["+exp=lth_lenet", "seed=7", "seeds.mask=8"],
        ["model=resnet20", "data=cifar10", "schedule=multistep", "schedule.milestones=[80ep,120ep]"],
        ["optim=adam", "optim.lr=1e-7", "optim.eps=1e-30", "optim.clip_norm=1", "data.limit=10", "name='yes'"],
        ["+method.rates={fc1:0.1,output:0.05}", "method.scope=layer", "prunable.exclude=['*out*','1']"],
    ],
)
def test_a_saved_configuration_has_the_same_key(overrides: list[str], tmp_path: Path) -> None:
    key, path = save(overrides, tmp_path)
    assert study_key(loaded(path)) == key


def test_a_saved_configuration_with_another_seed_is_the_study_of_that_seed(tmp_path: Path) -> None:
    """`seeds.init` and its like follow `seed` again, though the file holds their numbers; one set by hand stays."""
    _, path = save(["seed=3", "seeds.mask=9"], tmp_path)
    seeds = settings(loaded(path, ["seed=4"])).seeds
    assert (seeds.init, seeds.order, seeds.mask, seeds.split) == (4, 4, 9, 4)
    assert study_key(loaded(path, ["seed=4"])) == study_key(composed(["seed=4", "seeds.mask=9"]))


def test_a_saved_configuration_follows_its_runs_folder(tmp_path: Path) -> None:
    _, path = save([], tmp_path)
    assert loaded(path, ["paths.runs=other"]).paths.store == composed(["paths.runs=other"]).paths.store


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optim.lrr=1", "optim.lrr: no such key (did you mean 'optim.lr'?)"),
        ("optim.lr=fast", "optim.lr: got 'fast', expected a number"),
        ("method.round=2", "method.round: no such key (did you mean 'method.rounds'?)"),
        ("method.rate=2", "method.rate: got 2.0, expected a fraction"),
        ("optim=adam", "optim=adam: with --config only single keys"),
        ("+exp=imp_rewind", "+exp=imp_rewind: with --config only single keys"),
        ("seed=1,2", "seed=1,2: with --config only single keys"),
        ("optim.lr=[1", "optim.lr=[1: cannot be read"),
    ],
)
def test_a_wrong_change_of_a_saved_configuration(override: str, expected: str, tmp_path: Path) -> None:
    _, path = save([], tmp_path)
    with pytest.raises(ConfigError) as caught:
        loaded(path, [override])
    assert expected in str(caught.value)


def test_a_saved_configuration_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    """At every line: a part of it must never pass for the whole, with defaults in place of what is gone."""
    _, path = save([], tmp_path)
    whole = path.read_text()
    lines = whole.splitlines(keepends=True)
    paths_at = lines.index("paths:\n")  # from here on only folders are lost, which no number depends on
    for count in range(0, paths_at + 1, 7):
        path.write_text("".join(lines[:count]))
        with pytest.raises(ConfigError, match=r"config\.yaml"):
            loaded(path)


def test_a_saved_configuration_that_was_changed_in_place_is_refused(tmp_path: Path) -> None:
    """In its run folder it would pass for that study; a copy elsewhere is a configuration like any other."""
    _, path = save([], tmp_path)
    path.write_text(path.read_text().replace("lr: 0.1", "lr: 0.2"))
    with pytest.raises(ConfigError, match="copy it out of the run folder"):
        loaded(path)
    copy = tmp_path / "mine.yaml"
    copy.write_text(path.read_text())
    assert loaded(copy).optim.lr == 0.2


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"a: [", b"- 1\n", b"text", b"name: x\n"])
def test_a_file_that_is_no_configuration(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        loaded(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


# -- a sweep ----------------------------------------------------------------------------------------------------------


TEXTS = {
    "name=1e3": ("name", "1e3"),
    "name=007": ("name", "007"),
    "name=true": ("name", "true"),
    "name='1e3'": ("name", "1e3"),
    "tracker.project=1_000": ("tracker.project", "1_000"),
    "tracker.tags=[1e3,a]": ("tracker.tags", ["1e3", "a"]),
    "data.limit=1e3": None,  # a number it is, and no whole one
    "paths.runs=~/lot": ("paths.store", "HOME/lot/.store"),
    "paths.runs='~/lot'": ("paths.runs", "HOME/lot"),
    "paths.data=~": ("paths.data", "HOME"),
    "data.folder=~/images": ("data.folder", "HOME/images"),
    "model.weights=~/w.pth": ("model.weights", "~/w.pth"),  # where it is read it is expanded
}


@pytest.mark.parametrize("override", TEXTS)
def test_a_text_stays_as_it_was_written_and_the_home_is_found(
    override: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    if (expected := TEXTS[override]) is None:
        with pytest.raises(ConfigError, match="expected a whole number"):
            composed([override])
        return
    key, value = expected
    cfg = composed([override])
    found = OmegaConf.select(cfg, key)
    assert found == (value.replace("HOME", str(tmp_path)) if isinstance(value, str) else value)
    path = tmp_path / "config.yaml"
    path.write_text(OmegaConf.to_yaml(cfg, resolve=True), encoding="utf-8")
    assert OmegaConf.select(loaded(path), key) == found
    assert OmegaConf.select(loaded(path, [override]), key) == found


def test_a_text_of_a_sweep_stays_as_it_was_written() -> None:
    jobs, _ = planned(["name=1e3,2e3", "seed=0"], None)
    assert [Composer()(job).name for job in jobs] == ["1e3", "2e3"]


def test_a_sweep_is_every_combination_the_last_changing_fastest() -> None:
    jobs, _ = planned(["+exp=imp_rewind", "optim=sgd,adam", "seed=range(0,3)"], None)
    assert jobs == [["+exp=imp_rewind", f"optim={o}", f"seed={s}"] for o in ("sgd", "adam") for s in range(3)]
    assert labels(jobs)[1] == "optim=sgd seed=1"


def test_a_list_is_a_value_and_no_sweep() -> None:
    jobs, _ = planned(["optim.betas=[0.9,0.99]", "model.hidden=[8],[9,9]"], None)
    assert [job[1] for job in jobs] == ["model.hidden=[8]", "model.hidden=[9,9]"]


def test_a_sweep_in_an_experiment_counts(tmp_path: Path) -> None:
    """Hydra's `hydra.sweeper.params`; the command line goes before it."""
    (tmp_path / "exp").mkdir()
    text = "# @package _global_\nhydra: {sweeper: {params: {seed: '1,2', optim.lr: '0.1,0.2'}}}\n"
    (tmp_path / "exp" / "many.yaml").write_text(text)
    jobs, _ = planned(["+exp=many", "seed=5"], str(tmp_path))
    assert [sorted(job) for job in jobs] == [["+exp=many", f"optim.lr={lr}", "seed=5"] for lr in ("0.1", "0.2")]


# -- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("optim.lrr", "optim.lr"), ("trian.steps", "train.steps"), ("modle", "model"), ("lr", "optim.lr"),
        ("rounds", "method.rounds"), ("lenett", "lenet_300_100"), ("method.round", "method.rounds"),
    ],
)  # fmt: skip
def test_the_nearest_word(word: str, meant: str) -> None:
    known = ["model", "train.steps", "train.mode", "optim.lr", "method.rounds", "lenet_300_100", "mlp"]
    assert nearest(word, known) == f" (did you mean {meant!r}?)"


def test_no_word_is_near() -> None:
    assert nearest("zzz", ["model", "optim.lr"]) == ""
    assert not difflib.get_close_matches("zzz", ["model", "optim.lr"])


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (LotteryError("one\n  two"), "one two"),
        (ValueError("first\nsecond"), "ValueError: first"),
        (ValueError(), "ValueError"),
        (RuntimeError("\n\n  at last\n"), "RuntimeError: at last"),
        (FileNotFoundError(2, "No such file or directory", "here"), "here: No such file or directory"),
    ],
)
def test_a_cause_is_one_line(error: Exception, line: str) -> None:
    assert cause(error) == line


# -- what it costs ----------------------------------------------------------------------------------------------------

TORCH_FREE = [
    [], ["--help"], ["--version"], ["--cfg", "+exp=imp_rewind"], ["staus"], ["+exp=imp_rewnd"], ["optim.lrr=1"],
    ["optim.lr=abc"], ["method.rate=2"], ["rewind.to=99ep"], ["data.validation=-1"], ["method._target_=a.B"],
    ["-m", "seed=0,x"], ["--config", "nowhere.yaml"], ["schedule=multistep"], ["hydra/launcher=basic"],
]  # fmt: skip


def test_help_and_errors_that_need_no_data_import_nothing_heavy(tmp_path: Path) -> None:
    """Torch alone takes longer to import than an answer may take."""
    program = f"""
import sys
from lottery.__main__ import main
statuses = [main(args) for args in {TORCH_FREE!r}]
heavy = set({SLOW_IMPORTS}) & set(sys.modules)
assert not heavy, heavy
assert statuses == [0] * 4 + [2] * {len(TORCH_FREE) - 4}, statuses
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == len(TORCH_FREE) - 4
    assert not list(tmp_path.iterdir())
    assert (ROOT / "lottery").is_dir()


# -- a preset whose options are changed --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "note", "expected"),
    [
        (["+exp=imp_rewind", "method=bip"], "method.rounds", {"method._target_": "lottery.methods.bip.BiP"}),
        (
            ["+exp=bip", "method=imp"],
            "method.density, method.steps, method.scores, method.weights",
            {"method.rounds": 8},
        ),
        # another meaning of `steps`, which pai refuses, and a density that both have
        (["+exp=bip", "method=pai"], "method.steps, method.scores, method.weights", {"method.density": 0.1}),
        (["+exp=bip", "method=pai", "method.steps=3"], "method.scores, method.weights", {"method.steps": 3}),
        # `criterion` is there because the preset chose an option of the group layer_criterion
        (["+exp=layer_tickets", "method=imp"], "method.criterion, method.remove", {"optim.lr": 0.05}),
        (["+exp=layer_tickets", "model=mlp"], "model.width", {"model.hidden": [100, 100], "method.remove": [1, 2, 3]}),
        (["+exp=imp_vit_tiny", "model=resnet20"], "model.name, model.options", {"model.depth": 20}),
        (["+exp=layer_tickets_resnet56", "method=imp"], "method.criterion, method.remove", {"model.depth": 56}),
    ],
)
def test_another_option_over_a_preset_leaves_out_what_it_does_not_have(
    overrides: list[str], note: str, expected: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    tell.cache_clear()
    cfg = composed(overrides)
    assert {key: OmegaConf.select(cfg, key) for key in expected} == expected
    assert capsys.readouterr().err.endswith(f" does not have what {overrides[0]} sets; left out: {note}\n")
    assert OmegaConf.to_yaml(Composer()(overrides)) == OmegaConf.to_yaml(cfg)
    assert any(key.startswith("method.steps=") for key in overrides) or capsys.readouterr().err == ""  # told once


@pytest.mark.parametrize("typed", ["method.rounds=3", "+method.foo=1", "method.allocation=null", "model.width=3"])
def test_a_key_that_was_typed_is_never_left_out(typed: str, capsys: pytest.CaptureFixture[str]) -> None:
    key = typed.lstrip("+").partition("=")[0]
    with pytest.raises(ConfigError, match=rf"^{re.escape(key)}: no such key"):
        composed(["+exp=imp_rewind", "method=bip", typed])
    with pytest.raises(ConfigError, match=r"^method\.weights"):
        composed(["+exp=bip", "method=imp", "method.weights.lr=0.1"])
    assert capsys.readouterr().err == ""


def test_a_preset_of_ones_own_over_another(own: Path) -> None:
    """Its key is left out too, and a misspelt key of an own method stays an error."""
    (own / "exp" / "mine.yaml").write_text("# @package _global_\ndefaults: [imp_rewind, _self_]\nmethod: {rate: 0.5}\n")
    assert "rate" not in composed(["+exp=mine", "method=bip"], str(own)).method
    (own / "method").mkdir()
    (own / "method" / "odd.yaml").write_text("_target_: lottery.methods.bip.BiP\ndensityy: 0.1\n")
    with pytest.raises(ConfigError, match=r"^method\.densityy: no such key"):
        composed(["+exp=mine", "method=odd"], str(own))


def test_a_sweep_over_methods_shares_a_preset() -> None:
    jobs, _ = planned(["+exp=layer_tickets", "model=mlp,resnet32", "method=imp"], None)
    assert [Composer()(job).model._target_.rpartition(".")[2] for job in jobs] == ["mlp", "resnet"]
