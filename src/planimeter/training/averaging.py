r"""Iterate averaging: the plain mean of the weights at the end of epochs.

From epoch s on, with :math:`\theta_e` the weights after epoch e (every k-th),

.. math:: \bar\theta = \frac{1}{n} \sum_{i=0}^{n-1} \theta_{s + i k},

and BatchNorm statistics computed afresh for :math:`\bar\theta` over all rows of the training set, S
and A, without augmentation (`planimeter.training.batch_norm`). On SGD this is SWA, on AdamW Gadam,
on Padam GadamX (granziol2020 averages from epoch 161 of 300).

Sources: Izmailov et al. 2018 (arXiv 1803.05407); granziol2020, published code.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.optim.swa_utils import AveragedModel

from planimeter.errors import InputError


@dataclass(frozen=True)
class Averaging:
    """Which epochs' weights are averaged.

    Arguments:
        start: s, the first one, counted from 1.
        every: k.

    Raises:
        InputError: a number is below 1.
    """

    start: int
    every: int = 1

    def __post_init__(self) -> None:
        if self.start < 1 or self.every < 1:
            raise InputError(f"averaging counts epochs from 1: start {self.start}, {self.every}")

    def due(self, previous: int, epoch: int) -> bool:
        """Whether one of the epochs after `previous`, up to `epoch`, is averaged."""
        return epoch >= self.start and (epoch - self.start) // self.every > (
            (previous - self.start) // self.every if previous >= self.start else -1
        )


def new_average(model: nn.Module) -> AveragedModel:
    """An average of no weights yet; `update_parameters(model)` adds some."""
    return AveragedModel(model)
