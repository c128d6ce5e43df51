import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from planimeter.data.wrong_labels import WRONG_LABELS, wrong_labels
from planimeter.errors import InputError


def wrong(labels, classes, kind, seed):
    return wrong_labels(labels, classes, kind, torch.Generator().manual_seed(seed))


@given(
    classes=st.integers(2, 12),
    kind=st.sampled_from(WRONG_LABELS),
    seed=st.integers(0, 2**31),
    size=st.integers(0, 60),
)
def test_no_label_is_right_and_all_are_classes(classes, kind, seed, size):
    labels = torch.arange(size) % classes
    result = wrong(labels, classes, kind, seed)
    assert not bool((result == labels).any())
    assert bool(((result >= 0) & (result < classes)).all())
    if classes == 2:
        assert torch.equal(result, 1 - labels)


@given(kind=st.sampled_from(WRONG_LABELS), seed=st.integers(0, 2**31), size=st.integers(1, 60))
def test_the_first_labels_do_not_depend_on_how_many_follow(kind, seed, size):
    labels = torch.arange(60) % 7
    whole = wrong(labels, 7, kind, seed)
    assert torch.equal(wrong(labels[:size], 7, kind, seed), whole[:size])


def test_uniform_labels_are_uniform():
    result = wrong(torch.full((30_000,), 3), 6, "uniform", 0)
    counts = result.bincount(minlength=6)
    assert int(counts[3]) == 0
    others = counts[torch.arange(6) != 3].double()
    chi_square = float(((others - 6000) ** 2 / 6000).sum())
    assert chi_square < 23.5  # 4 degrees of freedom, p = 1e-4


def test_permuted_labels_are_one_permutation_each_equally_probable():
    seen = [tuple(wrong(torch.arange(4), 4, "permuted", seed).tolist()) for seed in range(900)]
    assert all(sorted(permutation) == [0, 1, 2, 3] for permutation in seen)
    counts = torch.tensor([seen.count(permutation) for permutation in set(seen)]).double()
    assert len(counts) == 9  # derangements of four
    assert float(((counts - 100) ** 2 / 100).sum()) < 31.8  # 8 degrees of freedom, p = 1e-4


def test_bad_input():
    with pytest.raises(InputError, match=r"no wrong labels 'permute'.*did you mean 'permuted'"):
        wrong(torch.zeros(3).long(), 3, "permute", 0)
    with pytest.raises(InputError, match="with one class no label is wrong"):
        wrong(torch.zeros(3).long(), 1, "uniform", 0)
