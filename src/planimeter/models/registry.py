"""The architectures by name, as studies ask for them."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_type_hints

import torch
from torch import nn

from planimeter.errors import InputError
from planimeter.models.all_cnn import all_cnn
from planimeter.models.cifar_alexnet import cifar_alexnet
from planimeter.models.fully_connected import fully_connected
from planimeter.models.mlp import logistic_regression, mlp, rangamani_mlp
from planimeter.models.mnist import convnet, lenet5
from planimeter.models.preresnet import (
    bottleneck_preresnet,
    preresnet,
    preresnet110,
    preresnet110_bottleneck,
    preresnet164,
    wide_resnet,
    wide_resnet28_10,
)
from planimeter.models.resnet import resnet20, resnet32, resnet56
from planimeter.models.resnet50 import resnet50
from planimeter.models.shapes import image_shape
from planimeter.models.vgg import vgg16, vgg16_bn


def _fully_connected(
    input_shape: Sequence[int],
    outputs: int = 1,
    *,
    hidden: Sequence[int] = (40, 40),
    sigma_w: float = math.sqrt(2.0),
    sigma_b: float = 1.0,
) -> nn.Sequential:
    seed = torch.initial_seed()  # the one that the caller gave torch's generator
    return fully_connected(
        math.prod(input_shape), hidden, outputs, sigma_w=sigma_w, sigma_b=sigma_b, seed=seed
    )


def _resnet50(
    input_shape: Sequence[int] = (3, 32, 32), outputs: int = 10, *, small_images: bool = True
) -> nn.Module:
    channels, _, _ = image_shape("resnet50", input_shape)
    if channels != 3:
        raise InputError(f"resnet50 takes images of 3 channels, got {channels}")
    return resnet50(outputs, small_images=small_images)


MODELS: dict[str, Callable[..., nn.Module]] = {
    "logistic_regression": logistic_regression,
    "fully_connected": _fully_connected,
    "mlp": mlp,
    "rangamani_mlp": rangamani_mlp,
    "lenet5": lenet5,
    "convnet": convnet,
    "cifar_alexnet": cifar_alexnet,
    "all_cnn": all_cnn,
    "vgg16": vgg16,
    "vgg16_bn": vgg16_bn,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet56": resnet56,
    "preresnet": preresnet,
    "preresnet110": preresnet110,
    "bottleneck_preresnet": bottleneck_preresnet,
    "preresnet110_bottleneck": preresnet110_bottleneck,
    "preresnet164": preresnet164,
    "wide_resnet": wide_resnet,
    "wide_resnet28_10": wide_resnet28_10,
    "resnet50": _resnet50,
}
"""Functions of (input shape, outputs, settings by keyword) that draw from torch's generator."""


def build_model(
    name: str, input_shape: Sequence[int], outputs: int, *, seed: int = 0, **settings: Any
) -> nn.Module:
    """An architecture with new weights.

    Arguments:
        name: in `MODELS`.
        input_shape: of one input, without the rows.
        outputs: 1 for a binary network, else one a class.
        seed: of the initial weights; torch's own generator is put back afterwards.
        settings: keywords of the architecture's function.

    Raises:
        InputError: no such architecture or setting, with the nearest that there is; or the
            architecture refuses its inputs or settings.
    """
    check_settings(name, settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[name](tuple(input_shape), outputs, **settings)


def default_settings(name: str) -> dict[str, Any]:
    """Settings of an architecture with their defaults.

    Raises:
        InputError: no such architecture; the nearest one is suggested.
    """
    if name not in MODELS:
        raise InputError(f"no model {name!r}; there are {', '.join(MODELS)}" + _near(name, MODELS))
    parameters = inspect.signature(MODELS[name]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def check_settings(name: str, settings: Mapping[str, Any]) -> None:
    """Refuse a setting that an architecture does not have.

    Raises:
        InputError: no such architecture or setting; the nearest one is suggested.
    """
    known = default_settings(name)
    for setting in settings:
        if setting not in known:
            there_are = f"there are {', '.join(known)}" if known else "it has none"
            raise InputError(
                f"{name} has no setting {setting!r}; {there_are}" + _near(setting, known)
            )


def setting_type(name: str, setting: str) -> Any:
    """What the signature of an architecture's function says that a setting takes.

    That of the default where there is no annotation.
    """
    parameter = inspect.signature(MODELS[name]).parameters[setting]
    if parameter.annotation is parameter.empty:
        unsaid = parameter.default is parameter.empty or parameter.default is None
        return Any if unsaid else type(parameter.default)
    return get_type_hints(MODELS[name]).get(setting, Any)


def _near(word: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
