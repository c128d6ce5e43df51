"""A function of tensors on a GPU, launched as one.

A product of a small network is hundreds of operations that take microseconds each, and launching
them one by one takes longer than the operations. A CUDA graph holds all launches of one call, and
repeats them as they were: on the same addresses. So a graph has its own inputs, which are copied
to, and outputs, which are copied from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class Replay:
    """Repeats `run(*examples)` on new tensors of the same shapes.

    Arguments:
        run: the function; what it reads beside its arguments has to stay where it is.
        examples: arguments on a CUDA device, whose shapes and dtypes all others have.
        pool: memory for what is made on the way (`torch.cuda.graph_pool_handle`), which graphs that
            never run at the same time may share.

    Raises:
        RuntimeError: something in `run` waits for the device, which a graph cannot.
    """

    def __init__(
        self, run: Callable[..., list[Tensor]], examples: Sequence[Tensor], pool: Any
    ) -> None:
        self.inputs = [example.clone() for example in examples]
        self.graph = torch.cuda.CUDAGraph()
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside), torch.inference_mode():
            run(*self.inputs)  # libraries set themselves up in their first call
            self.graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                outputs = run(*self.inputs)
                self.flat = torch.cat([output.reshape(-1) for output in outputs])
            finally:
                self.graph.capture_end()
        here.wait_stream(aside)
        self.shapes = [output.shape for output in outputs]
        self.sizes = [output.numel() for output in outputs]

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        """The outputs, in memory of their own."""
        torch._foreach_copy_(self.inputs, tensors)
        self.graph.replay()
        pieces = self.flat.clone().split(self.sizes)
        return [piece.view(shape) for piece, shape in zip(pieces, self.shapes, strict=True)]
