import pytest
import torch

from planimeter.data import binary_split, load
from planimeter.errors import InputError


@pytest.fixture
def split():
    return binary_split(load("digits"), train=300, test=600)


def test_parts_are_disjoint_and_labelled_truly(split):
    digits = load("digits")
    parts = torch.cat([split.train_inputs, split.test_inputs, split.pool_inputs])
    assert parts.shape == digits.inputs.shape
    everywhere, originals = (
        sorted(map(bytes, (images.reshape(1797, -1) * 16).byte().numpy()))
        for images in (parts, digits.inputs)
    )
    assert everywhere == originals
    labels = torch.cat([split.train_labels, split.test_labels, split.pool_labels])
    assert int(labels.sum()) == int((digits.labels >= 5).sum())


def test_attack_rows_carry_flipped_labels(split):
    inputs, labels = split.attack_set(50, seed=1)
    for image, label in zip(inputs, labels, strict=True):
        matches = (split.pool_inputs == image).flatten(1).all(1).nonzero().reshape(-1)
        assert int(label) == 1 - int(split.pool_labels[matches[0]])
    assert not torch.equal(inputs, split.attack_set(50, seed=2)[0])
    assert torch.equal(inputs, split.attack_set(50, seed=1)[0])
    assert len(split.attack_set(0, seed=1)[1]) == 0


def test_the_seed_alone_decides():
    one, same, other = (binary_split(load("digits"), train=10, test=10, seed=s) for s in (1, 1, 2))
    assert torch.equal(one.train_inputs, same.train_inputs)
    assert not torch.equal(one.train_inputs, other.train_inputs)


def test_other_classes_can_be_positive():
    split = binary_split(load("digits"), train=1000, test=100, positive=[0])
    assert 0.05 < float(split.train_labels.double().mean()) < 0.15


@pytest.mark.data
def test_test_rows_come_from_the_test_part_of_mnist():
    mnist = load("mnist")
    split = binary_split(mnist, train=500, test=1000)
    assert len(split.pool_labels) == 59500
    row = split.test_inputs[0]
    assert bool((mnist.test_inputs == row).flatten(1).all(1).any())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": 1500, "test": 600}, "too few rows"),
        ({"train": 10, "test": 10, "positive": []}, "must be some, not all"),
        ({"train": 10, "test": 10, "positive": list(range(10))}, "must be some, not all"),
        ({"train": 10, "test": 10, "positive": [10]}, "must be some, not all"),
    ],
)
def test_impossible_splits_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        binary_split(load("digits"), **settings)


def test_too_large_an_attack_set_is_refused(split):
    with pytest.raises(InputError, match="only 897 are left"):
        split.attack_set(898, seed=0)
