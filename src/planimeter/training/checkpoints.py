"""Checkpoints without pickle: tensors as safetensors, everything else as JSON.

A checkpoint is a folder `epoch-000140` that appears when it is whole:

* `weights.safetensors`: the network, by the names of its `state_dict`; the averaged one where
  weights are averaged.
* `state.safetensors`, `state.json`: optimiser, generators, position in the data, average, records:
  what it takes to go on to the last bit.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from planimeter.errors import InputError
from planimeter.files import cannot_write, whole
from planimeter.training.recording import Timetable

_WEIGHTS, _TENSORS, _PLAIN = "weights.safetensors", "state.safetensors", "state.json"


@dataclass(frozen=True)
class Checkpoints:
    """Where and when checkpoints are written.

    Arguments:
        folder: made if need be; one folder a training run.
        at: beside the epoch at which the stop rule is met and the last one, which always have one.
    """

    folder: Path
    at: Timetable = field(default_factory=Timetable)


def save_weights(model: nn.Module, path: Path) -> None:
    """A network's parameters and buffers as safetensors, moved into place when whole.

    Raises:
        InputError: the file cannot be written.
    """
    with whole(path) as beside:
        _save_tensors(model.state_dict(), beside)


def save_checkpoint(
    folder: Path, epoch: int, weights: Mapping[str, Tensor], state: Mapping[str, Any]
) -> Path:
    """Write one checkpoint; one that is there for the same epoch is replaced.

    Raises:
        InputError: it cannot be written; what was there stays.
    """
    final = folder / f"epoch-{epoch:06d}"
    partial = folder / f".{final.name}.partial"
    tensors: dict[str, Tensor] = {}
    plain = _pack(state, tensors)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _save_tensors(weights, partial / _WEIGHTS)
        _save_tensors(tensors, partial / _TENSORS)
        with (partial / _PLAIN).open("w", encoding="utf-8") as file:
            json.dump(plain, file)
            file.flush()
            os.fsync(file.fileno())
        old = folder / f".{final.name}.old"
        if final.exists():
            final.replace(old)
        partial.replace(final)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise cannot_write(final, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final


def load_checkpoint(checkpoint: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and state of a checkpoint.

    Raises:
        InputError: there is none, or it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = load_file(checkpoint / _WEIGHTS)
        tensors = load_file(checkpoint / _TENSORS)
        plain = json.loads((checkpoint / _PLAIN).read_text(encoding="utf-8"))
        return weights, _unpack(plain, tensors)
    except FileNotFoundError as error:
        raise InputError(
            f"no checkpoint at {checkpoint}: pass a folder such as epoch-000140"
        ) from error
    except (SafetensorError, ValueError, KeyError) as error:
        raise InputError(f"the checkpoint {checkpoint} is damaged: {error}") from error


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the last epoch in a folder; None where there is none."""
    return max(folder.glob("epoch-*"), key=lambda p: int(p.name[6:]), default=None)


def _save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    # Copies: safetensors refuses tensors that share memory, as tied weights do.
    copies = {n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()}
    try:
        save_file(copies, path)
    except SafetensorError as error:  # which keeps the system's number in its words
        number = re.search(r"\((?:os error|code:) (\d+)", str(error))
        if number is None:
            raise OSError(str(error)) from error
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def _pack(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """JSON in which tensors are numbers into `tensors`, and dicts and tuples keep their kinds."""
    if isinstance(tree, Tensor):
        name = str(len(tensors))
        tensors[name] = tree
        return {"tensor": name}
    if isinstance(tree, Mapping):
        return {"dict": [[key, _pack(value, tensors)] for key, value in tree.items()]}
    if isinstance(tree, tuple):
        return {"tuple": [_pack(value, tensors) for value in tree]}
    if isinstance(tree, list):
        return [_pack(value, tensors) for value in tree]
    return tree


def _unpack(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(tree, list):
        return [_unpack(value, tensors) for value in tree]
    if isinstance(tree, dict):
        ((kind, content),) = tree.items()
        if kind == "tensor":
            return tensors[content]
        if kind == "dict":
            return {key: _unpack(value, tensors) for key, value in content}
        return tuple(_unpack(value, tensors) for value in content)
    return tree
