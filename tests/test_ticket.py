"""Masks as values, the mask file (contract 4.3 of the design), and states that training cannot reach."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lottery.errors import LotteryError
from lottery.state import StateRef, load_state, save_state, state_digest
from lottery.ticket import Mask, Ticket, read_metadata, weights_digest


def some_mask(seed: int = 0) -> Mask:
    """Sizes that are no multiple of 8, an empty layer and a single weight."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"z.weight": (5, 3, 3, 3), "a.weight": (7, 11), "one.weight": (1,)}
    bits = {name: torch.rand(shape, generator=generator) < 0.4 for name, shape in shapes.items()}
    return Mask(bits | {"empty.weight": torch.zeros(4, 4, dtype=torch.bool)})


def saved(mask: Mask, path: Path) -> Path:
    mask.save(path, round=3, study="0123456789ab", parent="f" * 64)
    return path


# --- Mask, the value ---------------------------------------------------------------------------------------------


def test_counts_and_densities() -> None:
    mask = Mask({"a": torch.tensor([[True, False], [True, True]]), "b": torch.zeros(6, dtype=torch.bool)})
    assert (mask.kept, mask.size, mask.density) == (3, 10, 0.3)
    assert mask.layer_density == {"a": 0.75, "b": 0.0}
    assert mask.layer_kept == {"a": 3, "b": 0}
    assert mask.collapsed == ["b"]
    assert list(mask) == ["a", "b"]
    assert mask.shapes == {"a": torch.Size((2, 2)), "b": torch.Size((6,))}
    assert mask["a"].tolist() == [[True, False], [True, True]]
    assert "3 of 10" in repr(mask)


def test_ones_is_dense() -> None:
    mask = Mask.ones({"a": torch.Size((3, 5)), "b": torch.Size(())})
    assert (mask.kept, mask.density, mask.collapsed) == (16, 1.0, [])
    assert mask["b"].shape == ()


@settings(deadline=None)  # a shared machine may stall
@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=40), min_size=1, max_size=4))
def test_bits_come_back(layers: list[list[bool]]) -> None:
    mask = Mask({f"l{i}": torch.tensor(bits) for i, bits in enumerate(layers)})
    assert [bits.tolist() for bits in mask.values()] == layers
    assert mask.layer_kept == {f"l{i}": sum(bits) for i, bits in enumerate(layers)}


def test_nothing_reaches_the_mask() -> None:
    """Neither through the tensors it was made from, nor through those it gives out."""
    bits = torch.tensor([True, True, False])
    mask = Mask({"w": bits})
    digest = mask.digest
    bits.fill_(False)
    mask["w"].fill_(False)
    mask.shapes.clear()
    mask.layer_kept.clear()
    assert mask["w"].tolist() == [True, True, False]
    assert (mask.kept, mask.digest, Mask(dict(mask)).digest) == (2, digest, digest)
    with pytest.raises(AttributeError):
        mask.kept = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        mask["w"] = bits  # type: ignore[index]


def test_equality_is_by_content() -> None:
    mask = some_mask()
    twin = Mask(dict(mask))
    assert mask == twin
    assert hash(mask) == hash(twin)
    flipped = dict(mask)
    flipped["a.weight"][3, 4] ^= True
    renamed = {name.replace("one", "two"): bits for name, bits in mask.items()}
    reshaped = {name: bits.reshape(-1) for name, bits in mask.items()}
    reordered = dict(reversed(list(mask.items())))
    for other in (flipped, renamed, reshaped, reordered):
        assert Mask(other) != mask
        assert Mask(other).digest != mask.digest
    assert mask != dict(mask)
    assert pickle.loads(pickle.dumps(mask)) == mask  # as multiprocessing sends it; never a file format


def test_memory_layout_does_not_matter() -> None:
    bits = torch.rand(4, 3, 2, 2, generator=torch.Generator().manual_seed(0)) < 0.5
    assert Mask({"w": bits.to(memory_format=torch.channels_last)}) == Mask({"w": bits})


def test_issubset() -> None:
    mask = some_mask()
    ones = Mask.ones(mask.shapes)
    fewer = Mask({name: bits & some_mask(1)[name] for name, bits in mask.items()})
    assert mask.issubset(mask)
    assert mask.issubset(ones)
    assert fewer.issubset(mask)
    assert not ones.issubset(mask)
    assert not mask.issubset(some_mask(1))
    assert not mask.issubset(Mask({"other": torch.ones(3, dtype=torch.bool)}))


@pytest.mark.parametrize(
    "bits", [{}, {"w": torch.ones(3)}, {"w": torch.ones(3, dtype=torch.uint8)}, {"w": torch.ones(0, dtype=torch.bool)}]
)
def test_what_is_no_mask(bits: dict[str, torch.Tensor]) -> None:
    with pytest.raises(LotteryError, match="mask"):
        Mask(bits)


# --- Mask on a state ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_apply_gives_exact_positive_zeros(dtype: torch.dtype) -> None:
    """Whatever hides in pruned weights, infinities and NaN included, becomes +0.0; the kept ones keep their bits."""
    mask = Mask({"w": torch.tensor([True, False, False, False, False, True])})
    state = {"w": torch.tensor([-0.0, torch.inf, -torch.inf, torch.nan, -1.0, 2.5], dtype=dtype), "b": torch.ones(2)}
    masked = mask.apply(state)
    assert masked["w"].tolist() == [0, 0, 0, 0, 0, 2.5]
    assert masked["w"].signbit().tolist() == [True, False, False, False, False, False]
    assert torch.equal(masked["b"], state["b"])
    assert state["w"][1] == torch.inf


def test_apply_shares_no_memory() -> None:
    state = {"w": nn.Parameter(torch.randn(4)), "bias": torch.randn(4)}
    masked = Mask.ones({"w": torch.Size((4,))}).apply(state)
    before = {name: tensor.detach().clone() for name, tensor in state.items()}
    for tensor in masked.values():
        assert not tensor.requires_grad
        tensor.add_(1)
    assert all(torch.equal(state[name], before[name]) for name in state)


def test_apply_to_another_network() -> None:
    mask = Mask.ones({"w": torch.Size((4,))})
    with pytest.raises(LotteryError, match="'w', which the state does not have"):
        mask.apply({"v": torch.ones(4)})
    with pytest.raises(LotteryError, match=r"'w' is \[4\] in the mask, \[2, 2\] in the state"):
        mask.apply({"w": torch.ones(2, 2)})


# --- the mask file -----------------------------------------------------------------------------------------------


def test_file_round_trip(tmp_path: Path) -> None:
    mask = some_mask()
    path = saved(mask, tmp_path / "masks" / "round_003.safetensors")
    loaded = Mask.load(path)
    assert loaded == mask
    assert list(loaded) == list(mask)  # the order decides ties in later rounds
    metadata = read_metadata(path)
    assert metadata["digest"] == mask.digest
    assert (metadata["round"], metadata["study"], metadata["parent"]) == ("3", "0123456789ab", "f" * 64)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]  # no temporary file is left
    mask.save(path, round=0, study="s", parent=None)
    assert read_metadata(path)["parent"] == ""


def test_file_needs_only_safetensors_and_numpy(tmp_path: Path) -> None:
    """Contract 4.3, read as a script without this project would; the digest too is verified from the file alone."""
    mask = some_mask()
    path = saved(mask, tmp_path / "mask.safetensors")
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata, packed = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert {"format", "shapes", "round", "study", "parent", "digest"} <= set(metadata)
    assert metadata["format"] == "lottery-mask/1"
    shapes = json.loads(metadata["shapes"])
    assert set(shapes) == set(packed)
    for name, shape in shapes.items():
        assert packed[name].dtype == np.uint8
        size = int(np.prod(shape))
        bits = np.unpackbits(packed[name])
        assert bits.size == -(-size // 8) * 8
        assert not bits[size:].any()
        assert np.array_equal(bits[:size].reshape(shape).astype(bool), mask[name].numpy())
    content = metadata["shapes"].encode() + b"".join(packed[name].tobytes() for name in shapes)
    assert hashlib.sha256(content).hexdigest() == metadata["digest"]


def test_every_flipped_bit_is_rejected(tmp_path: Path) -> None:
    """Header length, header, padding, payload: in every byte of a small file, two of its bits in turn."""
    path = tmp_path / "mask.safetensors"
    mask = Mask({"a": torch.tensor([True, False, True]), "b": torch.ones(9, dtype=torch.bool)})
    mask.save(path, round=12, study="ab", parent=None)
    whole = path.read_bytes()
    for at in range(len(whole)):
        for bit in (at % 8, (at + 3) % 8):
            damaged = bytearray(whole)
            damaged[at] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(LotteryError) as caught:
                Mask.load(path)
            message = str(caught.value)
            assert str(path) in message
            assert "\n" not in message
    path.write_bytes(whole)
    assert Mask.load(path) == mask


def test_every_truncation_is_rejected(tmp_path: Path) -> None:
    path = saved(some_mask(), tmp_path / "mask.safetensors")
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(LotteryError, match=r"mask\.safetensors: "):
            Mask.load(path)


def rewrite(path: Path, change: Callable[[dict[str, str], dict[str, np.ndarray]], None]) -> None:
    """Write a mask file anew, as somebody might who makes or edits one by hand, with a checksum that fits."""
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata, packed = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del metadata["checksum"]
    change(metadata, packed)
    metadata["checksum"] = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()
    safetensors.numpy.save_file(packed, path, metadata)


def set_padding(metadata: dict[str, str], packed: dict[str, np.ndarray]) -> None:
    """Bits beyond the last weight, with a digest that fits them."""
    packed["one.weight"] = packed["one.weight"] | np.uint8(1)
    content = metadata["shapes"].encode() + b"".join(packed[name].tobytes() for name in json.loads(metadata["shapes"]))
    metadata["digest"] = hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda metadata, packed: metadata.update(format="lottery-mask/2"), "format is 'lottery-mask/2', expected"),
        (lambda metadata, packed: metadata.pop("format"), "format is None, expected"),
        (lambda metadata, packed: metadata.pop("shapes"), "header lacks shapes"),
        (lambda metadata, packed: metadata.pop("digest"), "header lacks digest"),
        (lambda metadata, packed: metadata.update(shapes="{}"), "not those its header names"),
        (lambda metadata, packed: metadata.update(shapes="[1, 2"), "damaged"),
        (lambda metadata, packed: metadata.update(digest="0" * 64), "does not match its digest"),
        (lambda metadata, packed: packed.pop("a.weight"), "not those its header names"),
        (lambda metadata, packed: packed.update(more=np.zeros(1, np.uint8)), "not those its header names"),
        (lambda metadata, packed: packed.update({"a.weight": np.zeros(11, np.uint8)}), "'a.weight' does not hold"),
        (lambda metadata, packed: packed.update({"a.weight": np.zeros(10, np.int8)}), "'a.weight' does not hold"),
        (set_padding, "does not match its digest"),
    ],
)
def test_wrong_files_get_one_line(tmp_path: Path, change: Callable[..., None], message: str) -> None:
    path = saved(some_mask(), tmp_path / "mask.safetensors")
    rewrite(path, lambda metadata, packed: None)
    assert Mask.load(path) == some_mask()
    rewrite(path, change)
    with pytest.raises(LotteryError, match=r"mask\.safetensors: .*" + message) as caught:
        Mask.load(path)
    assert "\n" not in str(caught.value)


def test_files_of_another_kind(tmp_path: Path) -> None:
    state, text = tmp_path / "state.safetensors", tmp_path / "notes.txt"
    save_state({"w": torch.ones(3)}, state)
    text.write_text("not a mask\n")
    for path, message in [(state, "format"), (text, "cannot be read"), (tmp_path / "none", "no such file")]:
        with pytest.raises(LotteryError, match=f"{path.name}: .*{message}"):
            Mask.load(path)


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = saved(some_mask(), tmp_path / "mask.safetensors")
    before = path.read_bytes()
    with pytest.raises(TypeError):
        some_mask(1).save(path, round=1, study=7, parent=None)  # type: ignore[arg-type]
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]
    (tmp_path / "file").touch()
    with pytest.raises(LotteryError, match="cannot be written"):
        saved(some_mask(), tmp_path / "file" / "mask.safetensors")


def test_size_and_speed_at_25_million_weights(tmp_path: Path) -> None:
    """At most 1.02 bits a weight and 16 KB, for a ResNet-50's 25M weights in 54 tensors; the times are printed."""
    shape = torch.Size((463, 1000))
    generator = torch.Generator().manual_seed(0)
    mask = Mask({f"layer4.{i}.conv2.weight": torch.rand(shape, generator=generator) < 0.2 for i in range(54)})
    path = tmp_path / "mask.safetensors"
    started = time.perf_counter()
    saved(mask, path)
    written = time.perf_counter()
    assert Mask.load(path) == mask
    print(f"\n25M bits: written {written - started:.3f} s, read and verified {time.perf_counter() - written:.3f} s")
    assert mask.size > 25_000_000
    assert path.stat().st_size <= 1.02 * mask.size / 8 + 16_000


# --- states ------------------------------------------------------------------------------------------------------


def some_state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "conv.weight": torch.randn(4, 3, 2, 2, generator=generator).to(memory_format=torch.channels_last),
        "fc.weight": torch.randn(6, 5, generator=generator).t(),
        "half": torch.randn(3, generator=generator).bfloat16(),
        "expanded": torch.ones(1).expand(3),
        "num_batches_tracked": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "flags": torch.tensor([True, False]),
    }


def test_state_file_round_trip(tmp_path: Path) -> None:
    """Any layout and type, tied tensors included; afterwards the file may go."""
    state = some_state()
    state["tied"] = state["conv.weight"]
    path = tmp_path / "new" / "state.safetensors"
    save_state(state, path)
    loaded = load_state(path)
    os.truncate(path, 0)
    path.unlink()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) and loaded[name].dtype == state[name].dtype for name in state)
    assert all(tensor.is_contiguous() for tensor in loaded.values())
    assert state_digest(loaded) == state_digest(state)
    loaded["tied"].fill_(0)
    assert torch.equal(loaded["conv.weight"], state["conv.weight"])


def test_empty_state_round_trip(tmp_path: Path) -> None:
    """The optimizer state of plain SGD has no tensors."""
    save_state({}, tmp_path / "empty.safetensors")
    assert load_state(tmp_path / "empty.safetensors") == {}
    assert StateRef.of({}).tensors() == {}


def test_state_digest_covers_names_types_shapes_and_bytes() -> None:
    state = some_state()
    assert state_digest(dict(reversed(list(state.items())))) == state_digest(state)
    flat, other = state["fc.weight"].reshape(-1), state["fc.weight"].clone()
    other[2, 1] *= -1
    changes = [
        {"fc.weight": flat},
        {"fc.weight": other},
        {"half": state["half"].half()},
        {"num_batches_tracked": torch.tensor(8)},
        {"more": torch.zeros(1)},
        {"expanded": torch.tensor([1.0, 1.0, -1.0])},
    ]
    digests = {state_digest(state | change) for change in changes} | {state_digest(state)}
    digests.add(state_digest({name.replace("half", "hall"): tensor for name, tensor in state.items()}))
    assert len(digests) == len(changes) + 2
    assert state_digest({"a": torch.tensor(0.0)}) != state_digest({"a": torch.tensor(-0.0)})


def test_weights_digest_sees_kept_weights_alone() -> None:
    mask = Mask({"b": torch.tensor([True, False, True]), "a": torch.tensor([False, True])})
    state = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0, 4.0, 5.0]), "bias": torch.ones(2)}
    digest = weights_digest(state, mask)
    hidden = state | {"a": torch.tensor([torch.nan, 2.0]), "b": torch.tensor([3.0, 1e6, 5.0]), "bias": torch.zeros(2)}
    assert weights_digest(hidden, mask) == digest
    assert weights_digest(mask.apply(state), mask) == digest
    assert weights_digest(state, Mask(dict(reversed(list(mask.items()))))) == digest
    assert weights_digest(state | {"b": torch.tensor([3.0, 4.0, 5.5])}, mask) != digest
    with pytest.raises(LotteryError, match="'b'"):
        weights_digest({"a": state["a"]}, mask)


def test_only_tensors_are_states(tmp_path: Path) -> None:
    with pytest.raises(LotteryError, match="'step': got int"):
        save_state({"step": 3}, tmp_path / "state.safetensors")  # type: ignore[dict-item]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["memory", "file", "function"])
def test_training_cannot_reach_a_stored_state(tmp_path: Path, kind: str) -> None:
    """Lightning's ModelPruning resets weights by sharing storage and so trains its saved copy: not here.

    Two rounds of load, train in place, reload: the start is bit-identical each time.
    """
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    path = tmp_path / "state.safetensors"
    save_state(network.state_dict(), path)
    digest = state_digest(start)
    shared = {name: tensor.clone() for name, tensor in start.items()}
    ref = {
        "memory": StateRef.of(network.state_dict()),
        "file": StateRef.file(path, digest),
        "function": StateRef(digest, lambda: shared),
    }[kind]
    assert ref.digest == digest
    for _ in range(3):
        state = ref.tensors()
        assert all(torch.equal(state[name], start[name]) for name in start)
        network.load_state_dict(state, assign=True)  # the network now lives in these very tensors
        for parameter in network.parameters():
            parameter.data.add_(1)
        network(torch.randn(8, 3))  # moves the running statistics


def test_a_changed_state_is_never_trained_from(tmp_path: Path) -> None:
    state = {"w": torch.ones(3)}
    ref = StateRef(state_digest(state), lambda: state)
    state["w"][0] = 2
    with pytest.raises(LotteryError, match="changed or damaged"):
        ref.tensors()
    path = tmp_path / "state.safetensors"
    save_state(state, path)
    stored = StateRef.file(path, state_digest(state))
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(LotteryError, match=r"state\.safetensors: changed or damaged"):
        stored.tensors()
    path.write_bytes(damaged[:-1])
    with pytest.raises(LotteryError, match=r"state\.safetensors: cannot be read"):
        stored.tensors()
    path.unlink()
    with pytest.raises(LotteryError, match=r"state\.safetensors: no such file"):
        stored.tensors()


def test_references_are_equal_by_digest(tmp_path: Path) -> None:
    state = {"w": torch.ones(3)}
    save_state(state, tmp_path / "state.safetensors")
    stored = StateRef.file(tmp_path / "state.safetensors", state_digest(state))
    assert stored == StateRef.of(state)
    assert stored != StateRef.of({"w": torch.zeros(3)})


def test_ticket() -> None:
    ticket = Ticket(some_mask(), StateRef.of({"w": torch.ones(3)}), step=500, order_step=500, steps=9500)
    assert (ticket.hold_lr, ticket.optimizer) == (False, None)
    assert ticket == Ticket(some_mask(), StateRef.of({"w": torch.ones(3)}), 500, 500, 9500)
    with pytest.raises(AttributeError):
        ticket.step = 0  # type: ignore[misc]
    with pytest.raises(LotteryError, match="steps: got -1"):
        Ticket(some_mask(), ticket.state, step=0, order_step=0, steps=-1)
