"""A model that checkpoints is the same function, wherever it is looked at."""

import pytest
import torch
from torch import nn
from torch.utils import checkpoint

from planimeter import LossLandscape
from planimeter.errors import InputError, MeasurementWarning


class Checkpointed(nn.Module):
    def __init__(self, reentrant=None):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 5).double(), nn.Linear(5, 3).double()
        self.reentrant = reentrant

    def part(self, x):
        return torch.tanh(self.first(x))

    def forward(self, x):
        if self.reentrant is None:
            return self.last(self.part(x))
        return self.last(checkpoint.checkpoint(self.part, x, use_reentrant=self.reentrant))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_no_derivative_at_any_point(recwarn, reentrant):
    torch.manual_seed(1)
    rows = torch.randn(20, 4).double(), torch.randint(0, 3, (20,))
    one, other = (
        LossLandscape(Checkpointed(kind), nn.functional.cross_entropy, rows)
        for kind in (None, reentrant)
    )
    elsewhere = one.theta + 0.3 * torch.randn(one.num_parameters)
    for a, b in ((one, other), (one.at(elsewhere), other.at(elsewhere))):
        torch.testing.assert_close(b.gradient(), a.gradient())
        torch.testing.assert_close(b.hessian().dense(), a.hessian().dense())
    assert not [w for w in recwarn if isinstance(w.message, MeasurementWarning)]


def test_checkpointing_itself_is_left_alone():
    def parts():
        return checkpoint.CheckpointFunction, checkpoint._checkpoint_without_reentrant_generator

    class Fails(Checkpointed):
        def forward(self, x):
            raise ValueError("no")

    own, rows = parts(), (torch.randn(6, 4).double(), torch.randint(0, 3, (6,)))
    LossLandscape(Checkpointed(False), nn.functional.cross_entropy, rows).loss()
    with pytest.raises(InputError, match="no"):
        LossLandscape(Fails(), nn.functional.cross_entropy, rows)
    assert own == parts()
