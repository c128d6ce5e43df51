import math

import pytest
import torch
from torch import nn

from planimeter.errors import MeasurementWarning, NotApplicableError
from planimeter.flatness import MEASURES, measure
from planimeter.landscape import LossLandscape
from planimeter.operator import CurvatureOperator

F = nn.functional


@pytest.fixture(scope="module")
def trained():
    """A small network near a minimum, and its dense matrices."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    x = torch.randn(60, 5).double()
    y = (x[:, :3] + 0.3 * torch.randn(60, 3)).argmax(1)
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(200):
        optimiser.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimiser.step()
    landscape = LossLandscape(model, F.cross_entropy, (x, y))
    return landscape, {
        "": landscape.hessian().dense(),
        "gauss_newton_": landscape.gauss_newton().dense(),
    }


@pytest.mark.parametrize("prefix", ["", "gauss_newton_"])
@pytest.mark.parametrize("together", [True, False])
def test_every_number_is_that_of_the_dense_matrix(trained, prefix, together):
    landscape, dense = trained
    values = torch.linalg.eigvalsh(dense[prefix]).flip(0)
    expected = {
        "spectral_norm": float(values.abs().max()),
        "top_eigenvalue": float(values[0]),
        "top_eigenvalue_times_norm": float(values[0] * landscape.theta.square().sum()),
        "trace": float(values.sum()),
        "frobenius_norm": float(values.norm()),
        "log_product_top_k": float(values[:10].log().sum()),
        "effective_dimension": float((values.clamp_min(0) / (values.clamp_min(0) + 0.1)).sum()),
    }
    chosen = {
        f"{prefix}log_product_top_k": {"k": 10},
        f"{prefix}effective_dimension": {"k": 10, "damping": 0.1},
    }
    names = [prefix + name for name in expected]
    runs = [names] if together else [[name] for name in names]
    for run in runs:
        for name, found in measure(landscape, run, settings=chosen).items():
            exact = expected[name.removeprefix(prefix)]
            slack = 4 * found.stderr + 2e-3 * abs(exact)
            assert abs(found.value - exact) <= slack, name
            assert found.converged


def test_all_hessian_measures_cost_what_their_distinct_computations_cost(trained):
    landscape, _ = trained
    names = [n for n, m in MEASURES.items() if n in {
        "spectral_norm", "top_eigenvalue", "top_eigenvalue_times_norm", "trace",
        "frobenius_norm", "log_product_top_k", "effective_dimension", "numerical_rank",
    }]  # fmt: skip

    def products(chosen):
        counted = 0
        fresh = LossLandscape(landscape.model, F.cross_entropy, next(iter(landscape.batches())))
        operator = fresh.hessian()
        real = operator.product

        def counting(v):
            nonlocal counted
            counted += v.shape[1]
            return real(v)

        key = next(iter(fresh._operators))
        fresh._operators[key] = CurvatureOperator(
            operator.size, counting, operator.name, operator.blocks
        )
        settings = {n: {"k": 10} for n in chosen if "k" in MEASURES[n].settings}
        measure(fresh, chosen, settings=settings)
        return counted

    # One search for each end, one for many eigenvalues with one density, one set of probes.
    distinct = ["spectral_norm", "top_eigenvalue", "effective_dimension", "trace"]
    assert products(names) <= sum(products([name]) for name in distinct)


def test_ranks_and_their_bounds(trained):
    landscape, dense = trained
    for prefix, matrix in dense.items():
        values = torch.linalg.eigvalsh(matrix).abs()
        name = f"{prefix}numerical_rank"
        settings = {name: {"k": 30, "tolerance": 0.01}}
        found = measure(landscape, [name, f"{prefix}rank_bound"], settings=settings)
        exact = int((values > 0.01 * values.max()).sum())
        assert abs(found[name].value - exact) <= 4 * found[name].stderr + 1e-9
        assert found[f"{prefix}rank_bound"].value >= 20
        assert "assumes" in found[f"{prefix}rank_bound"].method


def test_logistic_regression_flattens_as_its_weights_grow():
    """granziol2020: lambda_max falls with the scale of separating weights, the rank does not."""
    torch.manual_seed(0)
    x = torch.randn(150, 6).double()
    model = nn.Linear(6, 3, bias=False).double()
    y = model(x).argmax(1)
    landscape = LossLandscape(model, F.cross_entropy, (x, y))
    tops = []
    for c in (0.5, 1.0, 5.0, 50.0):
        scaled = landscape.at(c * landscape.theta)
        p = model(x).mul(c).softmax(1).detach()
        bend = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        dense = torch.einsum("ncd,ni,nj->cidj", bend, x, x).reshape(18, 18) / 150
        top = measure(scaled, ["top_eigenvalue"])["top_eigenvalue"].value
        assert top == pytest.approx(float(torch.linalg.eigvalsh(dense)[-1]), rel=1e-4)
        tops.append(top)
    assert tops == sorted(tops, reverse=True)
    assert tops[0] > 10 * tops[-1]


def test_a_measure_that_does_not_apply_says_why_and_the_others_run(trained):
    landscape, _ = trained
    settings = {"log_product_top_k": {"k": 500}}
    with pytest.warns(MeasurementWarning, match="log_product_top_k does not apply: .* 57"):
        found = measure(landscape, ["log_product_top_k", "trace"], settings=settings)
    assert list(found) == ["trace"]
    heard = {}
    measure(landscape, ["log_product_top_k", "trace"], settings=settings, refused=heard.__setitem__)
    assert list(heard) == ["log_product_top_k"]
    with pytest.raises(NotApplicableError, match="only 57 eigenvalues"):
        measure(landscape, ["log_product_top_k"], settings=settings)


def test_a_constant_output_has_no_curvature_in_its_weights():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
    x, y = torch.randn(20, 3).double(), torch.randint(0, 2, (20,))
    landscape = LossLandscape(model, F.cross_entropy, (x, y))
    found = measure(landscape, refused=lambda name, why: None)
    assert all(math.isfinite(e.value) for e in found.values())
    assert found["trace"].value == pytest.approx(float(landscape.hessian().dense().trace()))
