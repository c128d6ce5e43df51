"""Matrices of known spectrum."""

import pytest
import torch

from planimeter.operator import CurvatureOperator


def _with_spectrum(spectrum, seed=0):
    values = torch.as_tensor(spectrum, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(
        torch.randn(len(values), len(values), dtype=torch.float64, generator=generator)
    )
    matrix = q @ torch.diag(values) @ q.T
    return CurvatureOperator.from_dense((matrix + matrix.T) / 2)


@pytest.fixture
def operator_with():
    """Makes the operator of a random matrix with the given eigenvalues."""
    return _with_spectrum
