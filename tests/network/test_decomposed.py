import pytest
import torch

from planimeter.network.decomposed import DECOMPOSITIONS


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 5), (3, 4, 5, 2)])
def test_weight_norm_along_every_dimension_is_torchs(shape):
    """Counted from either end; -1 is the norm of the whole, as in torch."""
    v = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for dim in range(-len(shape), len(shape)):
        g = 1.7 * torch.norm_except_dim(v, 2, dim)
        found = DECOMPOSITIONS[torch._weight_norm](v, g, dim)
        torch.testing.assert_close(found, torch._weight_norm(v, g, dim))
