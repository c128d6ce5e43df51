import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from planimeter.errors import InputError
from planimeter.prior import boolean_inputs, lempel_ziv_complexity


def published_parsing(string: str) -> int:
    """Words of Lempel and Ziv's parsing, by Kaspar and Schuster's program (1987)."""
    n, s = len(string), "0" + string
    c = longest = k = last = 1
    i = 0
    while True:
        if s[i + k] == s[last + k]:
            k += 1
            if last + k > n:
                return c + 1
            continue
        longest = max(longest, k)
        i += 1
        if i == last:
            c += 1
            last += longest
            if last + 1 > n:
                return c
            i, longest = 0, 1
        k = 1


def complexity(string: str) -> float:
    if len(set(string)) == 1:
        return math.log2(len(string))
    words = (published_parsing(string) + published_parsing(string[::-1])) / 2
    return math.log2(len(string)) * words


@given(st.lists(st.text("01", min_size=23, max_size=23), min_size=1, max_size=20))
def test_agrees_with_the_published_program(strings):
    rows = torch.tensor([[int(bit) for bit in string] for string in strings])
    expected = torch.tensor([complexity(string) for string in strings], dtype=torch.float64)
    assert torch.allclose(lempel_ziv_complexity(rows), expected)


@pytest.mark.parametrize("n", [2, 3, 64, 128, 300])
def test_agrees_at_every_length(n):
    draw = random.Random(n)
    strings = ["".join(draw.choices("01", [0.8, 0.2], k=n)) for _ in range(30)]
    strings += ["0" * n, "1" * n, ("01" * n)[:n]]
    rows = torch.tensor([[int(bit) for bit in string] for string in strings])
    expected = torch.tensor([complexity(string) for string in strings], dtype=torch.float64)
    assert torch.allclose(lempel_ziv_complexity(rows), expected)


def test_a_worked_example():
    # 0 | 001 | 10 | 100 | 1000 | 101, as in Lempel and Ziv's paper.
    assert published_parsing("0001101001000101") == 6
    row = torch.tensor([[int(bit) for bit in "0001101001000101"]])
    backwards = published_parsing("0001101001000101"[::-1])
    assert float(lempel_ziv_complexity(row)) == 4 * (6 + backwards) / 2


def test_reading_backwards_and_renaming_the_bits_change_nothing():
    rows = torch.rand(50, 128, generator=torch.Generator().manual_seed(0)) > 0.7
    value = lempel_ziv_complexity(rows)
    assert torch.equal(value, lempel_ziv_complexity(rows.flip(1)))
    assert torch.equal(value, lempel_ziv_complexity(~rows))
    assert torch.equal(value, lempel_ziv_complexity(2 * rows.int() - 1))


def test_inputs_are_the_numbers_in_binary():
    x = boolean_inputs(7)
    powers = 2 ** torch.arange(6, -1, -1, dtype=x.dtype)
    assert torch.equal(x @ powers, torch.arange(128, dtype=x.dtype))
    assert set(boolean_inputs(3, values=(-1, 1)).unique().tolist()) == {-1.0, 1.0}


def test_wrong_input_is_refused():
    with pytest.raises(InputError, match="17 bits"):
        boolean_inputs(17)
    with pytest.raises(InputError, match="at least 2 columns"):
        lempel_ziv_complexity(torch.zeros(5))
