"""Functions as bit strings: one bit an input, 64 to a word, the same everywhere."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Shaped
from numpy.typing import NDArray
from torch import Tensor

WORD = 64

# Any odd constants do; these are splitmix64's.
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB), np.uint64(0x9E3779B97F4A7C15))


def words_of(inputs: int) -> int:
    """Number of 64-bit words that hold one bit an input."""
    return -(-inputs // WORD)


def pack(bits: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """(k, n) outputs as (k, words); input 0 is the highest bit of the first byte."""
    count, inputs = bits.shape
    packed = np.packbits(bits, axis=1)
    if packed.shape[1] % (WORD // 8):
        padded = np.zeros((count, words_of(inputs) * WORD // 8), dtype=np.uint8)
        padded[:, : packed.shape[1]] = packed
        packed = padded
    return packed.view("<u8").astype(np.uint64, copy=False)


def pack_on_device(bits: Bool[Tensor, "k n"]) -> NDArray[np.uint64]:
    """`pack` where the outputs are: an eighth of the bytes leaves the device."""
    count, inputs = bits.shape
    places = torch.zeros(
        count, words_of(inputs) * WORD // 8, 8, dtype=torch.uint8, device=bits.device
    )
    places.view(count, -1)[:, :inputs] = bits
    weights = 2 ** torch.arange(7, -1, -1, dtype=torch.uint8, device=bits.device)
    packed = (places * weights).sum(dim=2, dtype=torch.uint8).cpu().numpy()
    return packed.view("<u8").astype(np.uint64, copy=False)


def unpack(words: NDArray[np.uint64], inputs: int) -> NDArray[np.bool_]:
    """(k, words) back to (k, inputs) outputs."""
    as_bytes = np.ascontiguousarray(words.astype("<u8", copy=False)).view(np.uint8)
    return np.unpackbits(as_bytes, axis=1, count=inputs).astype(bool)


def pack_function(function: Shaped[Tensor, " n"]) -> NDArray[np.uint64]:
    """One function, 0/1 or -1/+1 or False/True, as (1, words)."""
    outputs = torch.as_tensor(function).reshape(1, -1) > 0
    return pack(outputs.cpu().numpy())


def mixed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A 64-bit hash of each row, to sort by. Equal hashes still need their words compared."""
    first, second, step = _MIX
    value = words[:, 0].copy()
    for column in range(words.shape[1]):
        if column:
            value *= step
            value ^= words[:, column]
        value ^= value >> np.uint64(30)
        value *= first
        value ^= value >> np.uint64(27)
        value *= second
        value ^= value >> np.uint64(31)
    return value
