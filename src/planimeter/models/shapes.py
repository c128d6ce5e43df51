"""What a network takes: images of which channels and size, and how many outputs."""

from __future__ import annotations

from collections.abc import Sequence

from planimeter.errors import InputError


def image_shape(
    network: str, input_shape: Sequence[int], *, smallest: int = 1
) -> tuple[int, int, int]:
    """Channels, height and width of images that a convolutional network can take.

    Arguments:
        network: its name, for messages.
        input_shape: of one input, without the rows.
        smallest: height and width that it needs at least, in pixels.

    Raises:
        InputError: inputs are no images, or too small.
    """
    shape = tuple(input_shape)
    if len(shape) != 3 or min(shape) < 1:
        raise InputError(
            f"{network} takes images (channels, height, width), got inputs of shape {shape}: "
            f"use mlp or fully_connected for them"
        )
    channels, height, width = shape
    if min(height, width) < smallest:
        raise InputError(
            f"{network} needs images of at least {smallest} x {smallest} pixels, "
            f"got {height} x {width}"
        )
    return channels, height, width


def check_outputs(network: str, outputs: int) -> None:
    """Refuse a network without outputs.

    Raises:
        InputError: there is none.
    """
    if outputs < 1:
        raise InputError(f"{network} needs at least 1 output, got {outputs}")
