"""The base of every part of a config: frozen, strict, and without conversions between kinds of values."""

import math
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


def _leaves(annotation: Any) -> set[Any]:
    """Return the plain types, and the values of literals, that an annotation is made of.

    >>> from typing import Literal
    >>> _leaves(int | Literal["auto"]) == {int, "auto"}
    True
    """
    inner = getattr(annotation, "__args__", ())
    return set().union(*map(_leaves, inner)) if inner else {annotation}


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


class Section(BaseModel):
    """A frozen part of the config; a key that it does not know is an error, and so is a number that is not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_number_by_conversion(cls, value: object, info: ValidationInfo) -> object:
        """Refuse what pydantic would turn into a number: `true` as 1, and text."""
        kinds = _leaves(cls.model_fields[str(info.field_name)].annotation)
        if not kinds & {int, float}:
            return value
        if isinstance(value, bool) and bool not in kinds:
            raise ValueError("is a truth value; write a number")
        if isinstance(value, str) and not any(kind is str or isinstance(kind, str) for kind in kinds):
            raise ValueError("is text; write a number" + (", without quotes" if _is_number(value) else ""))
        return value
