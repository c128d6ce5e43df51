"""Whether measures have the settings that they are given, asked before any work is done."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

from planimeter.errors import InputError, suggestion
from planimeter.flatness.measure_type import Measure
from planimeter.landscape import LossLandscape

_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "bool": ((bool,), "true or false"),
    "int": ((Integral,), "a whole number"),
    "float": ((Real,), "a number"),
    "str": ((str,), "a word"),
    "None": ((type(None),), "None"),
    "Initial": ((LossLandscape, Mapping), "a landscape, or parameters by name"),
}
"""What a setting of an annotated type takes, and how that is called."""


def check_names(names: Iterable[str], known: Mapping[str, Measure]) -> None:
    """Refuse the first name that is no measure, with the nearest that are.

    Raises:
        InputError: there is one.
    """
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
            raise InputError(f"no measure {name!r}; {hint}")


def check_settings(settings: Mapping[str, Any], known: Mapping[str, Measure]) -> None:
    """Refuse the first setting that its measure does not have, or whose value is of another kind.

    Arguments:
        settings: of each measure, by name.
        known: the registry.

    Raises:
        InputError: a measure or setting is unknown, with the nearest that there is; or a value is
            no number, or no word, where one is needed.
    """
    if not isinstance(settings, Mapping):
        raise InputError(
            f"settings are those of each measure by its name, such as "
            f"{{'trace': {{'probes': 50}}}}, got {settings!r}"
        )
    check_names(settings, known)
    for name, own in settings.items():
        if not isinstance(own, Mapping):
            raise InputError(
                f"the settings of {name} are values by name, such as {_example(known[name])}, "
                f"got {own!r}"
            )
        kinds = _kinds(known[name])
        for setting, value in own.items():
            if setting not in kinds:
                there_are = f"there are {', '.join(kinds)}" if kinds else "it has none"
                near = suggestion(str(setting), kinds)
                raise InputError(f"no setting of {name} {setting!r}; {there_are}{near}")
            _check_value(f"{name}.{setting}", kinds[setting], value)


def _check_value(where: str, kinds: list[str], value: Any) -> None:
    allowed = [_KINDS[kind] for kind in kinds if kind in _KINDS]
    if len(allowed) < len(kinds):
        return  # a kind that is not known here is the measure's to check
    types = tuple(one for types, _ in allowed for one in types)
    if isinstance(value, bool) and "bool" not in kinds:
        types = ()  # which is an int to Python
    if not isinstance(value, types):
        words = " or ".join(word for kind, (_, word) in zip(kinds, allowed, strict=True)
                            if kind != "None")  # fmt: skip
        raise InputError(f"{where} must be {words}, got {value!r}")
    if isinstance(value, Real) and math.isnan(value):
        raise InputError(f"{where} must be a number, got {value!r}")


def _kinds(measure: Measure) -> dict[str, list[str]]:
    """The settings of a measure, each with the kinds of value that it takes, by its signature.

    `seed` goes to every measure: what draws no random numbers makes nothing of it.
    """
    parameters = inspect.signature(measure.function).parameters
    known = {name: str(parameters[name].annotation).split(" | ") for name in measure.settings}
    return known | {"seed": ["int"]}


def _example(measure: Measure) -> str:
    name, value = next(iter(measure.settings.items()), ("seed", 0))
    return f"{{{name!r}: {value!r}}}"
