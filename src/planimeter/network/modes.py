"""How a model runs while it is measured: without chance, and leaving no trace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from operator import attrgetter

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils import parametrize

from planimeter.errors import InputError
from planimeter.machine.precision import full_precision
from planimeter.network.decomposed import Decomposed, is_needed

BATCH_NORM = ("eval", "train-frozen-buffers")
"""BatchNorm by its running statistics, or by those of each batch with the running ones kept."""

_training = attrgetter("training")
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


@contextmanager
def evaluation_mode(
    model: nn.Module,
    batch_norm: str = "eval",
    *,
    at_rest: bool = False,
    compiled: Sequence[nn.Module] = (),
) -> Iterator[None]:
    """Every module in eval mode inside, its own flags given back after, also on an exception.

    With `batch_norm="train-frozen-buffers"`, BatchNorm uses the statistics of the batch and its
    buffers stay as they are. The row of an embedding's `padding_idx`, whose gradient torch sets to
    zero although the loss depends on it, counts like any other, and so do tokens that are frequent
    (`scale_grad_by_freq`): what autograd gives would not be the gradient of anything, and its
    derivative not symmetric. Attention runs on its mathematical
    form inside: the fused kernels have no second derivative, and the fused encoder layer no
    forward one; embeddings have dense gradients, since sparse ones cannot be differentiated again.
    Weight norm runs as the operations it is made of: the fused one has a wrong second derivative.
    Float32 is computed with all of its digits, on a GPU too, and under a caller's autocast;
    weights are made anew under a caller's `parametrize.cached()`.

    Arguments:
        model: any.
        batch_norm: "eval" or "train-frozen-buffers".
        at_rest: embeddings leave weights alone that are longer than their `max_norm`.
        compiled: `compiled_parts` of the model, which run as they were written: what torch.compile
            made of them is not for every derivative.

    Raises:
        InputError: `batch_norm` is no policy.
    """
    if batch_norm not in BATCH_NORM:
        raise InputError(f"no BatchNorm policy {batch_norm!r}; there are {', '.join(BATCH_NORM)}")
    # This runs around every product: one pass over the modules, and only what changes is set.
    modules = list(model.modules())
    flags = list(map(_training, modules))
    live = [m for m in modules if batch_norm != "eval" and isinstance(m, _BatchNorm)]
    norms = [(norm, norm.track_running_stats) for norm in live]
    embeddings = [m for m in modules if isinstance(m, EMBEDDINGS)]
    own = [(e, e.padding_idx, e.sparse, e.max_norm, e.scale_grad_by_freq) for e in embeddings]
    calls = [(module, module._compiled_call_impl) for module in compiled]
    fused = torch.backends.mha.get_fastpath_enabled()
    kept = parametrize._cache_enabled
    try:
        if any(flags):
            for module in modules:
                module.training = False
        for norm in live:
            norm.training, norm.track_running_stats = True, False
        for embedding in embeddings:
            if isinstance(embedding, nn.Embedding):  # a bag leaves the row out of its sum
                embedding.padding_idx = None
            embedding.sparse = embedding.scale_grad_by_freq = False
            if at_rest:
                embedding.max_norm = None
        for module in compiled:
            module._compiled_call_impl = None
        torch.backends.mha.set_fastpath_enabled(False)
        parametrize._cache_enabled = 0
        decomposed = Decomposed() if is_needed(modules) else nullcontext()
        with sdpa_kernel(SDPBackend.MATH), full_precision(), decomposed:
            if compiled:
                with torch.compiler.set_stance("force_eager"):
                    yield
            else:
                yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        parametrize._cache_enabled = kept
        for embedding, padding, sparse, longest, by_frequency in own:
            embedding.padding_idx, embedding.sparse = padding, sparse
            embedding.max_norm, embedding.scale_grad_by_freq = longest, by_frequency
        for module, call in calls:
            module._compiled_call_impl = call
        for norm, tracked in norms:
            norm.track_running_stats = tracked
        if flags != list(map(_training, modules)):
            for module, flag in zip(modules, flags, strict=True):
                module.training = flag


def compiled_parts(model: nn.Module) -> list[nn.Module]:
    """The modules of a model that run as torch.compile translated them."""
    return [m for m in model.modules() if is_compiled(m) or m._compiled_call_impl is not None]


def is_compiled(module: nn.Module) -> bool:
    """Whether a module is what `torch.compile` returned; importing its class takes seconds."""
    return type(module).__name__ == "OptimizedModule"


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The BatchNorm layers of a model."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def has_dropout(model: nn.Module) -> bool:
    """Whether a model has dropout layers, which `evaluation_mode` turns off."""
    return any(isinstance(m, _DropoutNd) and m.p > 0 for m in model.modules())
