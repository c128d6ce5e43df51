"""The network of a study: a name in `MODELS`, and the settings of that architecture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from planimeter.models.registry import check_settings, default_settings, setting_type
from planimeter.study.section import Number, Switch, Whole, in_the_words_of_yaml

_Share = Annotated[Number, Field(ge=0, lt=1)]
SETTINGS: dict[str, Any] = {
    "hidden": tuple[Annotated[Whole, Field(ge=1)], ...],
    "sigma_w": Annotated[Number, Field(gt=0)],
    "sigma_b": Annotated[Number, Field(ge=0)],
    "biases": Switch,
    "dropout": _Share,
    "input_dropout": _Share,
    "small_images": Switch,
    "depth": Annotated[Whole, Field(ge=1)],
    "width": Annotated[Whole, Field(ge=1)],
}
"""Type and range of settings of architectures; of others the signature says what they take."""


class ModelSpec(BaseModel):
    """An architecture by name, with all of its settings as further fields, given or default."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str = "fully_connected"

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or not isinstance(given.get("name", ""), str):
            return given  # which pydantic explains
        settings = {key: value for key, value in given.items() if key != "name"}
        name = given.get("name", cls.model_fields["name"].default)
        check_settings(name, settings)
        whole = default_settings(name) | settings
        return {"name": name} | {key: _checked(name, key, value) for key, value in whole.items()}


def _checked(name: str, setting: str, value: Any) -> Any:
    taken = SETTINGS[setting] if setting in SETTINGS else setting_type(name, setting)
    try:
        return TypeAdapter(taken).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join([setting, *map(str, first["loc"])])
        raise ValueError(
            f"{place}: {in_the_words_of_yaml(first)}, got {first['input']!r}"
        ) from error
