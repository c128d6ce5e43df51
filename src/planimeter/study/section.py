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

# pydantic would take true for 1, "yes" for true and "0.1" for a number, and any of them was a slip.
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Whole = Annotated[int, Field(strict=True)]
Switch = Annotated[bool, Field(strict=True)]


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
