import pytest
import torch

from planimeter.curvature import frobenius_norm, trace
from planimeter.errors import InputError
from planimeter.operators import CurvatureOperator


def test_exact_with_as_many_probes_as_coordinates(small_landscape):
    hessian = small_landscape.hessian()
    dense = hessian.dense()
    exact = trace(hessian, probes=hessian.size)
    assert exact.stderr == 0
    assert exact.value == pytest.approx(float(dense.trace()), rel=1e-12)
    assert frobenius_norm(hessian, probes=1000).value == pytest.approx(
        float(dense.norm()), rel=1e-12
    )


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_standard_error_is_honest(sign):
    a = torch.randn(60, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix = sign * (a @ a.T)  # the negative definite one is where a peer stops too early
    operator = CurvatureOperator.from_dense(matrix)
    for estimate, exact in (
        (lambda seed: trace(operator, probes=30, seed=seed), float(matrix.trace())),
        (lambda seed: frobenius_norm(operator, probes=30, seed=seed), float(matrix.norm())),
    ):
        scores = torch.tensor([(e.value - exact) / e.stderr for e in map(estimate, range(200))])
        # Student's t of few degrees of freedom, narrowed by the widened error; 200 draws know it
        # to 7 %. The mean carries the small bias of the square root.
        assert 0.7 < float(scores.std()) < 1.25
        assert abs(float(scores.mean())) < 0.4


def test_one_probe_is_refused():
    with pytest.raises(InputError, match="standard error"):
        trace(CurvatureOperator.from_dense(torch.eye(6)), probes=1)
