"""Batches of stored rows: shuffled and perhaps augmented for training, in order for measuring.

A batch is gathered as bytes, moved to the device, augmented there as bytes, and only then made
floats and normalised: what moves is a quarter of the floats.

Augmentation is for training alone. Data sets and splits never hold an augmented row, and what makes
augmented batches is a function of a random generator: no data that a `LossLandscape` takes. An
epoch of them can be iterated only once, which it refuses as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from planimeter.data.stored import StoredInputs
from planimeter.errors import InputError, suggestion

AUGMENTATIONS = ("none", "flip_crop")

Batch = tuple[Tensor, Tensor]
_PADDING = 4


def training_batches(
    inputs: StoredInputs,
    labels: Int[Tensor, " n"],
    *,
    batch_size: int,
    augmentation: str = "none",
    device: torch.device | str | None = None,
) -> Callable[[torch.Generator], Iterator[Batch]]:
    """What makes the batches of one epoch: every row once, in random order.

    Arguments:
        inputs, labels: the rows, as `Split.with_attack_set` gives them.
        batch_size: rows a batch; the last one of an epoch may be smaller.
        augmentation: `flip_crop` for `flip_crop` on each batch, or `none`.
        device: where batches are wanted; None for where the inputs are.

    Returns:
        a function from a random generator, where all randomness comes from, to float inputs and
        labels of one batch after another: `fit(..., batches=training_batches(...))`.

    Raises:
        InputError: unequal lengths, no rows, more rows a batch than there are or none, or
            augmentation that is unknown or of what is no image.
    """
    _check_rows(inputs, labels, batch_size)
    if augmentation not in AUGMENTATIONS:
        raise InputError(
            f"no augmentation {augmentation!r}; there are {', '.join(AUGMENTATIONS)}"
            + suggestion(augmentation, AUGMENTATIONS)
        )
    if augmentation != "none" and len(inputs.shape) != 4:
        raise InputError(
            f"{augmentation} is for images, but the rows have shape {tuple(inputs.shape[1:])}"
        )
    target = torch.device(device) if device is not None else inputs.values.device

    def epoch(generator: torch.Generator) -> Iterator[Batch]:
        for rows in torch.randperm(len(labels), generator=generator).split(batch_size):
            raw = inputs.raw(rows).to(target, non_blocking=True)
            if augmentation == "flip_crop":
                raw = flip_crop(raw, generator)
            chosen = labels[rows.to(labels.device)].to(target, non_blocking=True)
            yield inputs.to_floats(raw), chosen

    return epoch


@dataclass(frozen=True, eq=False)
class OrderedBatches:
    """All rows in their order and as they are, some at a time, as often as one likes.

    What a `LossLandscape` of a set takes that is large as floats.
    """

    inputs: StoredInputs
    labels: Int[Tensor, " n"]
    batch_size: int = 1000

    def __post_init__(self) -> None:
        _check_rows(self.inputs, self.labels, min(self.batch_size, len(self.labels)))

    def __len__(self) -> int:
        """Batches a pass."""
        return -(-len(self.labels) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """One pass."""
        for start in range(0, len(self.labels), self.batch_size):
            rows = slice(start, start + self.batch_size)
            yield self.inputs[rows], self.labels[rows]


def flip_crop(
    images: Shaped[Tensor, "n c h w"], generator: torch.Generator
) -> Shaped[Tensor, "n c h w"]:
    """Each image mirrored with probability 1/2, and cut out of itself padded by 4 zeros a side.

    Source: the augmentation of He et al. 2016, Section 4.2, and of granziol2020.
    """
    count, channels, height, width = images.shape
    device = images.device
    drawn = torch.randint(0, 2 * _PADDING + 1, (2, count), generator=generator).to(device)
    mirrored = torch.randint(0, 2, (count, 1), generator=generator).to(device)
    rows = drawn[0][:, None] + torch.arange(height, device=device)
    columns = torch.arange(width, device=device)
    columns = drawn[1][:, None] + torch.where(mirrored == 1, width - 1 - columns, columns)
    padded = torch.nn.functional.pad(images, (_PADDING,) * 4)
    return padded[
        torch.arange(count, device=device)[:, None, None, None],
        torch.arange(channels, device=device)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]


def _check_rows(inputs: StoredInputs, labels: Tensor, batch_size: int) -> None:
    if len(inputs) != len(labels) or not len(labels):
        raise InputError(f"there are {len(inputs)} inputs and {len(labels)} labels")
    if not 1 <= batch_size <= len(labels):
        raise InputError(f"a batch of {batch_size} rows was asked for, there are {len(labels)}")
