"""A user's model from `module:callable`, and weights from a checkpoint that runs no code."""

from __future__ import annotations

import importlib
import pickle
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from planimeter.errors import InputError


def load_model(reference: str, checkpoint: Path | None = None, *, seed: int = 0) -> nn.Module:
    """Import `module:callable`, call it without arguments, and load a checkpoint into the result.

    Arguments:
        reference: `package.module:callable`; the current folder is searched too.
        checkpoint: see `load_checkpoint`; None keeps the weights the callable made.
        seed: of torch's generator while the callable runs, which is put back afterwards.

    Raises:
        InputError: the module or callable cannot be found or called, or returns no module; or
            the checkpoint does not fit.
    """
    module_name, _, attribute = reference.partition(":")
    if not attribute:
        raise InputError(f"model {reference!r} is not of the form module:callable, e.g. mynet:make")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        make = getattr(importlib.import_module(module_name), attribute)
    except ImportError as error:
        raise InputError(
            f"cannot import {module_name!r} for model {reference!r}: {error}"
        ) from error
    except AttributeError as error:
        raise InputError(f"module {module_name!r} has no {attribute!r}") from error
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = make()
    except Exception as error:  # whatever the user's own code raises
        raise InputError(
            f"calling {reference} without arguments raised {type(error).__name__}: {error}"
        ) from error
    if not isinstance(model, nn.Module):
        raise InputError(
            f"{reference} returned an object of type {type(model).__name__}, not a torch.nn.Module"
        )
    if checkpoint is not None:
        load_checkpoint(model, checkpoint)
    return model


def load_checkpoint(model: nn.Module, path: Path) -> None:
    """Load a state dict into a model, in place.

    Reads safetensors, or `torch.save` files of tensors alone (nothing is unpickled freely). A
    dict with a `state_dict` or `model` entry is unwrapped, and a `module.` prefix
    (DataParallel) or `_orig_mod.` prefix (torch.compile) is dropped. BatchNorm's
    `num_batches_tracked`, which evaluation does not use, may be missing.

    Raises:
        InputError: the file is missing or unreadable, or a tensor is missing, superfluous or of
            another shape (the first such tensor is named).
    """
    tensors = {_bare(name): value for name, value in _read(path).items()}
    expected = model.state_dict()
    for name, value in expected.items():
        if name.endswith("num_batches_tracked"):  # old PyTorch did not save this counter
            tensors.setdefault(name, value)
        if name not in tensors:
            raise InputError(
                f"checkpoint {path} has no tensor {name!r}, which the model needs; it has "
                f"{_some(tensors)}"
            )
        if tensors[name].shape != value.shape:
            raise InputError(
                f"checkpoint {path}: tensor {name!r} has shape {tuple(tensors[name].shape)}, "
                f"the model needs {tuple(value.shape)}"
            )
    for name in tensors:
        if name not in expected:
            raise InputError(
                f"checkpoint {path} has tensor {name!r}, which the model does not have; it has "
                f"{_some(expected)}"
            )
    model.load_state_dict(tensors)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}")
    content: Any
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise InputError(f"{path} is not a readable safetensors file: {error}") from error
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} is no checkpoint of tensors alone: save model.state_dict() rather than the "
            f"model, or use safetensors"
        ) from error
    except Exception as error:  # torch.load raises what zipfile and pickle raise
        raise InputError(
            f"{path} is no file of torch.save, or damaged ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no more is known'})"
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise InputError(f"{path} holds no state dict (a dict of name to tensor)")
    return content


def _some(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    every = list(names)
    more = f" and {len(every) - 4} more" if len(every) > 4 else ""
    return ", ".join(map(repr, every[:4])) + more if every else "none"


def _bare(name: str) -> str:
    return name.removeprefix("module.").removeprefix("_orig_mod.")
