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
from planimeter.operators.precision import full_precision

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
    forward one. Float32 is computed with all of its digits, on a GPU too.

    Raises:
        InputError: `batch_norm` is no policy.
    """
    if batch_norm not in BATCH_NORM:
        raise InputError(f"no BatchNorm policy {batch_norm!r}; there are {', '.join(BATCH_NORM)}")
    # This runs around every product: one pass over the modules, and only what changes is set.
    modules = list(model.modules())
    training = [module for module in modules if module.training]
    live = [m for m in modules if batch_norm != "eval" and isinstance(m, _BatchNorm)]
    norms = [(norm, norm.training, norm.track_running_stats) for norm in live]
    padded = [m for m in modules if isinstance(m, nn.Embedding) and m.padding_idx is not None]
    paddings = [(embedding, embedding.padding_idx) for embedding in padded]
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        for module in training:
            module.training = False
        for norm in live:
            norm.training, norm.track_running_stats = True, False
        for embedding in padded:
            embedding.padding_idx = None
        torch.backends.mha.set_fastpath_enabled(False)
        with sdpa_kernel(SDPBackend.MATH), full_precision():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for embedding, padding in paddings:
            embedding.padding_idx = padding
        for module in training:
            module.training = True
        for norm, own, tracked in norms:
            norm.training, norm.track_running_stats = own, tracked


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The BatchNorm layers of a model."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def has_dropout(model: nn.Module) -> bool:
    """Whether a model has dropout layers, which `evaluation_mode` turns off."""
    return any(isinstance(m, _DropoutNd) and m.p > 0 for m in model.modules())
