import pytest
import torch
from torch import nn
from torch.nn import functional as F

from planimeter.landscape import LossLandscape
from planimeter.products.program import LARGEST_NUMBER, Programs
from planimeter.products.tape import TapeError

KINDS = ["hessian", "gauss_newton", "empirical_fisher"]


class Attentive(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens):
        return self.head(self.layer(self.embedding(tokens)).mean(1))


def mlp():
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), lambda n: torch.randn(n, 6)


def convolutional():
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip
    return net, lambda n: torch.randn(n, 2, 8, 8)


def attentive():
    return Attentive(), lambda n: torch.randint(0, 11, (n, 5))


def programs(model, loss, x, y, kind="hessian"):
    product = getattr(LossLandscape(model, loss, (x, y)), kind)().product
    return Programs(product.curvature, product.function, product.parameters), product


def directions(product, seed):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(p.shape, generator=generator, dtype=p.dtype)
        for p in product.parameters.values()
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("made", [mlp, convolutional, attentive])
def test_a_program_holds_for_every_batch_and_direction(made, kind):
    torch.manual_seed(0)
    model, inputs = made()
    model = model.double().eval()

    def batch(n):
        x = inputs(n)
        return (x.double() if x.is_floating_point() else x), torch.randint(0, 3, (n,))

    program, product = programs(model, F.cross_entropy, *batch(7), kind)
    with product.mode():
        for seed, own in enumerate([batch(7), batch(7), batch(4), batch(7)]):
            along = directions(product, seed)
            found = program(own)(along)
            expected = product.curvature.forward(product.function, product.parameters, own)(along)
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other)
    assert len(program.tapes) == 2


def test_zeros_of_one_batch_are_not_taken_for_zeros_of_all():
    model, _ = mlp()
    model = model.double()
    y = torch.tensor([0, 1, 2])
    empty, full = torch.zeros(3, 6).double(), torch.randn(3, 6).double()
    program, product = programs(model, F.cross_entropy, empty, y)
    along = directions(product, 0)
    program((empty, y))(along)
    found = program((full, y))(along)
    expected = product.curvature.forward(product.function, product.parameters, (full, y))(along)
    torch.testing.assert_close(found, expected)


def test_beyond_a_few_shapes_nothing_is_recorded():
    model, inputs = mlp()
    program, product = programs(model, F.cross_entropy, inputs(3), torch.zeros(3).long())
    for n in range(1, LARGEST_NUMBER + 3):
        own = inputs(n), torch.arange(n) % 3
        found = program(own)(directions(product, n))
        expected = product.curvature.forward(product.function, product.parameters, own)
        torch.testing.assert_close(found, expected(directions(product, n)))
    assert len(program.tapes) == LARGEST_NUMBER


def masked(outputs, targets):
    return (outputs.square().sum(1)[targets > 0]).mean()


def scaled_by_a_number(outputs, targets):
    return outputs.square().mean() * float(targets.sum())


@pytest.mark.parametrize("loss", [masked, scaled_by_a_number])
def test_what_depends_on_the_values_of_a_batch_is_refused(loss):
    model, inputs = mlp()
    x, y = inputs(6), torch.tensor([0, 1, 2, 1, 0, 2])
    program, product = programs(model, loss, x, y)
    with pytest.raises(TapeError, match="depends on"):
        program((x, y))(directions(product, 0))


@pytest.mark.parametrize("loss", [masked, scaled_by_a_number])
def test_products_go_on_without_it(loss):
    torch.manual_seed(1)
    model, inputs = mlp()
    model = model.double()
    x, y = inputs(12).double(), torch.randint(0, 3, (12,))
    v = torch.randn(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    found, expected = (
        LossLandscape(model, loss, (x, y), batch_size=12, products=way).hessian() @ v
        for way in ("recompute", "graph")
    )
    torch.testing.assert_close(found, expected)
