"""The data sets by name, as tensors.

Images are floats in [0, 1] of shape (n, channels, height, width); labels are class numbers.
"""

from __future__ import annotations

import gzip
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from planimeter.data.files import FileSet, read_checked, read_members
from planimeter.errors import InputError


@dataclass(frozen=True)
class Dataset:
    """Inputs and labels; `test_inputs` is None where the set is one pool without a test part."""

    name: str
    inputs: Float[Tensor, "n c h w"]
    labels: Int[Tensor, " n"]
    test_inputs: Float[Tensor, "m c h w"] | None
    test_labels: Int[Tensor, " m"] | None
    classes: int


@dataclass(frozen=True)
class DatasetInfo:
    """What `data list` says of a data set, and how to load it."""

    description: str
    load: Callable[[], Dataset]
    files: FileSet | None


# sha256 of the 1797 x 64 pixel array as float64 bytes, to notice a changed copy.
_DIGITS_SHA256 = "20def7f70a702f0af9732fbba4375e147a7d54fe70d8c45569b8e7c1c7010c10"

_MNIST = FileSet(
    "mnist",
    {
        "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    },
    "https://ossci-datasets.s3.amazonaws.com/mnist",
)

_CIFAR10 = FileSet(
    "cifar10",
    {"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"},
    "https://www.cs.toronto.edu/~kriz",
    members={
        "cifar-10-batches-bin/data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
        "cifar-10-batches-bin/data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
        "cifar-10-batches-bin/data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
        "cifar-10-batches-bin/data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
        "cifar-10-batches-bin/data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
        "cifar-10-batches-bin/test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
    },
    repacked=("cifar-10-binary.tar.xz",),
)


def load(name: str) -> Dataset:
    """A data set by name.

    Raises:
        InputError: the name is unknown, or its files are missing or damaged.
    """
    if name not in DATASETS:
        raise InputError(f"no data set {name!r}; there are {', '.join(DATASETS)}")
    return DATASETS[name].load()


@lru_cache(maxsize=1)
def _load_digits() -> Dataset:
    """scikit-learn's 8 x 8 digits, pixels 0...16 scaled to [0, 1]."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    digest = hashlib.sha256(np.ascontiguousarray(pixels, dtype=np.float64).tobytes()).hexdigest()
    if digest != _DIGITS_SHA256:
        raise InputError(f"scikit-learn's digits have changed: sha256 {digest}")
    inputs = torch.from_numpy(pixels / 16).float().reshape(-1, 1, 8, 8)
    return Dataset("digits", inputs, torch.from_numpy(labels).long(), None, None, 10)


@lru_cache(maxsize=1)
def _load_mnist() -> Dataset:
    """MNIST, pixels / 255."""
    parts = [_read_idx(read_checked(_MNIST, name)) for name in _MNIST.md5]
    images, labels, test_images, test_labels = parts
    return Dataset(
        "mnist",
        images[:, None].float() / 255,
        labels.long(),
        test_images[:, None].float() / 255,
        test_labels.long(),
        10,
    )


@lru_cache(maxsize=1)
def _load_cifar10() -> Dataset:
    """CIFAR-10 in the original order, pixels / 255.

    Source: Krizhevsky, Learning multiple layers of features from tiny images, 2009.
    """
    parts = {name: _read_cifar10(content) for name, content in read_members(_CIFAR10)}
    *train, (test_images, test_labels) = (parts[name] for name in _CIFAR10.members)
    # Bytes until here: as floats the training images are 614 MB, which are made once.
    return Dataset(
        "cifar10",
        torch.cat([images for images, _ in train]) / 255,
        torch.cat([labels for _, labels in train]),
        test_images / 255,
        test_labels,
        10,
    )


DATASETS: dict[str, DatasetInfo] = {
    "digits": DatasetInfo("8x8 digits, 1797 images, embedded (scikit-learn)", _load_digits, None),
    "mnist": DatasetInfo("28x28 digits, 60,000 + 10,000 images", _load_mnist, _MNIST),
    "cifar10": DatasetInfo("32x32 colour photos, 50,000 + 10,000 images", _load_cifar10, _CIFAR10),
}


def _read_idx(compressed: bytes) -> Tensor:
    """The idx format: two zero bytes, type 8 (uint8), number of dimensions, big-endian sizes."""
    raw = gzip.decompress(compressed)
    dimensions = raw[3]
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions)]
    if raw[:3] != b"\x00\x00\x08" or len(raw) != 4 + 4 * dimensions + math.prod(shape):
        raise InputError("not an idx file of unsigned bytes")
    values = np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * dimensions)
    return torch.from_numpy(values.reshape(shape).copy())


def _read_cifar10(raw: bytes) -> tuple[Tensor, Tensor]:
    """CIFAR-10's binary layout, a row an image: its label, then 32 x 32 red, green, blue pixels."""
    if len(raw) % (1 + 3 * 32 * 32):
        raise InputError(f"not a CIFAR-10 file: {len(raw)} bytes are no multiple of 3073")
    rows = np.frombuffer(raw, dtype=np.uint8).reshape(-1, 1 + 3 * 32 * 32)
    images = torch.from_numpy(rows[:, 1:].copy()).reshape(-1, 3, 32, 32)
    return images, torch.from_numpy(rows[:, 0].astype(np.int64))
