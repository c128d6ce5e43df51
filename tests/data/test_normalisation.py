import pytest
import torch

from planimeter.data import normalise
from planimeter.errors import InputError

IMAGES = torch.rand(50, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_own_mean_and_std_give_zeros_and_ones():
    mean, std = IMAGES.mean(dim=(0, 2, 3)), IMAGES.std(dim=(0, 2, 3))
    result = normalise(IMAGES, mean.tolist(), std.tolist())
    torch.testing.assert_close(result.mean(dim=(0, 2, 3)), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(result.std(dim=(0, 2, 3)), torch.ones(3, dtype=torch.float64))


def test_each_is_optional_and_undone_by_its_inverse():
    mean, std = [0.1, 0.2, -0.3], [0.5, 2.0, 4.0]
    assert normalise(IMAGES) is IMAGES
    shifted = normalise(IMAGES, mean)
    torch.testing.assert_close(normalise(IMAGES, mean, std), normalise(shifted, std=std))
    torch.testing.assert_close(normalise(shifted, [-m for m in mean]), IMAGES)
    torch.testing.assert_close(
        normalise(normalise(IMAGES, std=std), std=[1 / s for s in std]), IMAGES
    )


def test_channels_of_flat_rows_are_their_columns():
    rows = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    assert normalise(rows, [1, 2], [2, 4]).tolist() == [[0, 0], [1, 1]]


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ([0.5], None, "mean must be one number a channel, for these inputs 3, got 1: 0.5"),
        (None, [1, 1, 1, 1], "for these inputs 3, got 4: 1,1,1,1"),
        (None, [0.2, 0, 0.2], "std must be positive, finite numbers, got 0.2,0,0.2"),
        (None, [0.2, float("nan"), 0.2], "got 0.2,nan,0.2"),
        ([0, 0, float("inf")], None, "mean must be finite numbers, got 0,0,inf"),
    ],
)
def test_wrong_numbers_are_named(mean, std, message):
    with pytest.raises(InputError, match=message):
        normalise(IMAGES, mean, std)
