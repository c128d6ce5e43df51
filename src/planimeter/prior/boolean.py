r"""Boolean functions: all inputs of n bits, and how complex a function of them is.

A function of n bits is the string of its 2^n outputs, the inputs in the order of binary numbers.
Its Lempel-Ziv complexity is

.. math:: C(s) = \begin{cases} \log_2 N & s = 0^N \text{ or } 1^N, \\
          \log_2 N \; [N_w(s) + N_w(s^R)] / 2 & \text{otherwise,} \end{cases} \qquad N = |s|,

where :math:`s^R` is the string read backwards and :math:`N_w` the number of words of Lempel and
Ziv's parsing (1976): each word is the shortest one that has not occurred before, where earlier
occurrences may overlap it; the last word may be one that has.

A word that starts at l ends one past the longest match with an earlier start,

.. math:: N_w: \; l \mapsto l + 1 + \max_{0 < d \le l} m_l(d), \qquad
          m_l(d) = [s_l = s_{l-d}]\,(1 + m_{l+1}(d)),

so all matches of all strings come from one recursion over l, a byte a match.

Source: Lempel & Ziv 1976; Kaspar & Schuster 1987; Dingle, Camargo & Louis 2018; Valle-Pérez,
Camargo & Louis 2019, Appendix E.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Shaped
from numpy.typing import NDArray
from torch import Tensor

from planimeter.errors import InputError

_STRINGS_AT_ONCE = 4096
_MOST_BITS = 16


def boolean_inputs(
    bits: int, *, values: tuple[float, float] = (0.0, 1.0)
) -> Float[Tensor, "2**bits bits"]:
    """All inputs of so many bits, as rows in the order of binary numbers, the first bit highest.

    Arguments:
        bits: 1 to 16.
        values: what stands for a 0 and a 1. The literature's system has 0 and 1; with (-1, 1) a
            network without biases is not bound to give 0 at the first input.

    Raises:
        InputError: another number of bits.

    Source: Valle-Pérez et al. 2019, Section 2; zhang2021, Section 5.1 (7 bits).
    """
    if not 1 <= bits <= _MOST_BITS:
        raise InputError(f"{bits} bits: all inputs are listed for 1 to {_MOST_BITS} bits")
    numbers = torch.arange(2**bits)
    ones = (numbers[:, None] >> torch.arange(bits - 1, -1, -1)) & 1
    low, high = values
    return low + (high - low) * ones.to(torch.get_default_dtype())


def lempel_ziv_complexity(functions: Shaped[Tensor, "k n"]) -> Float[Tensor, " k"]:
    r"""Lempel-Ziv complexity of strings, in bits.

    .. math:: C(s) = \log_2 n \; [N_w(s) + N_w(s^R)]/2, \qquad
              C(0^n) = C(1^n) = \log_2 n.

    Arguments:
        functions: (k, n) strings as rows, 0/1 or -1/+1 or False/True, n at least 2.

    Returns:
        (k,) complexities, float64. A hundred thousand strings of 128 take about a second.

    Raises:
        InputError: not a matrix of at least two columns.

    Source: Valle-Pérez et al. 2019, Appendix E.
    """
    rows = torch.as_tensor(functions)
    if rows.ndim != 2 or rows.shape[1] < 2:
        raise InputError(
            f"functions are rows of a matrix with at least 2 columns, got {tuple(rows.shape)}"
        )
    strings = (rows > 0).cpu().numpy()
    result = np.empty(len(strings))
    for start in range(0, len(strings), _STRINGS_AT_ONCE):
        some = strings[start : start + _STRINGS_AT_ONCE]
        words = (_words(some) + _words(some[:, ::-1])) / 2
        constant = (some == some[:, :1]).all(axis=1)
        result[start : start + len(some)] = np.where(constant, 1.0, words)
    return torch.from_numpy(result * math.log2(strings.shape[1]))


def _words(strings: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Number of words of each row."""
    count, n = strings.shape
    match = _longest_matches(strings)
    start = np.ones(count, dtype=np.int64)
    words = np.ones(count, dtype=np.int64)
    while (unfinished := start < n).any():
        words += unfinished
        place = np.minimum(start, n - 1)
        start = start + 1 + match[place, np.arange(count)]
    return words


def _longest_matches(strings: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(n, k): at each start of each string, the longest match with an earlier start."""
    count, n = strings.shape
    # Positions first, so that every operation runs along contiguous strings.
    symbols = np.ascontiguousarray(strings.T).view(np.uint8)
    # Bytes where they suffice: a match is shorter than the string.
    kind = np.uint8 if n <= np.iinfo(np.uint8).max else np.uint32
    longest = np.zeros((n, count), dtype=np.int64)
    lengths = np.zeros((n, count), dtype=kind)  # row d - 1: the match at distance d
    for place in range(n - 1, 0, -1):
        current = lengths[:place]
        current += 1
        current *= symbols[place - 1 :: -1] == symbols[place]
        longest[place] = current.max(axis=0)
    return longest
