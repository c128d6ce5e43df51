"""Data that is no pair of tensors, or that the model does not take, is refused with the way out."""

import numpy as np
import pytest
import torch
from torch import nn

from planimeter import InputError, LossLandscape


class DataFrame:
    """As much of pandas as tells a table."""

    def __init__(self, values):
        self.values = values

    def to_numpy(self):
        return self.values

    def __iter__(self):
        return iter("abcd")

    def __len__(self):
        return len(self.values)


X, Y = torch.randn(6, 4), torch.arange(6) % 3
TABLE = DataFrame(X.numpy())
IMAGES = torch.zeros(6, 1, 2, 2, dtype=torch.uint8)


def convolutional():
    return nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(8, 3))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ((TABLE, Y), r"got a DataFrame; use torch.tensor\(frame.to_numpy"),
        ((X, TABLE), r"got a DataFrame; use torch.tensor\(frame.to_numpy"),
        (TABLE, r"got a DataFrame; use torch.tensor\(frame.to_numpy"),
        ([(TABLE, Y)], r"a tuple \(DataFrame, Tensor\); use torch.tensor\(frame.to_numpy"),
        ([{"x": X, "label": TABLE}], r"'label' must be a tensor, got a DataFrame; use"),
        ((X.numpy(), Y.numpy()), "got a NumPy array; use torch.from_numpy"),
        (X.numpy(), "got a NumPy array; use torch.from_numpy"),
        ([(X.numpy(), Y.numpy())], r"a tuple \(ndarray, ndarray\); use torch.from_numpy"),
        (X, r"must be \(inputs, targets\), got one tensor of shape \(6, 4\)"),
        ((X.tolist(), Y.tolist()), "a list; use torch.tensor"),
        ((X, None), "targets must be a tensor, got a NoneType"),
        ((X, (Y, Y)), r"got a tuple \(Tensor, Tensor\); put them side by side"),
        ((X, {"a": Y}), "got a dict; pick one"),
        ((X, Y.to(torch.complex64)), "targets of data are complex"),
        ((X.to_sparse(), Y), "sparse tensors.*to_dense"),
        ([(X, Y, torch.arange(6))], r"a tuple is its 2 arguments.*\[\(x, y\) for x, y, _ in"),
        ([{"image": X, "label": Y}], r"keyword arguments \(image\).*batch\['image'\]"),
        ([{"image": X}], "a dict without targets"),
        ((X[:, :3], Y), r"does not take inputs of \(6, 3\) float32: RuntimeError"),
        ("digits", "but a str"),
    ],
)
def test_odd_data_is_refused_with_the_way_out(data, words):
    with pytest.raises(InputError, match=words):
        LossLandscape(nn.Linear(4, 3), nn.functional.cross_entropy, data)


def test_images_of_bytes_are_refused_with_the_way_out():
    with pytest.raises(InputError, match=r"uint8.*pass inputs.float\(\) / 255"):
        LossLandscape(convolutional(), nn.functional.cross_entropy, (IMAGES, Y))
    found = LossLandscape(
        convolutional(), nn.functional.cross_entropy, (IMAGES.float() / 255, Y)
    ).loss()
    assert np.isfinite(found)
