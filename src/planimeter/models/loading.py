"""A user's model from `module:callable`, and weights from a checkpoint that runs no code."""

from __future__ import annotations

import importlib
import importlib.util
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from planimeter.errors import InputError, suggestion

Tensors = dict[str, Tensor]
COUNTER = "num_batches_tracked"
WRAPPERS = ("model_state_dict", "state_dict", "model")
"""Entries under which training scripts keep the weights."""


def load_model(reference: str, checkpoint: Path | None = None, *, seed: int = 0) -> nn.Module:
    """Import `module:callable`, call it without arguments, and load a checkpoint into the result.

    Arguments:
        reference: `package.module:callable`, where the current folder is searched too, or
            `folder/file.py:callable`, with or without the ending.
        checkpoint: see `load_checkpoint`; None keeps the weights the callable made.
        seed: of torch's generator while the callable runs, which is put back afterwards.

    Raises:
        InputError: the module or callable cannot be found or called, or returns no module; or
            the checkpoint does not fit.
    """
    make = _found(reference)
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
    dict with a `model_state_dict`, `state_dict` or `model` entry is unwrapped. Names that fit are
    taken as they are. Otherwise what wrappers put before them is dropped, as far as they fit then:
    `module.` (DataParallel, AveragedModel with its `n_averaged`), `_orig_mod.` (torch.compile), or
    whatever else all of them begin with. BatchNorm's `num_batches_tracked`, which evaluation does
    not use, may be missing.

    Raises:
        InputError: the file is missing or unreadable, or a tensor is missing, superfluous or of
            another shape (the first such tensors are named, with the shapes of both sides).
    """
    # A model that is itself wrapped keeps its names behind those of the wrapper.
    while isinstance(getattr(model, "_orig_mod", None), nn.Module) or isinstance(
        model, nn.DataParallel | nn.parallel.DistributedDataParallel
    ):
        model = getattr(model, "_orig_mod", None) or model.module  # type: ignore[assignment]
    expected = model.state_dict()
    readings = [_named_for(expected, tensors) for tensors in _without_wrappers(_read(path))]
    # The first of the best: where none fits, the one that most names fit is explained.
    tensors = min(readings, key=lambda found: _distance(found, expected))
    wrong = _mismatch(tensors, expected)
    if wrong:
        raise InputError(f"checkpoint {path} {wrong}")
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(
            f"checkpoint {path} cannot be loaded: {str(error).splitlines()[-1].strip()}"
        ) from error


def _without_wrappers(tensors: Tensors) -> Iterator[Tensors]:
    """The tensors under their own names, and under those without what wrappers put before them."""
    yield tensors
    bare = {n: value for n, value in tensors.items() if n.rpartition(".")[2] != "n_averaged"}
    if len(bare) < len(tensors):
        yield bare
    inner = {_uncompiled(name): value for name, value in bare.items()}
    for names in (bare, inner):
        if len(names) == len(bare):
            while names and len({name.partition(".")[0] for name in names}) == 1:
                names = {name.partition(".")[2]: value for name, value in names.items()}
                if "" in names:
                    break
                yield names
    yield inner


def _named_for(expected: Tensors, tensors: Tensors) -> Tensors:
    """By the model's names, whose compiled parts have other ones, and with the counters of
    BatchNorm, which old PyTorch did not save."""
    own = {_uncompiled(name): name for name in expected}
    if not tensors.keys() <= expected.keys() and tensors.keys() <= own.keys():
        tensors = {own[name]: value for name, value in tensors.items()}
    counters = {n: v for n, v in expected.items() if n.endswith(COUNTER) and n not in tensors}
    return {**tensors, **counters}


def _uncompiled(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def _distance(tensors: Tensors, expected: Tensors) -> tuple[int, int]:
    """How many names and how many shapes do not fit."""
    both = tensors.keys() & expected.keys()
    shapes = sum(tensors[name].shape != expected[name].shape for name in both)
    return len(tensors.keys() ^ expected.keys()), shapes


def _mismatch(tensors: Tensors, expected: Tensors) -> str:
    """What does not fit, in words; nothing where all does."""
    other = [n for n, v in expected.items() if n in tensors and tensors[n].shape != v.shape]
    missing = {name: value for name, value in expected.items() if name not in tensors}
    surplus = {name: value for name, value in tensors.items() if name not in expected}
    if other:
        name, more = other[0], len(other) - 1
        return (
            f"does not fit: tensor {name!r} has shape {tuple(tensors[name].shape)}, the model "
            f"needs {tuple(expected[name].shape)}" + (f"; so do {more} more" if more else "")
        )
    if missing:
        beside = _some(surplus) if surplus else f"only {_some(tensors)}"
        return f"has no tensor {_some(missing)}, which the model needs; it has {beside}"
    if surplus:
        return (
            f"has tensor {_some(surplus)}, which the model does not have; it has {_some(expected)}"
        )
    return ""


def _found(reference: str) -> Any:
    """What a reference names.

    Raises:
        InputError: there is no such file, module or attribute, or importing it fails.
    """
    name, _, attribute = reference.rpartition(":")
    if not name or not attribute:
        raise InputError(
            f"model {reference!r} is not of the form module:callable, e.g. mynet:make or "
            f"nets/mynet.py:make"
        )
    try:
        found = _imported(name)
    except InputError as error:
        raise InputError(f"model {reference!r}: {error}") from error
    except ImportError as error:
        raise InputError(f"cannot import {name!r} for model {reference!r}: {error}") from error
    except Exception as error:  # whatever the user's own file raises
        raise InputError(
            f"importing {name!r} for model {reference!r} raised {type(error).__name__}: {error}"
        ) from error
    try:
        return getattr(found, attribute)
    except AttributeError as error:
        raise InputError(
            f"module {name!r} has no {attribute!r}" + suggestion(attribute, vars(found))
        ) from error


def _imported(name: str) -> ModuleType:
    """A module by its name from the current folder on, or by its file."""
    if name.startswith(".") and "/" not in name:
        bare = name.strip(".")
        raise InputError(f"{name!r} is a relative import: name the file, {bare}.py, or {bare!r}")
    is_file = "/" in name or "\\" in name or name.endswith(".py")
    path = Path(name).expanduser()
    file = path if path.suffix == ".py" else path.with_name(path.name + ".py")
    if is_file and not file.is_file():
        raise InputError(f"there is no file {file}")
    folder = file.parent.resolve() if is_file else Path.cwd()
    if str(folder) not in sys.path and ("" not in sys.path or folder != Path.cwd()):
        sys.path.insert(0, str(folder))
    module = importlib.import_module(file.stem if is_file else name)
    if not is_file or Path(str(module.__file__)).resolve() == file.resolve():
        return module
    # Another file of that name was imported before.
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _read(path: Path) -> Tensors:
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
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not content:
        raise InputError(
            f"{path} holds no state dict (a dict of name to tensor), but {content!r:.60}"
        )
    odd = [name for name, value in content.items() if not isinstance(value, Tensor)]
    if odd:
        raise InputError(
            f"{path} holds no state dict (a dict of name to tensor): {odd[0]!r} is a "
            f"{type(content[odd[0]]).__name__}, and none of {', '.join(WRAPPERS)} is a dict; "
            f"it has {', '.join(map(repr, list(content)[:4]))}"
        )
    return content


def _some(tensors: Tensors) -> str:
    """The first names with their shapes, and how many more there are."""
    tensors = {name: value for name, value in tensors.items() if not name.endswith(COUNTER)}
    more = f" and {len(tensors) - 4} more" if len(tensors) > 4 else ""
    first = [f"{name!r} {tuple(tensors[name].shape)}" for name in list(tensors)[:4]]
    return ", ".join(first) + more if first else "none"
