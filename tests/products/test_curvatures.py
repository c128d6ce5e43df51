import pytest
import torch
from torch import nn

from planimeter.errors import InputError
from planimeter.landscape import LossLandscape
from planimeter.losses import binary_cross_entropy, likelihood_of

F = nn.functional


def network(outputs):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, outputs)).double()


def problem(loss):
    """A small network with 23 rows for each loss that has a likelihood."""
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(23, 4, generator=generator, dtype=torch.float64)
    if loss is F.cross_entropy:
        return network(3), (inputs, torch.randint(0, 3, (23,), generator=generator))
    if loss is binary_cross_entropy:
        return network(1), (inputs, torch.randint(0, 2, (23,), generator=generator))
    return network(2), (inputs, torch.randn(23, 2, generator=generator, dtype=torch.float64))


def row_gradients(model, loss, inputs, targets):
    """One row of the parameters' derivatives for each row of the data."""
    rows = []
    for i in range(len(inputs)):
        value = loss(model(inputs[i : i + 1]), targets[i : i + 1])
        grads = torch.autograd.grad(value, list(model.parameters()))
        rows.append(torch.cat([g.reshape(-1) for g in grads]))
    return torch.stack(rows)


LOSSES = [F.cross_entropy, binary_cross_entropy, F.mse_loss]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("products", ["auto", "tape", "graph"])
def test_empirical_fisher_is_the_second_moment_of_the_rows_gradients(loss, products):
    model, (inputs, targets) = problem(loss)
    g = row_gradients(model, loss, inputs, targets)
    landscape = LossLandscape(model, loss, (inputs, targets), batch_size=10, products=products)
    torch.testing.assert_close(landscape.empirical_fisher().dense(), g.T @ g / len(g))


def drawn_rows(model, loss, inputs, samples, seed):
    """The rows' gradients for the labels that the Fisher matrix draws, batch after batch."""
    generator, sample = torch.Generator().manual_seed(seed), likelihood_of(loss).sample
    for batch in inputs.split(10):
        outputs = model(batch).detach()
        for drawn in [sample(outputs, generator) for _ in range(samples)]:
            yield row_gradients(model, loss, batch, drawn)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("products", ["tape", "graph"])
def test_monte_carlo_fisher_is_the_sum_over_the_drawn_labels(loss, products):
    model, data = problem(loss)
    g = torch.cat(list(drawn_rows(model, loss, data[0], samples=3, seed=5)))
    terms = 2 if loss is F.mse_loss else 1
    landscape = LossLandscape(model, loss, data, batch_size=10, products=products)
    fisher = landscape.monte_carlo_fisher(samples=3, seed=5)
    torch.testing.assert_close(fisher.dense(), terms * g.T @ g / len(g))
    v = torch.ones(fisher.size)
    assert torch.equal(landscape.monte_carlo_fisher(3, seed=5) @ v, fisher @ v)
    assert not torch.allclose(landscape.monte_carlo_fisher(3, seed=6) @ v, fisher @ v)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_mean_of_monte_carlo_fishers_is_the_gauss_newton_matrix(loss):
    model, data = problem(loss)
    landscape = LossLandscape(model, loss, data, products="tape")
    ggn, repeats = landscape.gauss_newton(), 30
    v = torch.randn(ggn.size, 1, generator=torch.Generator().manual_seed(0)).double()
    forms = torch.tensor(
        [float(v.T @ (landscape.monte_carlo_fisher(8, seed) @ v)) for seed in range(repeats)]
    )
    error = float(forms.std()) / repeats**0.5
    expected = float(v.T @ (ggn @ v))
    assert error < 0.1 * expected
    assert abs(float(forms.mean()) - expected) < 4 * error


def test_rows_with_several_terms():
    """Cross entropy over positions: what is averaged in a row is drawn for every position."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 3, 1), nn.Tanh(), nn.Conv1d(3, 4, 1)).double()
    data = (torch.randn(6, 2, 5).double(), torch.randint(0, 4, (6, 5)))
    landscape = LossLandscape(model, F.cross_entropy, data)
    fisher, ggn = landscape.monte_carlo_fisher(400).dense(), landscape.gauss_newton().dense()
    assert float((fisher - ggn).norm()) < 0.1 * float(ggn.norm())
    g = row_gradients(model, F.cross_entropy, *data)
    torch.testing.assert_close(landscape.empirical_fisher().dense(), g.T @ g / 6)


def test_gauss_newton_is_the_mean_of_the_rows_jacobians_around_the_loss():
    model, (inputs, targets) = problem(F.cross_entropy)
    parameters = list(model.parameters())
    expected = torch.zeros(27, 27).double()
    for x in inputs:
        h = model(x)
        rows = [torch.autograd.grad(o, parameters, retain_graph=True) for o in h]
        jacobian = torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])
        p = h.detach().softmax(0)
        expected += jacobian.T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian / len(inputs)
    landscape = LossLandscape(model, F.cross_entropy, (inputs, targets), batch_size=9)
    torch.testing.assert_close(landscape.gauss_newton().dense(), expected)


def test_a_loss_that_is_not_convex_has_no_gauss_newton_matrix():
    model, data = problem(F.mse_loss)
    landscape = LossLandscape(model, lambda h, y: (h - y).cos().mean(), data)
    with pytest.raises(InputError, match="not convex in the outputs"):
        landscape.gauss_newton()
    assert landscape.hessian().dense().isfinite().all()


def test_fisher_matrices_that_do_not_exist_are_refused():
    model, data = problem(F.cross_entropy)
    smooth = LossLandscape(model, nn.CrossEntropyLoss(label_smoothing=0.1), data)
    with pytest.raises(InputError, match="no likelihood is known"):
        smooth.monte_carlo_fisher()
    with pytest.raises(InputError, match="samples must be at least 1"):
        LossLandscape(model, F.cross_entropy, data).monte_carlo_fisher(0)
    normed = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double()
    mixed = LossLandscape(normed, F.cross_entropy, data, batch_norm="train-frozen-buffers")
    for fisher in (mixed.empirical_fisher, mixed.monte_carlo_fisher):
        with pytest.raises(InputError, match="no gradients of their own"):
            fisher()
