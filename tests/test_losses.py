import pytest
import torch

from planimeter.errors import InputError
from planimeter.losses import binary_cross_entropy, predicted_classes


def test_binary_cross_entropy_is_the_two_class_cross_entropy():
    logits = torch.linspace(-3, 3, 7, dtype=torch.float64)
    labels = torch.tensor([0, 1, 0, 1, 1, 0, 1])
    two_class = torch.stack([torch.zeros_like(logits), logits], dim=1)
    expected = torch.nn.functional.cross_entropy(two_class, labels)
    assert binary_cross_entropy(logits, labels) == pytest.approx(float(expected), rel=1e-14)
    assert binary_cross_entropy(logits[:, None], labels) == pytest.approx(
        float(expected), rel=1e-14
    )
    assert torch.equal(predicted_classes(logits[:, None]), predicted_classes(two_class))


def test_binary_cross_entropy_refuses_several_outputs():
    with pytest.raises(InputError, match="cross_entropy"):
        binary_cross_entropy(torch.zeros(4, 3), torch.zeros(4))


def test_binary_cross_entropy_refuses_other_labels():
    with pytest.raises(InputError, match="got values from 1 to 2"):
        binary_cross_entropy(torch.zeros(2), torch.tensor([1, 2]))
