"""The rows that a loss is a mean over: tensors, or a loader that gives the same rows every time."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor

from planimeter.errors import InputError
from planimeter.operators.batches import Batch, Inputs, cut_rows, is_finite, tensors_in
from planimeter.operators.memory import free_memory

TARGET_KEYS = ("labels", "label", "targets", "target")
KEPT_FRACTION = 8
"""A loader's rows are kept in memory when they take less than this part of what is free."""


class BatchData:
    """Batches that are the same in every pass.

    Arguments:
        data: (inputs, targets), inputs a tensor or a tuple or dict of tensors with one entry a
            row; or an iterable of batches that can be iterated again. A batch is such a pair, a
            tuple whose last tensor is the targets, or a dict with the targets under "labels".
        batch_size: rows a batch, for tensors.
        device, dtype: of the model; floating inputs are converted.

    Raises:
        InputError: the data is empty, of unequal lengths, not finite, can be iterated only once,
            or is not the same in a second pass (the reason is named: shuffled, or changing rows).
    """

    def __init__(
        self, data: Any, *, batch_size: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1 row, got {batch_size}")
        self.batch_size, self.device, self.dtype = batch_size, device, dtype
        self.tensors: Batch | None = None
        if isinstance(data, tuple | list) and any(isinstance(part, np.ndarray) for part in data):
            raise InputError(
                "data must be tensors, got a NumPy array: use torch.from_numpy for inputs and "
                "targets"
            )
        if isinstance(data, tuple | list) and len(data) == 2 and _are_rows(*data):
            self.tensors = _checked_tensors(data[0], data[1])
            return
        if isinstance(data, Iterator) or not isinstance(data, Iterable):
            what = "one-shot " if isinstance(data, Iterator) else ""
            raise InputError(
                f"data must be tensors (inputs, targets) or an iterable that can be iterated "
                f"again, got a {what}{type(data).__name__}: pass a DataLoader or a list of "
                f"batches"
            )
        self.loader: Iterable[Any] = data
        self._check_repeats()

    def __iter__(self) -> Iterator[Batch]:
        """One pass, on the model's device, floating inputs in the model's dtype."""
        if self.tensors is None:
            for batch in self._loaded(seed=None):
                yield self._placed(batch[0]), self._placed(batch[1])
            return
        inputs, targets = self.tensors
        rows = len(targets)
        for start in range(0, rows, self.batch_size):
            part = slice(start, start + self.batch_size)
            yield self._placed(cut_rows(inputs, part, rows)), self._placed(targets[part])

    def shuffled(self, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """One epoch of shuffled batches; a loader keeps its own batches and order."""
        if self.tensors is None:
            yield from self
            return
        inputs, targets = self.tensors
        order = torch.randperm(len(targets), generator=generator)
        for rows in order.split(batch_size):
            yield self._placed(_taken(inputs, rows, len(targets))), self._placed(targets[rows])

    def _loaded(self, seed: int | None) -> Iterator[Batch]:
        """The loader's batches as pairs; it has a random state of its own.

        A DataLoader draws from the global one even when it does not shuffle.
        """
        state = torch.get_rng_state()
        if seed is not None:
            state = torch.Generator().manual_seed(seed).get_state()
        batches: Iterator[Any] | None = None
        for number in count():
            outside = torch.get_rng_state()
            torch.set_rng_state(state)
            try:
                batches = iter(self.loader) if batches is None else batches
                batch = next(batches)
                state = torch.get_rng_state()
            except StopIteration:
                return
            finally:
                torch.set_rng_state(outside)
            yield _pair(batch, number)

    def _check_repeats(self) -> None:
        """Two passes with different random states have to give the same batches."""
        kept: list[Batch] | None = []
        room = free_memory(torch.device("cpu")) // KEPT_FRACTION
        first: list[list[int]] = []
        for number, batch in enumerate(self._loaded(seed=1)):
            _check_rows(batch, f"batch {number}")
            first.append(_fingerprints(batch))
            room -= sum(t.untyped_storage().nbytes() for t in [*tensors_in(batch[0]), batch[1]])
            if room < 0:
                kept = None
            if kept is not None:
                kept.append(batch)
        if not first:
            raise InputError("the data has no batches")
        second = [_fingerprints(batch) for batch in self._loaded(seed=2)]
        if first != second:
            rows, again = (Counter(f for batch in p for f in batch) for p in (first, second))
            if not second:
                raise InputError(
                    "the data can be iterated only once: pass a DataLoader or a list of batches"
                )
            raise InputError(
                "the data is shuffled: two passes gave the same rows in another order; turn "
                "shuffling off (DataLoader(shuffle=False))"
                if rows == again
                else "the data changes from pass to pass (random augmentation, or another choice "
                "of rows): measure on the rows themselves, without random transforms, shuffling "
                "or drop_last"
            )
        # A loader may yield the same memory again with other rows in it.
        if kept is not None and [_fingerprints(batch) for batch in kept] == first:
            self.loader = kept

    def _placed(self, values: Inputs) -> Any:
        if isinstance(values, Tensor):
            dtype = self.dtype if values.is_floating_point() else values.dtype
            values = values.clone() if values.is_inference() else values
            return values.to(device=self.device, dtype=dtype)
        if isinstance(values, dict):
            return {key: self._placed(value) for key, value in values.items()}
        if isinstance(values, tuple | list):
            return tuple(self._placed(value) for value in values)
        return values


def _are_rows(inputs: Any, targets: Any) -> bool:
    """Whether this is (inputs, targets) of all rows, rather than a list of two batches."""
    if isinstance(inputs, Tensor):
        return True
    if isinstance(inputs, Mapping):
        return not any(key in inputs for key in TARGET_KEYS)
    return isinstance(targets, Tensor) and isinstance(inputs, tuple | list)


def _pair(batch: Any, number: int) -> Batch:
    if isinstance(batch, Mapping):
        key = next((key for key in TARGET_KEYS if key in batch), None)
        if key is not None:
            return {k: v for k, v in batch.items() if k != key}, batch[key]
        raise InputError(
            f"batch {number} is a dict without targets: it has {', '.join(map(str, batch))}, none "
            f"of {', '.join(TARGET_KEYS)}"
        )
    if isinstance(batch, tuple | list) and len(batch) >= 2 and isinstance(batch[-1], Tensor):
        inputs = batch[0] if len(batch) == 2 else tuple(batch[:-1])
        if isinstance(inputs, Mapping):
            inputs = dict(inputs)
        if tensors_in(inputs):
            return inputs, batch[-1]
    raise InputError(
        f"batch {number} is no pair of tensors (inputs, targets), no tuple that ends with the "
        f"targets and no dict with {TARGET_KEYS[0]!r}, but a {type(batch).__name__}"
    )


def _checked_tensors(inputs: Any, targets: Any) -> Batch:
    if not isinstance(targets, Tensor):
        raise InputError(f"targets must be a tensor, got a {type(targets).__name__}")
    inputs = dict(inputs) if isinstance(inputs, Mapping) else inputs
    _check_rows((inputs, targets), "data")
    return inputs, targets


def _check_rows(batch: Batch, where: str) -> None:
    inputs, targets = batch
    tensors = tensors_in(inputs)
    rows = len(tensors[0]) if tensors and tensors[0].ndim else 0
    if targets.ndim == 0 or rows != len(targets) or rows == 0:
        counted = len(targets) if targets.ndim else 0
        raise InputError(f"{where} has {rows} inputs and {counted} targets")
    if not all(map(is_finite, tensors)):
        raise InputError(f"the inputs of {where} contain values that are not finite")


def _fingerprints(batch: Batch) -> list[int]:
    """A checksum of each row."""
    inputs, targets = batch
    sums = [0] * len(targets)
    for tensor in [*tensors_in(inputs), targets]:
        if tensor.ndim == 0 or len(tensor) != len(sums):
            continue
        raw = tensor.detach().cpu().contiguous().flatten(1 if tensor.ndim > 1 else 0)
        for i, row in enumerate(raw.reshape(len(sums), -1).view(torch.uint8).numpy()):
            sums[i] = zlib.crc32(row.tobytes(), sums[i])
    return sums


def _taken(inputs: Inputs, rows: Tensor, size: int) -> Any:
    if isinstance(inputs, Tensor):
        return inputs[rows.to(inputs.device)] if inputs.ndim and len(inputs) == size else inputs
    if isinstance(inputs, dict):
        return {key: _taken(value, rows, size) for key, value in inputs.items()}
    if isinstance(inputs, tuple | list):
        return tuple(_taken(value, rows, size) for value in inputs)
    return inputs
