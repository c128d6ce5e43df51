from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planimeter.prior import counting
from planimeter.prior.counting import Recount, empty_table

BUDGET = 20


def stream(seed, batches=40, size=50):
    """Skewed draws of many functions, of two words."""
    rng = np.random.default_rng(seed)
    return [
        np.stack([rng.zipf(1.4, size) % 1000, np.full(size, 7)], axis=1).astype(np.uint64)
        for _ in range(batches)
    ]


def truth(batches):
    return Counter(map(tuple, np.concatenate(batches).tolist()))


def table_of(batches, budget, at_once=3):
    table = empty_table(2)
    for start in range(0, len(batches), at_once):
        table = table.with_batches(batches[start : start + at_once], budget)
    return table


@given(st.integers(0, 10**6), st.integers(1, 7))
def test_bounds_hold_for_every_function(seed, at_once):
    batches = stream(seed)
    true = truth(batches)
    table = table_of(batches, BUDGET, at_once)
    assert table.batches == len(batches)
    assert table.threshold > 0
    listed = {}
    rows = zip(table.words.tolist(), table.counts, table.missing, strict=True)
    for words, count, missing in rows:
        listed[tuple(words)] = count
        assert count <= true[tuple(words)] <= count + missing
    assert all(true[f] <= table.threshold for f in true if f not in listed)


@given(st.integers(0, 10**6))
def test_with_a_recount_the_leading_counts_are_exact(seed):
    batches = stream(seed)
    table = table_of(batches, BUDGET)
    chosen = table.contenders(3) & (table.missing > 0)
    recount = Recount(table.words[chosen], np.zeros(chosen.sum(), dtype=np.int64))
    for batch in batches:
        recount = recount.with_batches([batch])
    counts = table.counts.copy()
    counts[chosen] = recount.counts
    leading = [count for _, count in truth(batches).most_common(3)]
    assert sorted(counts, reverse=True)[:3] == leading


def test_without_need_nothing_is_dropped():
    batches = stream(1)
    table = table_of(batches, 10**6)
    assert table.threshold == 0
    assert not table.missing.any()
    assert dict(zip(map(tuple, table.words.tolist()), table.counts, strict=True)) == truth(batches)


@pytest.mark.parametrize("bits", [0, 3])
def test_functions_whose_hashes_are_equal_stay_apart(monkeypatch, bits):
    short = lambda words: words[:, 0] % np.uint64(1 << bits)  # noqa: E731
    monkeypatch.setattr(counting, "mixed", short)
    batches = stream(2)
    table = table_of(batches, 10**6)
    assert dict(zip(map(tuple, table.words.tolist()), table.counts, strict=True)) == truth(batches)
    recount = Recount(table.words, np.zeros(len(table.words), dtype=np.int64))
    assert (recount.with_batches(batches).counts == table.counts).all()
