"""BatchNorm cannot take the statistics of one row: training says so, and the way out."""

import pytest
import torch
from torch import nn

from planimeter import InputError
from planimeter.training import after_epochs, fit, make_optimiser


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))


def trained(rows, batch_size, model):
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(rows, 4, generator=generator), torch.arange(rows) % 3
    optimiser = make_optimiser("sgd", model.parameters(), lr=0.1)
    options = {"batch_size": batch_size, "max_epochs": 1, "stop": after_epochs(1)}
    return fit(model, nn.functional.cross_entropy, optimiser, data, **options)


@pytest.mark.parametrize(("rows", "batch_size"), [(9, 4), (5, 1), (1, 1)])
def test_a_last_batch_of_one_row_is_refused_in_words(rows, batch_size):
    with pytest.raises(InputError, match=r"a batch has one row.*choose a batch size"):
        trained(rows, batch_size, network())


def test_other_sizes_and_other_layers_are_not():
    assert trained(8, 4, network()).epochs == 1
    assert trained(9, 4, nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))).epochs == 1
    pixels = nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.BatchNorm2d(1), nn.Flatten())
    assert trained(9, 4, nn.Sequential(pixels, nn.Linear(4, 3))).epochs == 1


def test_other_errors_of_a_model_are_its_own():
    class Refuses(nn.Linear):
        def forward(self, x):
            raise ValueError("not today")

    with pytest.raises(ValueError, match="not today") as raised:
        trained(9, 4, Refuses(4, 3))
    assert not isinstance(raised.value, InputError)
