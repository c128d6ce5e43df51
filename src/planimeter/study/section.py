"""What the sections of a study have in common."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)
from pydantic_core import ErrorDetails

# pydantic would take true for 1, "yes" for true and "0.1" for a number, and any of them was a slip.
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Whole = Annotated[int, Field(strict=True)]
Switch = Annotated[bool, Field(strict=True)]


_TYPES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "a word (in quotes where it looks like a number)",
    "tuple_type": "a list, such as [a, b]",
    "list_type": "a list, such as [a, b]",
    "dict_type": "keys with values, such as {key: value}",
    "model_type": "keys with values, such as {key: value}",
    "model_attributes_type": "keys with values, such as {key: value}",
}


def in_the_words_of_yaml(complaint: ErrorDetails) -> str:
    """What pydantic says of a value, without the names that Python has for types."""
    kind = complaint["type"]
    if kind in _TYPES:
        return f"must be {_TYPES[kind]}"
    if kind == "too_short":
        return f"must have {complaint['ctx']['min_length']} entries or more"
    message = complaint["msg"].removeprefix("Value error, ")
    return message.replace("Input should be", "must be")


class Section(BaseModel):
    """A part of a study file: no unknown keys, immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    added: ClassVar[frozenset[str]] = frozenset()
    """Settings that studies once did not have, and that are left out where they are not used.

    A trial's key is a hash of its settings: those of old studies stay as they were.
    """

    @model_serializer(mode="wrap")
    def _without_unused(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        return {
            name: value
            for name, value in serialise(self).items()
            if name not in self.added or getattr(self, name) != fields[name].default
        }
