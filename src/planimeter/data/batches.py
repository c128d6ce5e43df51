"""Batches for training: shuffled, and augmented if asked, from stored rows.

Each epoch is a new permutation of the rows. A batch is gathered as bytes, moved to the device,
augmented there as bytes, and only then made floats and normalised: what moves is a quarter of the
floats.

Augmentation is for training alone. Data sets and splits never hold an augmented row, and batches
are no data that a `LossLandscape` takes: they cannot be iterated, only an epoch of them, once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from planimeter.data.stored import StoredInputs
from planimeter.errors import InputError, suggestion

AUGMENTATIONS = ("none", "flip_crop")
_PADDING = 4


class TrainingBatches:
    """Rows in a new order each epoch, some at a time.

    Arguments:
        inputs, labels: the rows, as `Split.with_attack_set` gives them.
        batch_size: rows a batch; the last one of an epoch may be smaller.
        seed: of the order and, from another generator, of the augmentation: the order is the same
            with and without it.
        augmentation: `flip_crop` mirrors every other image on average and moves it by up to 4
            pixels in each direction, black moving in (granziol2020); `none`.
        device: where batches are wanted; None for where the inputs are.

    Raises:
        InputError: unequal lengths, no rows, a batch size below 1, or augmentation of what is no
            image.
    """

    def __init__(
        self,
        inputs: StoredInputs,
        labels: Int[Tensor, " n"],
        *,
        batch_size: int,
        seed: int = 0,
        augmentation: str = "none",
        device: torch.device | str | None = None,
    ) -> None:
        if len(inputs) != len(labels) or not len(labels):
            raise InputError(f"there are {len(inputs)} inputs and {len(labels)} labels")
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1 row, got {batch_size}")
        if augmentation not in AUGMENTATIONS:
            raise InputError(
                f"no augmentation {augmentation!r}; there are {', '.join(AUGMENTATIONS)}"
                + suggestion(augmentation, AUGMENTATIONS)
            )
        if augmentation != "none" and len(inputs.shape) != 4:
            raise InputError(f"{augmentation} is for images, the rows have shape "
                             f"{tuple(inputs.shape[1:])}")
        self._inputs, self._labels = inputs, labels
        self._batch_size, self._augmented = batch_size, augmentation != "none"
        self._device = torch.device(device) if device is not None else inputs.values.device
        self._order = torch.Generator().manual_seed(seed)
        self._changes = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        """Batches an epoch."""
        return -(-len(self._labels) // self._batch_size)

    def epoch(self) -> Iterator[tuple[Float[Tensor, "b ..."], Int[Tensor, " b"]]]:
        """The next epoch; its order is drawn when its first batch is asked for."""
        order = torch.randperm(len(self._labels), generator=self._order)
        for rows in order.split(self._batch_size):
            raw = self._inputs.raw(rows).to(self._device, non_blocking=True)
            if self._augmented:
                raw = flip_crop(raw, self._changes)
            labels = self._labels[rows.to(self._labels.device)]
            yield self._inputs.to_floats(raw), labels.to(self._device, non_blocking=True)

    def state_dict(self) -> dict[str, Tensor]:
        """What an exact continuation after whole epochs needs."""
        return {"order": self._order.get_state(), "augmentation": self._changes.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the epochs that `state_dict` was called after."""
        self._order.set_state(state["order"])
        self._changes.set_state(state["augmentation"])


def flip_crop(
    images: Shaped[Tensor, "n c h w"], generator: torch.Generator
) -> Shaped[Tensor, "n c h w"]:
    """Each image mirrored with probability 1/2 and cut out of itself padded by 4 zeros a side.

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
