"""How a model runs while it is measured: without chance, and leaving no trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from planimeter.errors import InputError

BATCH_NORM = ("eval", "train-frozen-buffers")
"""BatchNorm by its running statistics, or by those of each batch with the running ones kept."""


@contextmanager
def evaluation_mode(model: nn.Module, batch_norm: str = "eval") -> Iterator[None]:
    """Every module in eval mode inside, its own flags given back after, also on an exception.

    With `batch_norm="train-frozen-buffers"`, BatchNorm uses the statistics of the batch and its
    buffers stay as they are. The row of an embedding's `padding_idx`, whose gradient torch sets to
    zero although the loss depends on it, counts like any other: what autograd gives would not be
    the gradient of anything, and its derivative not symmetric. Attention runs on its mathematical
    form inside: the fused kernels have no second derivative, and the fused encoder layer no
    forward one.

    Raises:
        InputError: `batch_norm` is no policy.
    """
    if batch_norm not in BATCH_NORM:
        raise InputError(f"no BatchNorm policy {batch_norm!r}; there are {', '.join(BATCH_NORM)}")
    flags = [(module, module.training) for module in model.modules()]
    norms = [m for m in batch_norms(model) if batch_norm != "eval"]
    tracking = [(norm, norm.track_running_stats) for norm in norms]
    embeddings = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    paddings = [(embedding, embedding.padding_idx) for embedding in embeddings]
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        model.eval()
        for norm in norms:
            norm.training, norm.track_running_stats = True, False
        for embedding in embeddings:
            embedding.padding_idx = None
        torch.backends.mha.set_fastpath_enabled(False)
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for embedding, padding in paddings:
            embedding.padding_idx = padding
        for norm, tracked in tracking:
            norm.track_running_stats = tracked
        for module, training in flags:
            module.training = training


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The BatchNorm layers of a model."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def has_dropout(model: nn.Module) -> bool:
    """Whether a model has dropout layers, which `evaluation_mode` turns off."""
    return any(isinstance(m, _DropoutNd) and m.p > 0 for m in model.modules())
