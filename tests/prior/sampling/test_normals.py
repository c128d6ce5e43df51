import math

import numpy as np
import pytest
import torch
from scipy.special import ndtr
from scipy.stats import kstest

from planimeter.prior.sampling.normals import DeviceNormals, TableNormals, _table


def law_of_a_sum(x):
    """F(x) - Phi(x) of (T + T + T + T)/2, by inverting its characteristic function."""
    nodes, weights = np.polynomial.legendre.leggauss(400)
    t, weights = 8 * (nodes + 1), 8 * weights
    table = _table().double().numpy()
    of_a_draw = np.array([np.cos(0.5 * s * table).mean() for s in t])
    difference = (of_a_draw**4 - np.exp(-0.5 * t**2)) / t
    return (np.sin(np.outer(x, t)) @ (weights * difference)) / math.pi


def test_the_law_is_normal_to_2e_8():
    x = np.linspace(0, 9, 901)
    error = law_of_a_sum(x)
    assert np.abs(error).max() < 2e-8
    tail = (x > 1) & (x < 4.5)
    assert (np.abs(error[tail]) / ndtr(-x[tail])).max() < 1e-4


def test_the_table_is_symmetric_with_the_moments_of_the_normal_law():
    table = _table().double()
    assert torch.equal(table, -table.flip(0))
    for order, moment in ((2, 1), (4, 3), (6, 15), (8, 105)):
        assert float((table**order).mean()) == pytest.approx(moment, rel=1e-7)


@pytest.mark.parametrize("kind", [TableNormals, lambda size: DeviceNormals(size, "cpu")])
def test_draws_are_independent_normals(kind):
    source = kind(1_000_003)
    source.restart(3, 0)
    z = source.draw().double().numpy()
    assert len(z) == 1_000_003
    assert kstest(z, "norm").pvalue > 1e-3
    assert abs(z.var() - 1) < 5 * math.sqrt(2 / len(z))
    assert abs((z**4).mean() - 3) < 5 * math.sqrt(96 / len(z))
    # Neighbours, and what comes from the same four draws: a quarter and a half of the buffer apart.
    quarter = -(-len(z) // 4)
    for apart in (1, 2, quarter, 2 * quarter, 3 * quarter):
        for a, b in ((z[apart:], z[:-apart]), (z[apart:] ** 2, z[:-apart] ** 2)):
            assert abs(np.corrcoef(a, b)[0, 1]) < 5 / math.sqrt(len(a))
    product = np.prod([z[i * quarter :][: quarter - 1] for i in range(4)], axis=0)
    assert abs(product.mean()) < 5 / math.sqrt(len(product))
    assert z.max() > 4.3
    assert z.min() < -4.3


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7])
def test_any_number_of_normals_and_again(size):
    source = TableNormals(size)
    source.restart(0, 1)
    first, second = source.draw().clone(), source.draw().clone()
    assert len(first) == size
    assert not torch.equal(first, second)
    source.restart(0, 1)
    assert torch.equal(source.draw(), first)
    source.restart(1, 1)
    assert not torch.equal(source.draw(), first)


def test_four_draws_make_four_orthogonal_sums():
    source = TableNormals(8)
    source.restart(0, 0)
    sums = source.draw().view(4, 2)
    draws = 0.5 * _table()[source._places.long()].view(4, 2)
    signs = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1.0]])
    assert torch.allclose(sums, signs @ draws, atol=1e-6)
