import pytest
import torch

from planimeter.data import DATASETS, load
from planimeter.errors import InputError


def test_digits_are_the_known_images():
    digits = load("digits")
    assert digits.inputs.shape == (1797, 1, 8, 8)
    assert digits.inputs.dtype == torch.float32
    assert (float(digits.inputs.min()), float(digits.inputs.max())) == (0.0, 1.0)
    assert digits.labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert digits.test_inputs is None


@pytest.mark.data
def test_mnist_is_the_known_set():
    mnist = load("mnist")
    assert mnist.inputs.shape == (60000, 1, 28, 28)
    assert mnist.labels.bincount().tolist()[:3] == [5923, 6742, 5958]
    assert mnist.test_labels.bincount().tolist()[:3] == [980, 1135, 1032]
    assert float(mnist.inputs.mean()) == pytest.approx(0.1307, abs=1e-4)  # the field's constant
    assert float(mnist.inputs.max()) == 1.0


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(InputError, match="digits, mnist"):
        load("imagenet")


def test_a_missing_file_names_the_path_and_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv("PLANIMETER_DATA", str(tmp_path))
    path = tmp_path / "mnist" / "train-images-idx3-ubyte.gz"
    with pytest.raises(InputError, match=f"{path}.*planimeter data fetch mnist"):
        DATASETS["mnist"].load.__wrapped__()
