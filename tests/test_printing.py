"""Every public result prints as a person reads it."""

import pytest
import torch
from torch import nn

import planimeter as pm
from planimeter.curvature import diagonal
from planimeter.slices import sharpness_path
from planimeter.symmetry import alpha_scaling

F = nn.functional


@pytest.fixture(scope="module")
def landscape():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 60), nn.ReLU(), nn.Linear(60, 40), nn.ReLU())
    model.append(nn.Linear(40, 3))
    return pm.LossLandscape(model, F.cross_entropy, (torch.randn(50, 20), torch.arange(50) % 3))


def hessian(landscape):
    return landscape.hessian()


RESULTS = {
    "measure": lambda at: pm.measure(at, ["trace", "l2_norm", "top_eigenvalue"]),
    "measure_layers": lambda at: pm.measure_layers(at, ["trace", "l2_norm"]),
    "audit": lambda at: pm.audit(at, ["trace", "l2_norm", "path_norm"]),
    "top_eigenvalues": lambda at: pm.top_eigenvalues(hessian(at), 5),
    "spectral_density": lambda at: pm.curvature.spectral_density(hessian(at), probes=2, steps=10),
    "spectral_summary": lambda at: pm.spectral_summary(hessian(at), k=3, probes=2, steps=10),
    "gauss_newton_spectrum": lambda at: pm.curvature.gauss_newton_spectrum(at),
    "trace": lambda at: pm.trace(hessian(at)),
    "diagonal": lambda at: diagonal(hessian(at)),
    "hessian_rank_bound": lambda at: pm.curvature.hessian_rank_bound(at),
    "keskar_sharpness": lambda at: pm.flatness.keskar_sharpness(at, restarts=1),
    "find_rescalings": lambda at: pm.find_rescalings(at.model, torch.randn(2, 20)),
    "rescaling": lambda at: pm.find_rescalings(at.model, torch.randn(2, 20))[0],
    "scaling": lambda at: pm.find_rescalings(at.model, torch.randn(2, 20))[0].scalings[0],
    "random_direction": lambda at: pm.slices.random_direction(at, 0),
    "slice_1d": lambda at: pm.slice_1d(
        at, pm.slices.random_direction(at, 0), torch.linspace(-1, 1, 9)
    ),
    "slice_2d": lambda at: pm.slice_2d(
        at,
        pm.slices.random_direction(at, 0),
        pm.slices.random_direction(at, 1),
        torch.linspace(-1, 1, 5),
    ),
    "sharpness_path": lambda at: sharpness_path(
        lambda alpha: alpha_scaling(at, "0", alpha),
        {"trace": lambda there: pm.trace(there.hessian())},
        [0.5, 1.0, 2.0],
    ),
    "log_prior": lambda at: pm.log_prior(torch.eye(9), torch.arange(9) % 2),
    "log_posterior": lambda at: pm.prior.log_posterior(torch.eye(9), torch.arange(9) % 2, train=7),
    "minimax_tilting": lambda at: pm.prior.minimax_tilting(torch.eye(9), torch.arange(9) % 2),
    "sample_functions": lambda at: pm.sample_functions(
        nn.Linear(3, 1), pm.prior.boolean_inputs(3), samples=500, seed=0
    ),
    "empirical_kernel": lambda at: pm.empirical_kernel(
        nn.Linear(3, 1), pm.prior.boolean_inputs(3), networks=20
    ),
}


@pytest.mark.parametrize("name", RESULTS)
def test_what_is_printed_is_short_and_no_tensor(name, landscape):
    result = RESULTS[name](landscape)
    for text in (str(result), repr(result)):
        assert 0 < len(text) < 2000
        assert "tensor(" not in text
    assert repr(result).count("\n") == 0


def test_tables_have_value_error_and_convergence():
    found = {"a": pm.Estimate(3.0, 0.25, "probes"), "b": pm.Estimate(2.0, converged=False)}
    text = str(pm.flatness.Measurements(found))
    assert "3.00 ± 0.25" in text
    assert "NOT CONVERGED" in text
    assert "probes" in text
    layers = pm.flatness.LayerMeasurements(one=pm.flatness.Measurements(found))
    assert "3.00 ± 0.25" in str(layers)
