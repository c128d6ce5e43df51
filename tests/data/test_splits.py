import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planimeter.data import WRONG_LABELS, Dataset, StoredInputs, binary_split, load, split
from planimeter.errors import InputError

# A row is its number, so that its place tells where it went; the test part begins at 1000.
NUMBERED = Dataset(
    "numbered",
    StoredInputs(torch.arange(200.0)[:, None]),
    torch.arange(200) % 5,
    StoredInputs(torch.arange(1000.0, 1050.0)[:, None]),
    torch.arange(50) % 5,
    5,
)


def rows(inputs):
    return [int(row) for row in inputs.flatten()]


@pytest.fixture
def digits():
    return binary_split(load("digits"), train=300, test=600)


def test_parts_are_disjoint_and_labelled_truly(digits):
    everything = load("digits")
    parts = torch.cat([digits.train_inputs, digits.test_inputs, digits.pool[:]])
    assert parts.shape == everything.inputs.shape
    everywhere, originals = (
        sorted(map(bytes, (images.reshape(1797, -1) * 16).byte().numpy()))
        for images in (parts, everything.inputs[:])
    )
    assert everywhere == originals
    labels = torch.cat([digits.train_labels, digits.test_labels, digits.pool_labels])
    assert int(labels.sum()) == int((everything.labels >= 5).sum())


def test_the_rows_are_those_of_earlier_versions(digits):
    """Stored results of studies are compared with new ones: the choice may not change."""
    inputs, labels = digits.attack_set(50, seed=7)
    content = [digits.train_inputs, digits.train_labels, digits.test_inputs, inputs, labels]
    sums = [hashlib.md5(values.numpy().tobytes()).hexdigest()[:8] for values in content]
    assert sums == ["85264ae7", "53ff67f3", "48aed6d7", "08693fb1", "6c19de89"]


@pytest.mark.parametrize("kind", WRONG_LABELS)
@pytest.mark.parametrize("train", [20, 150])
def test_each_row_goes_to_one_place(kind, train):
    parts = split(NUMBERED, train=train, test=30, seed=2, wrong=kind)
    attack, wrong = parts.attack_set(50, seed=1)
    train_rows, test_rows, attack_rows = map(rows, (parts.train_inputs, parts.test_inputs, attack))
    assert len(set(train_rows)) == train
    assert len(set(attack_rows)) == 50
    assert not set(train_rows) & set(attack_rows)
    assert set(test_rows) <= set(range(1000, 1050))
    assert parts.train_labels.tolist() == [row % 5 for row in train_rows]
    assert parts.test_labels.tolist() == [row % 5 for row in test_rows]
    assert all(label != row % 5 for row, label in zip(attack_rows, wrong.tolist(), strict=True))
    if kind == "permuted":
        assert (
            len({(row % 5, label) for row, label in zip(attack_rows, wrong.tolist(), strict=True)})
            == 5
        )


@given(
    kind=st.sampled_from(WRONG_LABELS),
    seed=st.integers(0, 2**31),
    sizes=st.tuples(st.integers(0, 100), st.integers(0, 100)).map(sorted),
)
@settings(max_examples=30)
def test_attack_sets_are_a_ladder(kind, seed, sizes):
    parts = split(NUMBERED, train=100, test=10, wrong=kind)
    small, large = (parts.attack_set(size, seed) for size in sizes)
    assert torch.equal(large[0][: sizes[0]], small[0])
    assert torch.equal(large[1][: sizes[0]], small[1])


def test_binary_attack_labels_are_flipped_whatever_the_kind():
    for kind in WRONG_LABELS:
        parts = split(load("boolean"), train=50, test=20, wrong=kind)
        inputs, labels = parts.attack_set(40, seed=3)
        numbers = (inputs @ 2.0 ** torch.arange(6, -1, -1)).long()
        assert torch.equal(labels, 1 - load("boolean").labels[numbers])


def test_the_seed_alone_decides(digits):
    one, same, other = (binary_split(load("digits"), train=10, test=10, seed=s) for s in (1, 1, 2))
    assert torch.equal(one.train_inputs, same.train_inputs)
    assert not torch.equal(one.train_inputs, other.train_inputs)
    inputs = digits.attack_set(50, seed=1)[0]
    assert not torch.equal(inputs, digits.attack_set(50, seed=2)[0])
    assert torch.equal(inputs, digits.attack_set(50, seed=1)[0])
    assert len(digits.attack_set(0, seed=1)[1]) == 0


@given(seed=st.integers(0, 2**31), fractions=st.tuples(st.floats(0, 1), st.floats(0, 1)))
@settings(max_examples=30)
def test_corruption_is_of_a_part_of_s_alone(seed, fractions):
    parts = split(NUMBERED, train=80, test=10)
    small, large = (parts.corrupted(fraction, seed) for fraction in sorted(fractions))
    for fraction, corrupted in zip(sorted(fractions), (small, large), strict=True):
        wrong = corrupted.train_labels != parts.train_labels
        assert int(wrong.sum()) == round(80 * fraction)
        assert torch.equal(corrupted.train_inputs, parts.train_inputs)
        assert torch.equal(corrupted.pool_labels, parts.pool_labels)
        assert torch.equal(corrupted.test_labels, parts.test_labels)
    changed = small.train_labels != parts.train_labels
    assert torch.equal(large.train_labels[changed], small.train_labels[changed])


def test_other_classes_can_be_positive():
    parts = binary_split(load("digits"), train=1000, test=100, positive=[0])
    assert 0.05 < float(parts.train_labels.double().mean()) < 0.15


def test_normalisation_looks_at_s_only():
    parts = split(NUMBERED, train=40, test=30, normalisation="standardised")
    stored = NUMBERED.inputs[:].flatten()[rows(parts.train.normalised(None, None)[:])].double()
    mean, std = float(stored.mean()), float(stored.std(correction=0))
    for inputs in (parts.train, parts.test, parts.pool):
        raw = inputs.normalised(None, None)[:]
        torch.testing.assert_close(inputs[:], (raw - mean) / std)
    assert float(parts.train_inputs.mean()) == pytest.approx(0, abs=1e-6)
    assert float(parts.test_inputs.min()) > 5  # the test part lies elsewhere, and stays there


def test_s_and_a_together():
    parts = split(NUMBERED, train=40, test=30)
    inputs, labels = parts.with_attack_set(25, seed=4)
    attack, wrong = parts.attack_set(25, seed=4)
    assert torch.equal(inputs[:], torch.cat([parts.train_inputs, attack]))
    assert torch.equal(labels, torch.cat([parts.train_labels, wrong]))


@pytest.mark.data
def test_test_rows_come_from_the_test_part_of_mnist():
    mnist = load("mnist")
    parts = binary_split(mnist, train=500, test=1000)
    assert len(parts.pool_labels) == 59500
    assert parts.pool.values is mnist.inputs.values  # no copy
    row = parts.test.raw([0])
    assert bool((mnist.test_inputs.values == row).flatten(1).all(1).any())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": 1500, "test": 600}, "too few rows for 1500 training and 600 test rows: .* 1797"),
        ({"train": 0, "test": 600}, "too few rows"),
        ({"train": 10, "test": 10, "positive": []}, "must be some, not all"),
        ({"train": 10, "test": 10, "positive": list(range(10))}, "must be some, not all"),
        ({"train": 10, "test": 10, "positive": [10]}, "no class 10; they are 0 to 9"),
    ],
)
def test_impossible_splits_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        binary_split(load("digits"), **settings)


def test_too_few_rows_of_a_test_part():
    with pytest.raises(InputError, match="come from 200 and 50 of its test part"):
        split(NUMBERED, train=10, test=51)
    with pytest.raises(InputError, match="did you mean 'uniform'"):
        split(NUMBERED, train=10, test=5, wrong="uniforn")


def test_impossible_attack_sets_and_corruption(digits):
    with pytest.raises(InputError, match="only 897 are left"):
        digits.attack_set(898, seed=0)
    with pytest.raises(InputError, match=r"from 0 to 1, got 1\.5"):
        digits.corrupted(1.5)
