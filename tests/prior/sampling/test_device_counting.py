import numpy as np
import pytest

from planimeter.prior.sampling.counting import merged
from planimeter.prior.sampling.device_counting import merged_on


@pytest.mark.parametrize("words", [1, 2, 5])
def test_merging_on_a_device_is_merging(words):
    rng = np.random.default_rng(words)
    rows = rng.integers(2**62, 2**62 + 3, (5000, words)).astype(np.uint64)
    rows[::2] |= np.uint64(1) << np.uint64(63)  # negative as signed numbers
    counts, missing = rng.integers(1, 9, 5000), rng.integers(0, 9, 5000)

    def as_set(result):
        functions, own, bounds = result
        return set(zip(map(tuple, functions.tolist()), own, bounds, strict=True))

    found = merged_on("cpu", rows, counts, missing)
    assert len(found[0]) == len(as_set(found))
    assert as_set(found) == as_set(merged(rows, counts, missing))
