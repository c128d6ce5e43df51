"""What several tests of the prior need."""

import numpy as np
import pytest
import torch


@pytest.fixture
def flip():
    """Labels with a number of them, drawn by RandomState(1), turned round."""

    def turn(labels: torch.Tensor, count: int) -> torch.Tensor:
        wrong = np.random.RandomState(1).choice(len(labels), count, replace=False)
        turned = labels.clone()
        turned[torch.from_numpy(wrong)] = 1 - turned[torch.from_numpy(wrong)]
        return turned

    return turn
