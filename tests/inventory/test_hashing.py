"""Files are digested as `lottery.state` and `lottery.files` digest them, in one reading, and with little memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
import torch

from lottery.files import file_digest
from lottery.inventory.hashing import DTYPES, PIECE, hashed
from lottery.state import State, save_state, state_digest

PLAIN = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64")

STATES: dict[str, State] = {
    "every type, names against the order of the types": {
        f"{'zyxwvutsrq'[i]}.{name}": torch.arange(12).reshape(3, 4).to(getattr(torch, name))
        for i, name in enumerate(PLAIN)
    },
    "as a network with batch normalisation": {
        "a.weight": torch.randn(8, 3, 3, 3), "a.num_batches_tracked": torch.tensor(7),
        "b.weight": torch.randn(8), "b.num_batches_tracked": torch.tensor(9), "c": torch.randn(2),
    },
    "scalars, and tensors of no entries": {
        "a": torch.tensor(1.5), "b": torch.zeros(0), "c": torch.zeros(3, 0, dtype=torch.int64), "d": torch.ones(2),
        "e": torch.zeros(0, dtype=torch.int64),
    },
    "names that JSON escapes": {'quo"te': torch.ones(1), "ünï": torch.ones(2), "tab\t": torch.ones(3)},
    "larger than a piece": {
        "first": torch.randn(PIECE // 4 + 5), "last": torch.arange(PIECE // 8 + 3), "little": torch.ones(1),
    },
    "nothing": {},
}  # fmt: skip


@pytest.mark.parametrize("name", STATES)
def test_both_digests_are_those_on_record(name: str, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save_state(STATES[name], path)
    found = hashed(path)
    assert found.flaw == ""
    assert found.file == file_digest(path)
    assert found.state == state_digest(STATES[name])


def test_every_type_is_named_as_torch_prints_it() -> None:
    for name in DTYPES.values():
        assert str(getattr(torch, name.removeprefix("torch."))) == name


@pytest.mark.parametrize("keep", [0, 5, 8, 60, 300, -1])
def test_a_file_cut_short_is_told_from_its_content(keep: int, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save_state(STATES["as a network with batch normalisation"], path)
    path.write_bytes(path.read_bytes()[:keep])
    found = hashed(path)
    assert found.flaw
    assert found.state == ""
    assert found.file == file_digest(path)


def test_a_file_with_something_after_its_end(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save_state({"a": torch.ones(3)}, path)
    path.write_bytes(path.read_bytes() + b"\0")
    assert hashed(path).flaw == "longer than its header says"


def test_a_header_of_nonsense(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    for data in (b"\xff" * 50, b"\x02" + b"\0" * 7 + b"[]", b"\x0b" + b"\0" * 7 + b'{"a": null}', b"x" * (2 * PIECE)):
        path.write_bytes(data)
        found = hashed(path)
        assert "damaged" in found.flaw
        assert found.file == file_digest(path)


def test_memory_is_bounded_by_the_piece_and_not_by_the_file(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    # int64 comes first in the file and last by name: nothing of it may wait in memory.
    state = {"a": torch.zeros(4 * PIECE), "z": torch.zeros(4 * PIECE, dtype=torch.int64)}
    save_state(state, path)
    assert path.stat().st_size > 40 * PIECE
    tracemalloc.start()
    found = hashed(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.state == state_digest(state)
    assert peak < 4 * PIECE
