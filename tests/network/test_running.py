"""A landscape is immutable and leaves the model as it was; modules may differentiate inside."""

import copy

import pytest
import torch
from torch import nn

from planimeter import InputError, LossLandscape, find_rescalings, top_eigenvalues
from planimeter import measure as measure_all
from planimeter.slices import random_direction, slice_1d
from planimeter.training import evaluate

cross_entropy = nn.functional.cross_entropy


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(14, 4, generator=generator, dtype=torch.float64)
    return inputs, torch.arange(14) % 3


def body():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


class Writes(nn.Module):
    """Does something to its own tensors when it runs."""

    def __init__(self, deed):
        super().__init__()
        self.body, self.deed = body(), deed
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def forward(self, x):
        outputs = self.body(x) * (1 + self.count if self.deed == "use" else 1)
        if self.deed in ("add", "use"):
            self.count.add_(1)
        elif self.deed == "assign":
            self.count = self.count + 1
        elif self.deed == "data":
            self.count.data += 1
        elif self.deed == "train":
            self.train()
        elif self.deed == "clamp":
            self.body[0].weight.data.clamp_(-0.1, 0.1)
        elif self.deed == "shrink" or (self.deed == "shrink later" and len(x) < 5):
            with torch.no_grad():
                self.body[0].weight.mul_(0.9)
        elif self.deed == "raise" and len(x) < 5:
            raise KeyError(len(x))
        return outputs


def state_of(model):
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return tensors, [module.training for module in model.modules()]


def unchanged(model, before):
    tensors, flags = before
    same = all(torch.equal(model.state_dict()[name], old) for name, old in tensors.items())
    return same and flags == [module.training for module in model.modules()]


@pytest.mark.parametrize("deed", ["add", "use", "assign", "data", "train"])
def test_what_a_module_writes_to_its_buffers_does_not_last(deed, rows):
    model = Writes(deed).train()
    model.body.eval()  # flags that differ from module to module
    before = state_of(model)
    landscape = LossLandscape(model, cross_entropy, rows, batch_size=5)
    expected = LossLandscape(body(), cross_entropy, rows).hessian().dense()
    for _ in range(2):
        assert torch.allclose(landscape.hessian().dense(), expected, rtol=1e-12, atol=1e-14)
    assert all(torch.equal(landscape.state[name], old) for name, old in before[0].items())
    assert unchanged(model, before)


@pytest.mark.parametrize("deed", ["clamp", "shrink", "shrink later"])
def test_a_module_that_changes_its_weights_is_refused(deed, rows):
    model = Writes(deed)
    before = state_of(model)
    with pytest.raises(InputError, match=r"changes 'body.0.weight' when it runs"):
        LossLandscape(model, cross_entropy, rows, batch_size=5).loss()
    assert unchanged(model, before)


def test_the_model_is_as_it_was_after_an_error_of_its_own(rows):
    model = Writes("raise").train()
    before = state_of(model)
    with pytest.raises(KeyError):
        LossLandscape(model, cross_entropy, rows, batch_size=5).loss()
    assert unchanged(model, before)


@pytest.mark.parametrize(
    "embedding", [nn.Embedding(8, 3, sparse=True), nn.Embedding(8, 3, sparse=True, max_norm=9.0)]
)
def test_sparse_gradients_are_those_of_a_dense_embedding(embedding, rows):
    tokens = torch.arange(56).reshape(14, 4) % 8
    model = nn.Sequential(embedding, nn.Flatten(), nn.Linear(12, 3)).double()
    dense = copy.deepcopy(model)
    dense[0].sparse, dense[0].max_norm = False, None
    one, two = (LossLandscape(m, cross_entropy, (tokens, rows[1])) for m in (model, dense))
    assert torch.equal(one.gradient(), two.gradient())
    assert torch.equal(one.hessian().dense(), two.hessian().dense())
    assert model[0].sparse


def test_a_function_with_sparse_gradients_has_the_same_gradient(rows):
    class Looked(nn.Module):
        def __init__(self, sparse):
            super().__init__()
            torch.manual_seed(0)
            self.table, self.sparse = nn.Parameter(torch.randn(8, 3)), sparse

        def forward(self, tokens):
            return nn.functional.embedding(tokens, self.table, sparse=self.sparse).sum(1)

    tokens = torch.arange(56).reshape(14, 4) % 8
    one, two = (LossLandscape(Looked(s), cross_entropy, (tokens, rows[1])) for s in (True, False))
    assert torch.equal(one.gradient(), two.gradient())


class Physics(nn.Module):
    """u and du/dx by autograd's graph, or by torch.func."""

    def __init__(self, way):
        super().__init__()
        torch.manual_seed(2)
        self.body = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1)).double()
        self.way = way

    def forward(self, points):
        if self.way == "jvp":
            return torch.cat(torch.func.jvp(self.body, (points,), (torch.ones_like(points),)), 1)
        if self.way == "vmap":
            slope = torch.vmap(torch.func.grad(lambda x: self.body(x[None]).sum()))(points)
            return torch.cat([self.body(points), slope], 1)
        points = points.requires_grad_() if self.way == "flag" else points.detach().requires_grad_()
        u = self.body(points)
        (slope,) = torch.autograd.grad(u.sum(), points, create_graph=True)
        return torch.cat([u, slope], 1)


def residual(outputs, targets):
    return (outputs.sum(1, keepdim=True) - targets).square().mean()


def by_differences(model, loss):
    """The Hessian, by central differences of autograd's gradient."""
    parameters = list(model.parameters())
    theta = nn.utils.parameters_to_vector(parameters).detach().clone()

    def gradient(at):
        nn.utils.vector_to_parameters(at, parameters)
        found = torch.autograd.grad(loss(), parameters, materialize_grads=True, allow_unused=True)
        return nn.utils.parameters_to_vector(found).detach()

    step = 1e-5 * torch.eye(len(theta), dtype=torch.float64)
    columns = [(gradient(theta + e) - gradient(theta - e)) / 2e-5 for e in step]
    nn.utils.vector_to_parameters(theta, parameters)
    return torch.stack(columns)


@pytest.fixture
def line():
    points = torch.linspace(-1, 1, 15, dtype=torch.float64)[:, None]
    return points, torch.zeros(15, 1, dtype=torch.float64)


@pytest.mark.parametrize("way", ["detach", "flag", "jvp", "vmap"])
@pytest.mark.parametrize("batch_size", [None, 4])
def test_a_module_may_differentiate_by_its_inputs(way, batch_size, line):
    points, zero = line
    model = Physics(way)
    expected = by_differences(model, lambda: residual(model(points.clone()), zero))
    landscape = LossLandscape(model, residual, line, batch_size=batch_size)
    assert torch.allclose(landscape.hessian().dense(), expected, rtol=1e-6, atol=1e-7)
    value = float(residual(model(points.clone()), zero).detach())
    assert landscape.loss() == pytest.approx(value, rel=1e-12)
    (largest,) = top_eigenvalues(landscape.hessian(), 1).values
    assert float(largest) == pytest.approx(float(torch.linalg.eigvalsh(expected)[-1]), rel=1e-6)
    assert not points.requires_grad


def test_its_gauss_newton_matrix_is_made_of_its_jacobian(line):
    points, _ = line
    model = Physics("detach")
    parameters = list(model.parameters())
    rows = [
        nn.utils.parameters_to_vector(
            torch.autograd.grad(r, parameters, materialize_grads=True, retain_graph=True)
        )
        for r in model(points).sum(1)
    ]
    jacobian = torch.stack(rows)
    expected = 2 / 15 * jacobian.T @ jacobian
    found = LossLandscape(model, residual, line).gauss_newton().dense()
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-12)


class Saliency(nn.Module):
    """Classes, by outputs to which the slope of their log-sum is added."""

    def __init__(self):
        super().__init__()
        self.body = body()

    def forward(self, x):
        x = x.detach().requires_grad_()
        outputs = self.body(x)
        (slope,) = torch.autograd.grad(outputs.logsumexp(1).sum(), x, create_graph=True)
        return outputs + slope[:, :3]


def test_every_measure_hears_of_a_module_that_differentiates(rows):
    model = Saliency()
    landscape = LossLandscape(model, cross_entropy, rows)
    refused = {}
    found = measure_all(landscape, refused=refused.__setitem__)
    expected = by_differences(model, lambda: cross_entropy(model(rows[0]), rows[1]))
    assert found["trace"].value == pytest.approx(float(expected.trace()), rel=1e-6)
    assert {"keskar_sharpness", "gauss_newton_trace", "output_margin"} <= found.keys()
    right = (model(rows[0]).argmax(1) == rows[1]).double().mean()
    assert landscape.accuracy() == pytest.approx(float(right))
    assert not any("RuntimeError" in why for why in refused.values())
    curve = slice_1d(landscape, random_direction(landscape, 0), torch.tensor([-1.0, 0.0, 1.0]))
    assert float(curve.losses[1]) == pytest.approx(landscape.loss(), rel=1e-12)
    assert evaluate(model, cross_entropy, rows).loss == pytest.approx(landscape.loss(), rel=1e-12)
    find_rescalings(model, rows[0])  # looks at its operations, whatever it finds


def test_a_loss_may_differentiate_what_the_model_returned(line):
    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = Physics("detach").body

        def forward(self, points):
            points = points.detach().requires_grad_()
            return self.body(points), points

    def loss(outputs, targets):
        u, points = outputs
        (slope,) = torch.autograd.grad(u.sum(), points, create_graph=True)
        return residual(torch.cat([u, slope], 1), targets)

    one = LossLandscape(Parts(), loss, line)
    two = LossLandscape(Physics("detach"), residual, line)
    assert one.loss() == pytest.approx(two.loss(), rel=1e-12)
    assert torch.allclose(one.hessian().dense(), two.hessian().dense(), rtol=1e-10, atol=1e-12)
    direction = random_direction(one, 0)
    assert float(slice_1d(one, direction, torch.tensor([0.0])).losses[0]) == pytest.approx(
        one.loss(), rel=1e-12
    )


@pytest.mark.parametrize("how", ["tensors", "loader"])
def test_batch_norm_on_a_batch_of_one_row_says_the_way_out(how, rows):
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).double()
    inputs, targets = rows
    data = rows if how == "tensors" else [(inputs[:13], targets[:13]), (inputs[13:], targets[13:])]
    options = {"batch_size": 13} if how == "tensors" else {}
    landscape = LossLandscape(
        model, cross_entropy, data, batch_norm="train-frozen-buffers", **options
    )
    with pytest.raises(InputError, match=r"a batch has one row.*batch size"):
        landscape.loss()
