"""Float32 that means float32, on hardware that would rather not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

DEVICES = ("cpu", "cuda")


def full_precision() -> AbstractContextManager[None]:
    """Products and convolutions of float32 keep all of their digits inside; settings come back.

    On recent NVIDIA hardware torch convolves in TF32 unless told otherwise: 10 bits in place of 23,
    which are no more than three digits. A loss may not mind; a derivative of its gradient does.
    A caller's autocast is off inside for the same reason.
    """
    lowered = [device for device in DEVICES if torch.is_autocast_enabled(device)]
    return _without_autocast(lowered) if lowered else _float32()


@contextmanager
def _without_autocast(lowered: list[str]) -> Iterator[None]:
    try:
        for device in lowered:
            torch.set_autocast_enabled(device, False)
        with _float32():
            yield
    finally:
        for device in lowered:
            torch.set_autocast_enabled(device, True)


@contextmanager
def _float32() -> Iterator[None]:
    if not torch.cuda.is_available():
        yield
        return
    try:
        convolutions = torch.backends.cudnn.allow_tf32
        products = torch.get_float32_matmul_precision()
    except RuntimeError:  # set by torch's newer switches, which the older ones refuse to read
        with _by_operation():
            yield
        return
    try:
        torch.backends.cudnn.allow_tf32 = False
        torch.set_float32_matmul_precision("highest")
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = convolutions
        torch.set_float32_matmul_precision(products)


@contextmanager
def _by_operation() -> Iterator[None]:
    """The same by the newer switches. torch's exporter reads the older ones, so they come last."""
    cudnn: Any = torch.backends.cudnn
    settings: list[Any] = [cudnn.conv, cudnn.rnn, torch.backends.cuda.matmul]
    before = [setting.fp32_precision for setting in settings]
    try:
        for setting in settings:
            setting.fp32_precision = "ieee"
        yield
    finally:
        for setting, precision in zip(settings, before, strict=True):
            setting.fp32_precision = precision
