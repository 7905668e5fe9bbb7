"""Rows of samples: whole, full, and the same for the same seed and epoch."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Sized

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.adapt.trainer.decoder.decoder import pack
from edge_agent.adapt.trainer.packed_samples import bins, epoch_order, epoch_rows

CAPACITY = 512


def n_tokens(samples: Iterable[Sized]) -> int:
    return sum(map(len, samples))


def samples_of(*lengths: int) -> list[range]:
    return [range(length) for length in lengths]


def short_texts(n: int, seed: int = 0) -> list[range]:
    """Lengths as of questions with answers: most of 20 to 60 tokens, some longer."""
    source = random.Random(seed)
    return samples_of(*(min(CAPACITY, int(source.lognormvariate(3.6, 0.6)) + 8) for _ in range(n)))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 64), max_size=60), st.integers(0, 9))
def test_every_sample_is_in_one_row_and_no_row_is_too_long(lengths: list[int], epoch: int) -> None:
    samples = samples_of(*lengths)
    rows = epoch_rows(samples, 64, 7, epoch)
    assert sorted(index for row in rows for index in row) == list(range(len(samples)))
    assert all(0 < sum(lengths[index] for index in row) <= 64 for row in rows)
    assert len(rows) <= 2 * sum(lengths) / 64 + 1, "two half empty rows would be one"


def test_it_is_first_fit_decreasing() -> None:
    """Against the definition, which tries every row in turn."""
    source = random.Random(5)
    for _ in range(50):
        samples = samples_of(*(source.randint(1, 50) for _ in range(source.randint(0, 80))))
        order = epoch_order(len(samples), 1, 1)
        plain: list[list[int]] = []
        for index in sorted(order, key=lambda i: -len(samples[i])):
            fitting = [row for row in plain if n_tokens(samples[i] for i in [*row, index]) <= 50]
            if fitting:
                fitting[0].append(index)
            else:
                plain.append([index])
        assert sorted(bins(samples, 50, order)) == sorted(plain)


def test_rows_of_short_texts_are_nearly_full() -> None:
    samples = short_texts(400)
    rows = epoch_rows(samples, CAPACITY, 1, 0)
    assert n_tokens(samples) / (CAPACITY * len(rows)) > 0.97


def test_the_same_seed_and_epoch_give_the_same_rows_and_others_do_not() -> None:
    samples = short_texts(200)
    rows = epoch_rows(samples, CAPACITY, 1, 3)
    assert epoch_rows(samples, CAPACITY, 1, 3) == rows
    assert epoch_rows(samples, CAPACITY, 1, 4) != rows
    assert epoch_rows(samples, CAPACITY, 2, 3) != rows
    assert [row[0] for row in rows] != sorted(row[0] for row in rows)


def test_the_order_is_frozen_for_good() -> None:
    """A run that is resumed under another Python must go on with the same data."""
    assert epoch_order(10, 1, 0) == [9, 8, 3, 7, 5, 4, 0, 1, 6, 2]
    assert sorted(epoch_order(1000, 1, 0)) == list(range(1000))


def test_long_texts_do_not_all_come_first() -> None:
    samples = samples_of(*[500] * 50, *[260] * 50)
    rows = epoch_rows(samples, CAPACITY, 1, 0)
    first_half = [len(samples[row[0]]) for row in rows[: len(rows) // 2]]
    assert 10 < first_half.count(500) < 40


def test_a_sample_longer_than_a_row_is_never_split() -> None:
    with pytest.raises(ValueError, match="a sample of 513 tokens does not fit a row of 512"):
        bins(samples_of(3, 513), CAPACITY, [0, 1])
    with pytest.raises(ValueError, match="an order of 1 for 2 samples"):
        bins(samples_of(3, 4), CAPACITY, [0])
    assert bins([], CAPACITY, []) == []


def test_twenty_thousand_samples_are_packed_in_seconds() -> None:
    samples = short_texts(20_000)
    began = time.process_time()
    epoch_rows(samples, CAPACITY, 1, 0)
    assert time.process_time() - began < 5


def test_a_packed_row_is_what_the_decoder_takes() -> None:
    """Real tokens are counted once, and learned ones are those that are predicted."""
    sequences = [([5, 6, 7], [False, True, True]), ([8, 9], [False, True])]
    batch = pack(sequences)
    assert len(batch.tokens) == n_tokens([ids for ids, _ in sequences])
    assert np.count_nonzero(batch.targets >= 0) == 3
