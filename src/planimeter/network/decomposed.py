"""Operations of torch whose own derivatives are wrong, written out in others that are right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode


class Decomposed(TorchFunctionMode):
    """Inside, the operations of `DECOMPOSITIONS` run as the ones they are made of."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return DECOMPOSITIONS.get(func, func)(*args, **(kwargs or {}))


def is_needed(modules: list[nn.Module]) -> bool:
    """Whether one of the modules runs an operation of `DECOMPOSITIONS`."""
    return any(
        isinstance(module, _WeightNorm)
        or (
            module._forward_pre_hooks  # seldom: this is asked around every run
            and any(isinstance(hook, WeightNorm) for hook in module._forward_pre_hooks.values())
        )
        for module in modules
    )


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    # The fused kernel: in torch 2.13 its double backward on the CPU is not the derivative of its
    # backward (gradgradcheck fails), and it has no forward derivative.
    # `dim` is the one that is kept, -1 for none.
    kept = dim if dim == -1 else dim % v.ndim
    over = [d for d in range(v.ndim) if d != kept]
    return v * (g / torch.linalg.vector_norm(v, dim=over, keepdim=dim != -1))


DECOMPOSITIONS: dict[Any, Callable[..., Tensor]] = {torch._weight_norm: _weight_norm}
