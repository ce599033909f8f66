"""Orders and splits: permutations, functions of their keys alone, and the same on every machine."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lottery.data.order import Order, Split, draws, integers, permutation
from lottery.errors import ConfigError


@given(count=st.integers(1, 300), seed=st.integers(0, 2**40), epoch=st.integers(0, 1000))
def test_permutation_is_one(count, seed, epoch):
    assert sorted(permutation(count, seed, "order", epoch)) == list(range(count))


def test_every_word_of_the_key_matters():
    keys = [(0, "order", 0), (1, "order", 0), (0, "order", 1), (0, "augment", 0), (0, "split")]
    assert len({tuple(permutation(100, *key)) for key in keys}) == len(keys)


def test_draws_are_uniform():
    """Mean and variance of 10^5 draws within 5 standard errors of the uniform distribution's 1/2 and 1/12."""
    unit = draws(100_000, 3, "order", 2) / 2.0**64
    assert abs(unit.mean() - 1 / 2) < 5 * (1 / 12 / 100_000) ** 0.5
    assert abs(unit.var() - 1 / 12) < 5 * (1 / 180 / 100_000) ** 0.5


def test_integers_cover_their_range_evenly():
    counts = np.bincount(integers(90_000, 9, 0, "augment", 0, "dx"), minlength=9)
    assert len(counts) == 9
    assert (abs(counts - 10_000) < 5 * (90_000 * (1 / 9) * (8 / 9)) ** 0.5).all()


def test_order_never_changes_between_versions():
    """Equal stage keys promise equal batches, whatever NumPy is installed: a change here must raise stage versions."""
    assert permutation(8, 0, "order", 0).tolist() == [6, 3, 1, 5, 0, 4, 2, 7]
    assert Split.draw(8, 3, None, 0).validation.tolist() == [4, 5, 7]


def test_no_global_generator_is_touched():
    def states():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002

    before = states()
    Order(100, 7, 3).permutation(5)
    Split.draw(100, 10, 20, 0)
    assert states() == before


@given(count=st.integers(1, 60), size=st.integers(1, 70), drop_last=st.booleans(), epoch=st.integers(0, 5))
def test_an_epoch_holds_every_image_once(count, size, drop_last, epoch):
    if drop_last and size > count:
        with pytest.raises(ConfigError, match=r"^train\.batch_size: "):
            Order(count, size, 0, drop_last)
        return
    order = Order(count, size, 0, drop_last)
    parts = [order.locate(epoch * order.steps_per_epoch + position) for position in range(order.steps_per_epoch)]
    assert {number for number, _ in parts} == {epoch}
    batches = [order.permutation(epoch)[part] for _, part in parts]
    seen = np.concatenate(batches)
    assert len(seen) == len(set(seen.tolist())) == (count - count % size if drop_last else count)
    assert all(len(batch) == size for batch in batches[:-1])


def test_batch_size_and_step_are_checked():
    with pytest.raises(ConfigError, match=r"^train\.batch_size: got 0"):
        Order(10, 0, 0)
    with pytest.raises(ValueError, match="-1"):
        Order(10, 5, 0).locate(-1)


@given(st.data())
def test_split_is_disjoint_and_counted(data):
    count = data.draw(st.integers(2, 200))
    validation = data.draw(st.integers(0, count - 1))
    limit = data.draw(st.none() | st.integers(1, count - validation))
    split = Split.draw(count, validation, limit, data.draw(st.integers(0, 5)))
    assert len(split.validation) == validation
    assert len(split.train) == (count - validation if limit is None else limit)
    assert not set(split.train) & set(split.validation)
    assert set(split.train) | set(split.validation) <= set(range(count))
    assert (np.diff(split.train) > 0).all()


def test_limits_are_nested_and_leave_the_validation_images_alone():
    whole, half, tenth = (Split.draw(100, 20, limit, 7) for limit in (None, 40, 8))
    assert set(tenth.train) < set(half.train) < set(whole.train)
    assert (whole.validation == half.validation).all()
    assert (half.validation == tenth.validation).all()


def test_split_seed_decides_the_split_and_nothing_else():
    assert set(Split.draw(100, 20, None, 0).validation) != set(Split.draw(100, 20, None, 1).validation)
    assert (Split.draw(100, 0, None, 0).train == Split.draw(100, 0, None, 1).train).all()


def test_too_few_images_for_the_split():
    with pytest.raises(ConfigError, match=r"^data\.validation: got 100, expected fewer than the 100 images"):
        Split.draw(100, 100, None, 0)
    with pytest.raises(ConfigError, match=r"^data\.limit: got 81, expected at most 80: 100 .* data\.validation=20$"):
        Split.draw(100, 20, 81, 0)
