import pytest
import torch

from planimeter.data import StoredInputs, constants, normalise
from planimeter.errors import InputError

BYTES = torch.arange(256, dtype=torch.uint8).reshape(64, 1, 2, 2)
PHOTOS = torch.randint(
    0, 256, (2500, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


def test_a_byte_is_a_pixel_to_the_last_bit():
    floats = StoredInputs(BYTES, 255)[:]
    assert floats.dtype == torch.float32
    assert torch.equal(floats, BYTES.float() / 255)
    assert torch.equal(floats, (BYTES.double() / 255).float())  # correctly rounded


def test_rows_are_chosen_before_they_are_floats():
    stored = StoredInputs(PHOTOS, 255)
    everything = stored[:]
    rows = torch.tensor([5, 2, 2000, 5])
    for chosen in (rows, rows.tolist(), slice(3, 90, 4)):
        assert torch.equal(stored[chosen], everything[chosen])
    assert torch.equal(stored[7], everything[7])
    assert torch.equal(stored[-1], everything[-1])
    some = stored.select(rows)
    assert some.shape == (4, 3, 4, 4)
    assert some.values is stored.values  # nothing is copied
    assert torch.equal(some.select(torch.tensor([2, 0]))[:], everything[[2000, 5]])
    assert torch.equal(some.joined(stored.select(torch.tensor([9])))[4], everything[9])
    assert len(stored.joined(some)) == 2504
    with pytest.raises(InputError, match="only rows of one set"):
        stored.joined(StoredInputs(BYTES, 255))


def test_normalisation_is_that_of_the_floats():
    mean, std = (0.1, 0.2, 0.3), (0.5, 2.0, 3.0)
    stored = StoredInputs(PHOTOS, 255).normalised(mean, std)
    rows = torch.tensor([3, 1])
    assert torch.equal(stored[rows], normalise(PHOTOS[rows].float() / 255, mean, std))
    assert torch.equal(stored.normalised(None, None)[rows], PHOTOS[rows].float() / 255)
    with pytest.raises(InputError, match="one number a channel, for these inputs 3, got 1"):
        stored.normalised([0.5], None)


def test_constants_of_the_papers():
    photos, figures = StoredInputs(PHOTOS, 255), StoredInputs(BYTES, 255)
    assert constants("none", photos) == (None, None)
    mean, std = constants("granziol2020", figures)
    white_to_black = figures.normalised(mean, std)[:]
    assert (float(white_to_black.min()), float(white_to_black.max())) == (-1.0, 1.0)
    assert constants("granziol2020", photos) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with pytest.raises(InputError, match="1 or 3 channels, these inputs have 64"):
        constants("granziol2020", StoredInputs(torch.zeros(5, 64)))
    with pytest.raises(
        InputError, match=r"no normalisation 'granziol'.*did you mean 'granziol2020'"
    ):
        constants("granziol", photos)


@pytest.mark.parametrize("values", [PHOTOS, PHOTOS[:7], PHOTOS.float()[:, :, 0, 0]])
def test_standardised_rows_have_mean_0_and_std_1(values):
    stored = StoredInputs(values, 255)
    mean, std = constants("standardised", stored)
    result = stored.normalised(mean, std)[:].double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(result.mean(1), torch.zeros(3).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(result.std(1, correction=0), torch.ones(3).double())
    # Standardising again changes nothing: the statistics are those of the stored rows.
    assert constants("standardised", stored.normalised(mean, std)) == (mean, std)


def test_a_constant_column_is_only_shifted():
    columns = torch.stack([torch.full((9,), 3.0), torch.arange(9.0)], dim=1)
    stored = StoredInputs(columns)
    result = stored.normalised(*constants("standardised", stored))[:]
    assert result[:, 0].tolist() == [0.0] * 9
    assert bool(torch.isfinite(result).all())
