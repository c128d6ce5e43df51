"""The activations that enter a network's last linear layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from jaxtyping import Shaped
from torch import Tensor, nn

from planimeter.errors import InputError
from planimeter.network.running import without_graph


@dataclass(frozen=True)
class LastLayer:
    """The linear layer that makes a network's outputs.

    Arguments:
        name: its name in the network.
        width: numbers that enter it, for each input.
    """

    name: str
    width: int


def find_last_layer(network: nn.Module, x: Shaped[Tensor, "n ..."], name: str | None) -> LastLayer:
    """The linear layer that runs last, or the named one.

    Arguments:
        network: in the mode it is to be measured in.
        x: some rows of its inputs.
        name: of the layer; None for the nn.Linear whose forward is called last.

    Raises:
        InputError: there is no such layer, it runs more than once in a pass, or what enters it is
            not one vector an input.
    """
    names = {layer: key for key, layer in network.named_modules() if isinstance(layer, nn.Linear)}
    called: list[tuple[str, tuple[int, ...]]] = []

    def note(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        called.append((names[layer], tuple(arguments[0].shape)))  # type: ignore[index]

    hooks = [layer.register_forward_pre_hook(note) for layer in names]

    def run() -> None:
        called.clear()
        network(x)

    try:
        without_graph(run)
    finally:
        for hook in hooks:
            hook.remove()
    if not called:
        raise InputError(
            f"{type(network).__name__} ran no nn.Linear layer: the empirical kernel applies the "
            f"recurrence of a last linear layer, and needs one"
        )
    chosen = called[-1][0] if name is None else name
    shapes = [shape for layer, shape in called if layer == chosen]
    if not shapes:
        ran = ", ".join(dict.fromkeys(layer or "the network" for layer, _ in called))
        raise InputError(f"no linear layer {chosen!r} ran; these did: {ran}")
    if len(shapes) > 1:
        raise InputError(f"layer {chosen!r} runs {len(shapes)} times in a pass: name another one")
    if len(shapes[0]) != 2 or shapes[0][0] != len(x):
        raise InputError(
            f"what enters layer {chosen!r} has shape {shapes[0]} for {len(x)} inputs; one vector "
            f"an input is needed: name a later layer"
        )
    return LastLayer(chosen, shapes[0][1])


def last_hidden(
    network: nn.Module, layer: str, batches: list[Tensor], take: Callable[[int, Tensor], None]
) -> None:
    """Run a network on batches, and hand over what enters the named layer, with its first row."""
    entered: list[Tensor] = []
    hook = network.get_submodule(layer).register_forward_pre_hook(
        lambda module, arguments: entered.append(arguments[0])
    )
    row = 0
    try:
        for batch in batches:
            without_graph(partial(network, batch))
            take(row, entered.pop().detach())
            entered.clear()
            row += len(batch)
    finally:
        hook.remove()
