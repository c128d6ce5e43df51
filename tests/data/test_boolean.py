import pytest
import torch

from planimeter.data import load
from planimeter.data.boolean import boolean_system
from planimeter.errors import InputError


def test_rows_are_all_inputs_in_binary_order():
    inputs = load("boolean").inputs[:]
    assert inputs.shape == (128, 7)
    assert torch.equal(inputs @ 2.0 ** torch.arange(6, -1, -1), torch.arange(128.0))


@pytest.mark.parametrize("n", [1, 3, 6])
def test_targets_by_name(n):
    parity, majority = (boolean_system(n, name).labels.tolist() for name in ("parity", "majority"))
    assert parity == [row.bit_count() % 2 for row in range(2**n)]
    assert majority == [int(row.bit_count() > n / 2) for row in range(2**n)]


def test_targets_by_bits():
    assert load("boolean", n=2, target="0111").labels.tolist() == [0, 1, 1, 1]
    bits = "".join(map(str, boolean_system(5, "parity").labels.tolist()))
    assert torch.equal(boolean_system(5, bits).labels, boolean_system(5, "parity").labels)


def test_random_targets_depend_on_their_seed():
    one, same, other = (load("boolean", n=10, target_seed=s).labels for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert 400 < int((one != other).sum()) < 624  # 512 +- 7 standard deviations of 16
    assert 400 < int(one.sum()) < 624


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": 0}, "1 to 20 bits, got n = 0"),
        ({"n": 21}, "1 to 20 bits"),
        ({"n": 3, "target": "0101"}, "a function of 3 bits has 8 values, the target has 4"),
        ({"target": "partiy"}, "give 128 bits or one of .*did you mean 'parity'"),
    ],
)
def test_what_is_no_function_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        boolean_system(**settings)
