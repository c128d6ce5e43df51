import pytest
import torch
from torch import nn

from planimeter.curvature import top_eigenvalues
from planimeter.curvature.side_by_side import top_eigenvalues_side_by_side
from planimeter.ensembles import (
    keskar_sharpness_of_ensemble,
    rangamani_of_ensemble,
    top_eigenvalue_of_ensemble,
)
from planimeter.errors import InputError
from planimeter.flatness import keskar_sharpness, measure
from planimeter.landscape import LossLandscape
from planimeter.losses import binary_cross_entropy
from planimeter.models.fully_connected import fully_connected
from planimeter.operator import CurvatureOperator


def chain(seed):
    return fully_connected(6, (9, 5), seed=seed)


class Other(nn.Module):
    """No chain, with BatchNorm in evaluation mode."""

    def __init__(self, seed):
        super().__init__()
        self.net, self.norm = fully_connected(6, (7,), 4, seed=seed), nn.BatchNorm1d(4)
        self.norm.running_mean.fill_(0.1 * seed)
        self.last = fully_connected(4, (), 3, seed=10 + seed)

    def forward(self, x):
        return self.last(torch.tanh(self.norm(self.net(x))))


@pytest.fixture(params=["chain", "other"])
def landscapes(request):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(45, 6, generator=generator, dtype=torch.float64)
    build, classes = (chain, 2) if request.param == "chain" else (Other, 3)
    loss = binary_cross_entropy if request.param == "chain" else nn.functional.cross_entropy
    labels = torch.randint(0, classes, (45,), generator=generator)
    nets = [build(seed).double().eval() for seed in range(4)]
    # Batches of unequal sizes: the loss is their mean by rows.
    return [LossLandscape(net, loss, (inputs, labels), batch_size=20) for net in nets]


def test_sharpness_is_that_of_each_alone(landscapes):
    settings = {"zeta": 1e-2, "learning_rate": 0.1, "batch_size": 16, "epochs": 12, "seed": 3}
    together = keskar_sharpness_of_ensemble(landscapes, **settings)
    for landscape, found in zip(landscapes, together, strict=True):
        alone = keskar_sharpness(landscape, method="sgd", **settings)
        assert found.curve == pytest.approx(alone.curve, rel=1e-9)
        assert found.as_estimate().method == alone.as_estimate().method
        assert (found.converged, found.settings) == (alone.converged, alone.settings)
        assert found.value > 0


def test_eigenvalues_are_those_of_each_alone(landscapes):
    top, scaled = top_eigenvalue_of_ensemble(landscapes), rangamani_of_ensemble(landscapes)
    for landscape, one, other in zip(landscapes, top, scaled, strict=True):
        alone = measure(landscape, ["top_eigenvalue", "rangamani"])
        for found, wanted in ((one, alone["top_eigenvalue"]), (other, alone["rangamani"])):
            assert found.value == pytest.approx(wanted.value, rel=1e-8)
            assert (found.products, found.converged) == (wanted.products, wanted.converged)
            assert (found.dtype, found.device) == (wanted.dtype, wanted.device)


def test_eigenvalues_are_those_of_the_dense_matrix(landscapes):
    found = top_eigenvalue_of_ensemble(landscapes, tolerance=1e-7)
    for landscape, one in zip(landscapes, found, strict=True):
        exact = float(torch.linalg.eigvalsh(landscape.hessian().dense())[-1])
        assert one.converged
        assert one.value == pytest.approx(exact, rel=1e-9)


def test_a_loss_that_overflows_in_the_box_is_one_networks_own_affair(landscapes):
    calm = keskar_sharpness_of_ensemble(landscapes, epochs=2)
    names = list(landscapes[1].parameters)
    wild = landscapes[1].with_state({names[-2]: landscapes[1].parameters[names[-2]] * 1e308})
    mixed = keskar_sharpness_of_ensemble([landscapes[0], wild, *landscapes[2:]], epochs=2)
    assert mixed[1] is None
    assert [mixed[b].curve for b in (0, 2, 3)] == [calm[b].curve for b in (0, 2, 3)]


def test_landscapes_must_be_alike(landscapes):
    first = landscapes[0]
    inputs, labels = first.data.tensors
    other = LossLandscape(first.model, first.loss_function, (inputs + 1, labels), batch_size=20)
    with pytest.raises(InputError, match="same tensors"):
        keskar_sharpness_of_ensemble([first, other])
    with pytest.raises(InputError, match="same parameters"):
        top_eigenvalue_of_ensemble([first, first.restricted([next(iter(first.parameters))])])
    with pytest.raises(InputError, match="at least one"):
        rangamani_of_ensemble([])
    with pytest.raises(InputError, match="zeta must be positive"):
        keskar_sharpness_of_ensemble(landscapes, zeta=0.0)


def matrices(size, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(count, size, size, generator=generator).double())
    spread = torch.linspace(-1, 1, size).double().expand(count, size).clone()
    spread[:, -1] += torch.linspace(0.001, 1, count)  # hard ones and easy ones
    return basis @ (spread[..., None] * basis.mT)


def test_side_by_side_through_restarts_against_one_by_one():
    stack = matrices(400, 5)
    found = top_eigenvalues_side_by_side(
        lambda v: (stack @ v[..., None])[..., 0], 5, 400, tolerance=1e-6
    )
    assert bool(found.converged.all())
    assert int(found.products.max()) > 42 > int(found.products.min())  # some were restarted
    for matrix, value, residual in zip(stack, found.values, found.residuals, strict=True):
        exact = torch.linalg.eigvalsh(matrix)
        assert float(value) == pytest.approx(float(exact[-1]), abs=1e-6)
        assert float((exact - value).abs().min()) <= float(residual) + 1e-12
        alone = top_eigenvalues(
            CurvatureOperator.from_dense(matrix), tolerance=1e-6, multiplicities=False
        )
        assert float(value) == pytest.approx(float(alone.values[0]), abs=2e-6)


def test_small_spaces_are_exhausted_at_different_times():
    identity = torch.eye(4, dtype=torch.float64)
    stack = torch.stack([-identity, matrices(4, 1)[0], torch.diag(torch.tensor([1.0, 1, 2, 2]))])
    found = top_eigenvalues_side_by_side(lambda v: (stack @ v[..., None])[..., 0], 3, 4)
    exact = torch.linalg.eigvalsh(stack)[:, -1]
    torch.testing.assert_close(found.values, exact)
    assert found.products.tolist() == [1, 4, 2]
    assert bool(found.converged.all())


def test_giving_up_is_told():
    stack = matrices(300, 2)
    found = top_eigenvalues_side_by_side(
        lambda v: (stack @ v[..., None])[..., 0], 2, 300, tolerance=1e-12, max_products=5
    )
    assert found.converged.tolist() == [False, False]
    assert found.products.tolist() == [5, 5]
    assert bool((found.residuals > 0).all())
    with pytest.raises(InputError, match="max_products"):
        top_eigenvalues_side_by_side(lambda v: v, 1, 3, max_products=0)
