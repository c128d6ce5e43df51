"""The loss is given what the model returned; outputs are one tensor, or are not defined."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from planimeter import InputError, LossLandscape
from planimeter import measure as measure_all
from planimeter.errors import NotApplicableError

cross_entropy = nn.functional.cross_entropy
Pair = namedtuple("Pair", "outputs other")


@dataclass
class Answer:
    outputs: Tensor


class Returns(nn.Module):
    def __init__(self, dress):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
        self.dress = dress

    def forward(self, x):
        return self.dress(self.body(x))


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(14, 4, generator=generator, dtype=torch.float64)
    return inputs, torch.arange(14) % 3


@pytest.fixture
def plain(rows):
    return LossLandscape(Returns(lambda h: h), cross_entropy, rows)


def first(outputs, targets):
    return cross_entropy(outputs[0], targets)


def named(outputs, targets):
    return cross_entropy(outputs.outputs, targets)


def keyed(outputs, targets):
    return cross_entropy(outputs["out"], targets)


ONE = [
    (lambda h: [h], first),
    (lambda h: (h, None, 3), first),
    (lambda h: Pair(h, "word"), named),
    (lambda h: {"out": h}, keyed),
    (lambda h: OrderedDict(out=h), keyed),
    (lambda h: [[h]], lambda outputs, targets: first(outputs[0], targets)),
    (lambda h: SimpleNamespace(logits=h, more=h.sum()), cross_entropy),
    (lambda h: {"logits": h, "more": h.sum()}, cross_entropy),
]
SEVERAL = [
    (lambda h: (h, h.sum()), first),
    (lambda h: Pair(h, h.argmax(1)), named),
    (lambda h: {"out": h, "aux": h.sum(1)}, keyed),
    (lambda h: Answer(h), named),
    (lambda h: SimpleNamespace(outputs=h), named),
    (
        lambda h: {"logits": h, "more": h},
        lambda outputs, targets: cross_entropy(outputs["logits"], targets),
    ),
]


@pytest.mark.parametrize(("dress", "loss"), ONE)
@pytest.mark.parametrize("batch_size", [None, 5])
def test_one_tensor_in_a_structure_is_the_outputs(dress, loss, batch_size, rows, plain):
    landscape = LossLandscape(Returns(dress), loss, rows, batch_size=batch_size)
    assert landscape.loss() == pytest.approx(plain.loss(), rel=1e-14)
    assert landscape.accuracy() == plain.accuracy()
    for matrix in ("hessian", "gauss_newton", "empirical_fisher"):
        found, expected = (getattr(one, matrix)().dense() for one in (landscape, plain))
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("dress", "loss"), SEVERAL)
@pytest.mark.parametrize("batch_size", [None, 5])
def test_of_several_tensors_the_loss_takes_what_it_needs(dress, loss, batch_size, rows, plain):
    landscape = LossLandscape(Returns(dress), loss, rows, batch_size=batch_size)
    assert landscape.loss() == pytest.approx(plain.loss(), rel=1e-14)
    assert torch.allclose(landscape.gradient(), plain.gradient(), rtol=1e-12, atol=1e-14)
    found = landscape.hessian().dense()
    assert torch.allclose(found, plain.hessian().dense(), rtol=1e-12, atol=1e-14)
    for part in (landscape.gauss_newton, landscape.empirical_fisher, landscape.accuracy):
        with pytest.raises(NotApplicableError, match=r"returns .*returns one tensor"):
            part()


def test_measures_of_the_loss_go_on_where_outputs_are_several(rows, plain):
    landscape = LossLandscape(Returns(lambda h: (h, h.sum())), first, rows)
    names = ["trace", "keskar_sharpness", "adaptive_sharpness", "gauss_newton_trace"]
    refused = {}
    found = measure_all(landscape, names, refused=refused.__setitem__)
    expected = measure_all(plain, names)
    assert list(refused) == ["gauss_newton_trace"]
    for name, value in found.items():
        assert value.value == pytest.approx(expected[name].value, rel=1e-9)


@pytest.mark.parametrize(
    ("dress", "words"),
    [
        (lambda h: [h], r"a list with tensors of shapes \(14, 3\).*outputs\[0\]"),
        (lambda h: {"out": h}, r"a dict with tensors.*outputs\['out'\]"),
        (lambda h: Answer(h), r"an? Answer with tensors.*outputs\.outputs"),
        (lambda h: None, "a NoneType without a tensor"),
    ],
)
def test_a_loss_that_does_not_take_the_structure_is_told_how(dress, words, rows):
    with pytest.raises(InputError, match=words):
        LossLandscape(Returns(dress), cross_entropy, rows)


@pytest.mark.parametrize(("dress", "loss"), ONE + SEVERAL)
def test_the_loss_of_a_float32_structure_is_computed_in_float64(dress, loss, rows):
    """Where rows are fitted well, float32 has no digit of 1 - p."""
    models = [Returns(one).float() for one in (dress, lambda h: h)]
    for model in models:
        with torch.no_grad():
            model.body[-1].weight.mul_(300)
    inputs = rows[0].float()
    labels = models[1](inputs).argmax(1)
    one, two = (
        LossLandscape(model, own, (inputs, labels))
        for model, own in zip(models, (loss, cross_entropy), strict=True)
    )
    assert float(cross_entropy(models[1](inputs), labels).detach()) != two.loss()
    assert one.loss() == pytest.approx(two.loss(), rel=1e-12)
    assert torch.allclose(one.gradient(), two.gradient(), rtol=1e-5, atol=0)


def test_logits_are_normalised_only_where_outputs_are_one_tensor(rows, plain):
    options = {"normalise_logits": True}
    one = LossLandscape(Returns(lambda h: [h]), first, rows, **options)
    two = LossLandscape(Returns(lambda h: h), cross_entropy, rows, **options)
    assert one.loss() == pytest.approx(two.loss(), rel=1e-14)
    with pytest.raises(NotApplicableError, match="returns one tensor"):
        LossLandscape(Returns(lambda h: (h, h.sum())), first, rows, **options)
