"""The image sets: where their files are, and how they are read."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from planimeter.data.dataset import Dataset
from planimeter.data.files import FileSet, read_members
from planimeter.data.formats import read_cifar, read_idx
from planimeter.data.stored import StoredInputs
from planimeter.errors import InputError

# sha256 of the 1797 x 64 pixel array as float64 bytes, to notice a changed copy.
_DIGITS_SHA256 = "20def7f70a702f0af9732fbba4375e147a7d54fe70d8c45569b8e7c1c7010c10"

MNIST = FileSet(
    "mnist",
    md5={
        "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    },
    members={
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
    address="https://ossci-datasets.s3.amazonaws.com/mnist",
)

FASHION_MNIST = FileSet(
    "fashion-mnist",
    md5={
        "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
    },
    members={
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    },
    address="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
    # Debian's package dataset-fashion-mnist; its files were compressed anew.
    elsewhere=("/usr/share/datasets/fashion-mnist",),
)

CIFAR10 = FileSet(
    "cifar10",
    md5={"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"},
    members={
        "cifar-10-batches-bin/data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
        "cifar-10-batches-bin/data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
        "cifar-10-batches-bin/data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
        "cifar-10-batches-bin/data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
        "cifar-10-batches-bin/data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
        "cifar-10-batches-bin/test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
    },
    address="https://www.cs.toronto.edu/~kriz",
    repacked=("cifar-10-binary.tar.xz",),
)

# Sums of the archives are known, sums of the files in the whole one are not: only archives can be
# checked. That also keeps the two apart, whose files have the same names.
_CIFAR100_FILES = {"cifar-100-binary/train.bin": None, "cifar-100-binary/test.bin": None}

CIFAR100 = FileSet(
    "cifar100",
    md5={"cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8"},
    members=_CIFAR100_FILES,
    address="https://www.cs.toronto.edu/~kriz",
)

CIFAR100_SUBSET = FileSet(
    "cifar100-subset",
    md5={"cifar-100-binary-subset.tar.xz": "303227d191bc92edb9f229fe68685765"},
    members=_CIFAR100_FILES,
    source="not published; `cifar100` is the whole set",
    folder="cifar100",
)


def load_digits() -> Dataset:
    """scikit-learn's 8 x 8 digits, pixels 0...16."""
    from sklearn import datasets

    pixels, labels = datasets.load_digits(return_X_y=True)
    digest = hashlib.sha256(np.ascontiguousarray(pixels, dtype=np.float64).tobytes()).hexdigest()
    if digest != _DIGITS_SHA256:
        raise InputError(f"scikit-learn's digits have changed: sha256 {digest}")
    values = torch.from_numpy(pixels.astype(np.uint8)).reshape(-1, 1, 8, 8)
    return Dataset(
        "digits", StoredInputs(values, 16), torch.from_numpy(labels).long(), None, None, 10
    )


def load_idx(files: FileSet) -> Dataset:
    """MNIST and sets of its form."""
    parts = {name: read_idx(content) for name, content in read_members(files)}
    images, labels, test_images, test_labels = (parts[name] for name in files.members)
    return _dataset(
        files.name, (images[:, None], labels.long()), (test_images[:, None], test_labels.long()), 10
    )


def load_cifar(files: FileSet, classes: int) -> Dataset:
    """CIFAR in the order of its files, the last of which is the test part."""
    labels = 1 if classes == 10 else 2
    parts = {name: read_cifar(content, labels) for name, content in read_members(files)}
    *train, test = (parts[name] for name in files.members)
    images, numbers = (torch.cat(each) for each in zip(*train, strict=True))
    return _dataset(files.name, (images, numbers), test, classes)


def _dataset(
    name: str, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], classes: int
) -> Dataset:
    return Dataset(
        name, StoredInputs(train[0], 255), train[1], StoredInputs(test[0], 255), test[1], classes
    )
