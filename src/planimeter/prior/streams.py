"""The stream of functions of a network's random copies: what draws it, and how many threads."""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from planimeter.errors import InputError
from planimeter.prior.random_functions import FullyConnectedFunctions, Functions, ModuleFunctions


@dataclass(frozen=True)
class Source:
    """What a stream is drawn by.

    Arguments:
        make: gives a thread its own `Functions`.
        network: a text that tells streams of different networks apart.
        device: on which they are drawn.
        threaded: whether several threads may draw at once, each on one core: matrix products this
            small do not get faster with more. Otherwise one thread draws, with all of torch's.
    """

    make: Callable[[], Functions]
    network: str
    device: str
    threaded: bool


def source_of(
    network: nn.Module | Sequence[int], x: Tensor, sigma_w: float, sigma_b: float
) -> Source:
    """The fast path for fully connected ReLU networks, stacked parameters for other modules.

    Raises:
        InputError: the widths or the inputs do not fit, or a parameter cannot be drawn.
    """
    widths = _widths(network)
    if widths is None:
        assert isinstance(network, nn.Module)
        return _module_source(network, x, sigma_w, sigma_b)
    rows = x.flatten(1).float()
    if rows.shape[1] != widths[0]:
        raise InputError(f"the network takes {widths[0]} numbers an input, x has {rows.shape[1]}")
    if isinstance(network, nn.Module):
        rows = rows.to(next(network.parameters()).device)
    return Source(
        lambda: FullyConnectedFunctions(rows, widths[1:-1], sigma_w, sigma_b),
        "-".join(map(str, widths)),
        rows.device.type,
        rows.device.type == "cpu",
    )


def stream(
    source: Source, seed: int, first: int, end: int, threads: int
) -> Iterator[NDArray[np.uint64]]:
    """Batches `first` to `end` in order, drawn by several threads, few of them ahead."""
    own = threading.local()
    before = torch.get_num_threads()

    def draw(index: int) -> NDArray[np.uint64]:
        if not hasattr(own, "functions"):
            # Holds for this thread alone.
            torch.set_num_threads(1 if source.threaded else before)
            own.functions = source.make()
        with torch.inference_mode():
            functions: NDArray[np.uint64] = own.functions.batch(seed, index)
        return functions

    count = threads if source.threaded else 1
    waiting: deque[Future[NDArray[np.uint64]]] = deque()
    with ThreadPoolExecutor(count) as pool:
        try:
            for index in range(first, end):
                waiting.append(pool.submit(draw, index))
                if len(waiting) > 3 * count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
            # Threads that torch has yet to meet take the last number that was set anywhere.
            torch.set_num_threads(before)


def _module_source(network: nn.Module, x: Tensor, sigma_w: float, sigma_b: float) -> Source:
    first = next(network.parameters(), None)
    if first is None:
        raise InputError("the network has no parameters: there is nothing to draw")
    rows = x.to(first if x.is_floating_point() else first.device)
    drawn = ModuleFunctions(network, rows, sigma_w, sigma_b).shapes
    # What is drawn counts by its shape, everything else by its values.
    identity = hashlib.sha256(str(network).encode())
    for name, value in network.state_dict().items():
        identity.update(f"{name} {tuple(value.shape)}".encode())
        if name not in drawn:
            identity.update(value.cpu().numpy().tobytes())
    return Source(
        lambda: ModuleFunctions(network, rows, sigma_w, sigma_b),
        identity.hexdigest()[:16],
        first.device.type,
        threaded=False,
    )


def _widths(network: nn.Module | Sequence[int]) -> list[int] | None:
    """Of a fully connected ReLU network; None for a module of another kind."""
    if not isinstance(network, nn.Module):
        widths = [int(width) for width in network]
        if len(widths) < 2 or min(widths) < 1 or widths[-1] != 1:
            raise InputError(
                f"widths are those of the inputs, the hidden layers and one output, such as "
                f"7, 40, 40, 1; got {', '.join(map(str, widths)) or 'none'}"
            )
        return widths
    layers = _linear_layers(network)
    if layers is None:
        return None
    return _widths([layers[0].in_features, *(layer.out_features for layer in layers)])


def _linear_layers(network: nn.Module) -> list[nn.Linear] | None:
    """The layers of a chain of Linear (with biases) and ReLU; None for anything else."""
    skipped = nn.Flatten | nn.Identity | nn.Dropout
    chain = [m for m in network.children() if not isinstance(m, skipped)]
    linear = [m for m in chain[::2] if isinstance(m, nn.Linear) and m.bias is not None]
    activations = [m for m in chain[1::2] if isinstance(m, nn.ReLU)]
    whole = isinstance(network, nn.Sequential) and len(linear) + len(activations) == len(chain)
    return linear if whole and len(linear) == len(activations) + 1 else None
