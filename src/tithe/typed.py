"""Base of settings whose values are what they say: `true` is no number, `5.5` no count, an empty name no name."""

from __future__ import annotations

import numbers
import types
from collections.abc import Mapping
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, model_validator
from pydantic.fields import FieldInfo

from tithe.errors import SettingsError, did_you_mean
from tithe.foreign import shown
from tithe.specs import SEEDS

WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
LARGEST = 2**63 - 1  # a whole number beyond is no setting, and none that NumPy or a file can hold
PLAIN = {
    "int_type": "it must be a whole number",
    "int_from_float": "it must be a whole number",
    "float_type": "it must be a number",
    "bool_type": "it must be `true` or `false`",
    "string_type": "it must be text",
    "tuple_type": "it must be a list",
    "dict_type": "it must be `key: value` lines",
    "finite_number": "it must be a finite number",
}


class Typed(BaseModel):
    """Frozen settings by name; types are strict, and no unknown name is taken."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def read_values(cls, values: Any) -> Any:
        """Take YAML's lists and words for what the setting is, and refuse what no setting can be."""
        if not isinstance(values, Mapping):
            return values
        fields = cls.model_fields
        return {name: read_value(name, one, fields[name]) if name in fields else one for name, one in values.items()}


def read_value(name: str, value: Any, field: FieldInfo) -> Any:
    """Return the value as its setting's type has it.

    Raises:
        SettingsError: an empty text where a name is needed, a NUL character, or a number that nothing can hold.
    """
    kinds = kinds_of(field.annotation)
    if isinstance(value, str) and bool in kinds and str not in kinds:
        return WORDS.get(value.strip().lower(), value)
    value = tuple(value) if isinstance(value, list) else value
    if isinstance(value, tuple) and not value and isinstance(field.default, tuple) and field.default:
        raise SettingsError(f"`{name}` is an empty list", hint="leave it out, or give an entry")
    for one in value if isinstance(value, tuple) else (value,):
        if isinstance(one, str) and not one.strip() and field.default != "":
            raise SettingsError(f"`{name}` is empty", hint="an unset variable? leave it out, or give a value")
        if isinstance(one, str) and "\0" in one:
            raise SettingsError(f"`{name}` cannot be `{shown(repr(one))}`: it holds a NUL character")
        if isinstance(one, int) and abs(one) > LARGEST:
            raise SettingsError(f"`{name}` cannot be a number of {one.bit_length()} bits: it is too large")
    return plain_number(value)


def plain_number(value: Any) -> Any:
    """Return NumPy's numbers as Python's."""
    if isinstance(value, bool | int | float) or not isinstance(value, numbers.Real):
        return value
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def kinds_of(annotation: Any) -> tuple[Any, ...]:
    """The types of a union, or the one there is."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def wrong_value(error: ValidationError, model: type[BaseModel], where: str = "") -> SettingsError:
    """Make one sentence of what pydantic says.

    Args:
        error: of the values.
        model: whose values.
        where: what holds them, such as "the recipe".
    """
    first = error.errors()[0]
    parts = [part for i, part in enumerate(first["loc"]) if i == 0 or isinstance(part, int)]
    name = ".".join(map(str, parts)) or "settings"
    given, of = first.get("input"), f" of {where}" if where else ""
    if first["type"] == "missing":
        return SettingsError(f"`{name}`{of} is missing")
    if first["type"] == "literal_error" and isinstance(given, str):
        field = model.model_fields.get(str(parts[0])) if parts else None
        kinds = kinds_of(field.annotation) if field else ()
        known = [one for kind in kinds for one in get_args(kind) if isinstance(one, str)]
        return SettingsError(f"`{name}`{of} cannot be `{shown(given)}`", hint=did_you_mean(given, known))
    said = PLAIN.get(first["type"], first["msg"].removeprefix("Value error, "))
    if len(first["loc"]) == 2 and not isinstance(first["loc"][1], int):  # of one type of several
        of_type = [PLAIN.get(one["type"], "") for one in error.errors() if one["loc"][:1] == first["loc"][:1]]
        said = " or ".join(dict.fromkeys([said, *(one.removeprefix("it must be ") for one in of_type if one != said)]))
    return SettingsError(f"`{name}`{of} cannot be `{shown(given)}`: {said}")


def at_least_one(value: int) -> int:
    if value < 1:
        raise ValueError("it must be at least 1")
    return value


def usable_seed(value: int) -> int:
    if not 0 <= value < SEEDS:
        raise ValueError(f"it must be at least 0 and below {SEEDS}")
    return value


Count = Annotated[int, AfterValidator(at_least_one)]
Seed = Annotated[int, AfterValidator(usable_seed)]
