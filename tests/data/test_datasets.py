import dataclasses
import hashlib

import pytest
import torch

from planimeter.data import DATASETS, datasets, load
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


def test_cifar10_rows_are_a_label_and_three_planes(monkeypatch, tmp_path):
    """An image of its own in each file: pixel (channel, row, column) is told by its place alone."""
    monkeypatch.setenv("PLANIMETER_DATA", str(tmp_path))
    (tmp_path / "cifar10").mkdir()
    members = {}
    for number, name in enumerate(datasets._CIFAR10.members):
        content = b"".join(
            bytes([(number + row) % 10, *((number + row + i // 7) % 256 for i in range(3072))])
            for row in range(2)
        )
        (tmp_path / "cifar10" / name.rpartition("/")[2]).write_bytes(content)
        members[name] = hashlib.md5(content).hexdigest()
    monkeypatch.setattr(
        datasets, "_CIFAR10", dataclasses.replace(datasets._CIFAR10, members=members)
    )
    cifar10 = DATASETS["cifar10"].load.__wrapped__()
    assert cifar10.inputs.shape == (10, 3, 32, 32)
    assert cifar10.inputs.dtype == torch.float32
    assert cifar10.labels.tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]
    assert cifar10.test_labels.tolist() == [5, 6]
    place = 1024 * 2 + 32 * 5 + 9
    assert float(cifar10.inputs[7, 2, 5, 9]) == pytest.approx(((3 + 1 + place // 7) % 256) / 255)
    assert float(cifar10.test_inputs[0, 2, 5, 9]) == pytest.approx(((5 + place // 7) % 256) / 255)


def test_cifar10_files_have_whole_rows():
    with pytest.raises(InputError, match="3074 bytes are no multiple of 3073"):
        datasets._read_cifar10(bytes(3074))


@pytest.mark.slow
@pytest.mark.data("cifar10")
def test_cifar10_is_the_known_set():
    cifar10 = load("cifar10")
    assert cifar10.inputs.shape == (50000, 3, 32, 32)
    assert cifar10.test_inputs.shape == (10000, 3, 32, 32)
    assert cifar10.labels[:5].tolist() == [6, 9, 9, 4, 1]
    assert cifar10.test_labels[:5].tolist() == [3, 8, 8, 0, 6]
    assert cifar10.labels.bincount().tolist() == [5000] * 10
    assert cifar10.test_labels.bincount().tolist() == [1000] * 10
    mean = cifar10.inputs.mean(dim=(0, 2, 3)).tolist()
    assert mean == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-4)  # the field's constants
    assert (float(cifar10.inputs.min()), float(cifar10.inputs.max())) == (0.0, 1.0)


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(InputError, match="digits, mnist"):
        load("imagenet")


def test_a_missing_file_names_the_path_and_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv("PLANIMETER_DATA", str(tmp_path))
    path = tmp_path / "mnist" / "train-images-idx3-ubyte.gz"
    with pytest.raises(InputError, match=f"{path}.*planimeter data fetch mnist"):
        DATASETS["mnist"].load.__wrapped__()
