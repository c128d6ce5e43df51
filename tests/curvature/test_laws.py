"""What holds for every network, loss and data, on random small ones."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from planimeter.curvature import gauss_newton_spectrum, top_eigenvalues
from planimeter.landscape import LossLandscape
from planimeter.losses import binary_cross_entropy

LOSSES = {
    "cross_entropy": nn.functional.cross_entropy,
    "mse": nn.functional.mse_loss,
    "binary": binary_cross_entropy,
}
ACTIVATIONS = {"relu": nn.ReLU, "leaky": nn.LeakyReLU, "tanh": nn.Tanh, "gelu": nn.GELU}


@st.composite
def problems(draw, activations=tuple(ACTIVATIONS)):
    loss = draw(st.sampled_from(sorted(LOSSES)))
    activation = ACTIVATIONS[draw(st.sampled_from(activations))]
    inputs, hidden, rows = (draw(st.integers(2, 6)) for _ in range(3))
    outputs = 1 if loss == "binary" else draw(st.integers(2, 4))
    torch.manual_seed(draw(st.integers(0, 10_000)))
    model = nn.Sequential(
        nn.Linear(inputs, hidden), activation(), nn.Linear(hidden, hidden), activation(),
        nn.Linear(hidden, outputs),
    ).double()  # fmt: skip
    x = torch.randn(rows + 2, inputs).double()
    if loss == "mse":
        y = torch.randn(rows + 2, outputs).double()
    else:
        y = torch.randint(0, max(outputs, 2), (rows + 2,))
    return model, LOSSES[loss], (x, y)


def random_vectors(operator, count):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(operator.size, count, generator=generator, dtype=torch.float64)


@settings(max_examples=15)
@given(problems(), st.sampled_from(["hessian", "gauss_newton", "empirical_fisher"]))
def test_symmetric_and_linear(problem, kind):
    operator = getattr(LossLandscape(*problem), kind)()
    u, v = random_vectors(operator, 2).unbind(1)
    scale = float((operator @ u).norm() + (operator @ v).norm()) * float(u.norm())
    assert float(u @ (operator @ v) - v @ (operator @ u)) == pytest.approx(0, abs=1e-12 * scale)
    torch.testing.assert_close(operator @ (2 * u - v), 2 * (operator @ u) - operator @ v)


@settings(max_examples=15)
@given(problems(), st.sampled_from(["gauss_newton", "empirical_fisher"]))
def test_positive_semidefinite(problem, kind):
    values = torch.linalg.eigvalsh(getattr(LossLandscape(*problem), kind)().dense())
    assert float(values[0]) >= -1e-13 * float(values[-1])


@settings(max_examples=10)
@given(problems(), st.sampled_from([1e-8, 1e-3, 1e6]))
def test_scaling_the_loss_scales_everything(problem, factor):
    model, loss, data = problem
    one = LossLandscape(model, loss, data).hessian()
    other = LossLandscape(model, lambda h, y: factor * loss(h, y), data).hessian()
    torch.testing.assert_close(other.dense() / factor, one.dense())
    values = [top_eigenvalues(op, 2, tolerance=1e-7).values for op in (one, other)]
    torch.testing.assert_close(values[1] / factor, values[0], rtol=1e-5, atol=1e-9)


@settings(max_examples=10)
@given(problems(), st.sampled_from([["0"], ["2.weight"], ["0.bias", "4"]]))
def test_restrictions_are_blocks(problem, names):
    hessian = LossLandscape(*problem).hessian()
    part = hessian.restricted(names)
    rows = torch.cat([torch.arange(hessian.size)[hessian.blocks[name]] for name in part.blocks])
    torch.testing.assert_close(part.dense(), hessian.dense()[rows][:, rows])


@settings(max_examples=15)
@given(problems(activations=("relu", "leaky")))
def test_hessian_and_gauss_newton_have_one_trace_for_piecewise_linear_networks(problem):
    landscape = LossLandscape(*problem)
    one, other = landscape.hessian().dense(), landscape.gauss_newton().dense()
    torch.testing.assert_close(one.diagonal(), other.diagonal())


@settings(max_examples=15)
@given(problems())
def test_gauss_newton_and_gram_matrix_have_one_spectrum(problem):
    landscape = LossLandscape(*problem)
    exact = torch.linalg.eigvalsh(landscape.gauss_newton().dense()).flip(0)
    found = gauss_newton_spectrum(landscape).values
    count = min(len(exact), len(found))
    torch.testing.assert_close(found[:count], exact[:count], rtol=1e-8, atol=1e-12)
    assert bool((found[count:].abs() <= 1e-12 * exact[0]).all())
