import pytest
import torch

from planimeter.data import Dataset, StoredInputs, binary, grouped, load
from planimeter.data.classes import class_numbers, default_positive
from planimeter.errors import InputError

NAMES = ("airplane", "automobile", "bird", "cat")
ROWS = torch.arange(12, dtype=torch.uint8)[:, None]
PETS = Dataset(
    "pets",
    StoredInputs(ROWS),
    torch.arange(12) % 4,
    StoredInputs(100 + ROWS[:5]),
    torch.tensor([3, 3, 0, 1, 2]),
    4,
    NAMES,
)


def test_a_pair_leaves_the_others_out():
    task = grouped(PETS, [["automobile"], ["cat"]])
    assert task.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert task.inputs[:].flatten().tolist() == [1, 3, 5, 7, 9, 11]
    assert task.test_labels.tolist() == [1, 1, 0]
    assert task.test_inputs[:].flatten().tolist() == [100, 101, 103]
    assert task.classes == 2


def test_groups_may_be_large_and_many():
    task = grouped(PETS, [[3, 0], ["bird"], ["1"]])
    assert task.labels[:4].tolist() == [0, 2, 1, 0]
    assert (len(task.labels), task.classes) == (12, 3)


def test_binary_is_a_group_and_all_others():
    for positive in (["cat", "bird"], [2, 3], ["2", 3]):
        assert torch.equal(binary(PETS, positive).labels, torch.tensor([0, 0, 1, 1] * 3))
    digits = load("digits")
    assert torch.equal(binary(digits).labels, (digits.labels >= 5).long())
    assert default_positive("boolean", 2) == (1,)
    with pytest.raises(InputError, match="pets has 4 classes: choose"):
        binary(PETS)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([[1]], "two or more groups"),
        ([[1], []], "none of them empty"),
        ([[1], [2, 1]], "class 1 stands in two groups"),
        ([["cat"], ["automobil"]], "no class 'automobil'.*did you mean 'automobile'"),
        ([[0], [4]], "no class 4; they are 0 to 3"),
        ([[0], [-1]], "no class -1"),
    ],
)
def test_impossible_groups_are_refused(groups, message):
    with pytest.raises(InputError, match=message):
        grouped(PETS, groups)


def test_names_are_not_needed():
    assert class_numbers([1, "2"], 3) == {1, 2}
    with pytest.raises(InputError, match="no class 'x'; there are 0 to 2"):
        class_numbers(["x"], 3)
