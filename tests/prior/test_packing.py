import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from planimeter.prior.packing import mixed, pack, pack_function, pack_on_device, unpack, words_of


@given(st.integers(1, 300), st.integers(0, 10**6))
def test_bits_come_back(inputs, seed):
    bits = np.random.default_rng(seed).random((5, inputs)) > 0.5
    words = pack(bits)
    assert words.shape == (5, words_of(inputs))
    assert (unpack(words, inputs) == bits).all()
    assert (pack_on_device(torch.from_numpy(bits)) == words).all()
    assert (pack_function(torch.from_numpy(bits[0])) == words[:1]).all()
    signs = 2 * torch.from_numpy(bits[0]).int() - 1
    assert (pack_function(signs) == words[:1]).all()


def test_hashes_of_neighbours_are_unlike():
    numbers = np.arange(1 << 12, dtype=np.uint64)
    words = np.stack([numbers, numbers[::-1]], axis=1)
    hashes = mixed(words)
    assert len(np.unique(hashes)) == len(hashes)
    flipped = np.unpackbits((hashes[1:] ^ hashes[:-1]).view(np.uint8)).reshape(-1, 64).sum(1)
    assert 31 < flipped.mean() < 33
