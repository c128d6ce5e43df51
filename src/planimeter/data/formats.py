"""The formats of image files, idx and CIFAR's binary layout, as tensors of bytes.

Nothing is ever unpickled.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from planimeter.errors import InputError

_PIXELS = 3 * 32 * 32


def read_idx(raw: bytes) -> UInt8[Tensor, " ..."]:
    """The idx format: two zero bytes, type 8 (uint8), number of dimensions, big-endian sizes.

    Raises:
        InputError: it is something else, or was cut off.
    """
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise InputError(f"not an idx file of unsigned bytes: it begins with {raw[:4]!r}")
    start = 4 + 4 * raw[3]
    shape = [int.from_bytes(raw[place : place + 4], "big") for place in range(4, start, 4)]
    if len(raw) != start + math.prod(shape):
        size = " x ".join(map(str, shape))
        raise InputError(
            f"an idx file of {size} values has {start + math.prod(shape)} bytes, "
            f"this one {len(raw)}"
        )
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=start).reshape(shape).copy())


def read_cifar(raw: bytes, labels: int = 1) -> tuple[UInt8[Tensor, "n 3 32 32"], Int[Tensor, " n"]]:
    """CIFAR's binary layout, a row an image: labels, then 32 x 32 red, green and blue pixels.

    Arguments:
        raw: the file.
        labels: 1 for CIFAR-10; 2 for CIFAR-100, whose rows have a coarse and a fine one.

    Returns:
        images, and the last of the labels.

    Raises:
        InputError: it has no whole number of rows.

    Source: Krizhevsky, Learning multiple layers of features from tiny images, 2009.
    """
    width = labels + _PIXELS
    if not raw or len(raw) % width:
        raise InputError(f"not a CIFAR file: {len(raw)} bytes are no multiple of {width}")
    rows = np.frombuffer(raw, np.uint8).reshape(-1, width)
    images = torch.from_numpy(rows[:, labels:].copy()).reshape(-1, 3, 32, 32)
    return images, torch.from_numpy(rows[:, labels - 1].astype(np.int64))
