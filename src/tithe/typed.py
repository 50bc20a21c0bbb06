"""Strict types of settings: `true` is not a number, `5.5` is not a count, and an empty text is not a name."""

from __future__ import annotations

import inspect
import numbers
import re
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator
from pydantic.fields import FieldInfo

from tithe.errors import SettingsError, did_you_mean
from tithe.foreign import shown
from tithe.specs import SEEDS

WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}  # long name -> the one in files and keys
LARGEST = 2**63 - 1  # largest whole number that NumPy and files can hold
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


@dataclass(frozen=True)
class Flag:
    """The form of a setting on the command line, besides its own name.

    Args:
        other: more names, such as `-m`.
        metavar: placeholder for the value on the help page.
        kind: type of the value; None takes the setting's.
        negative: add `--no-NAME`, which switches it off; settings whose default is on or None have it anyway.
        emptied: help of `--no-NAME` for a list, which it empties.
        positional: the value has no name.
    """

    other: tuple[str, ...] = ()
    metavar: str | None = None
    kind: type | None = None
    negative: bool = False
    emptied: str | None = None
    positional: bool = False


class Typed(BaseModel):
    """Frozen settings with strict types; unknown names are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def read_values(cls, values: Any) -> Any:
        """Convert YAML's lists and words to the types of the settings, and refuse impossible values."""
        if not isinstance(values, Mapping):
            return values
        fields = cls.model_fields
        return {name: read_value(name, one, fields[name]) if name in fields else one for name, one in values.items()}


def read_value(name: str, value: Any, field: FieldInfo) -> Any:
    """Convert a value to its setting's type.

    Raises:
        SettingsError: an empty text where a name is needed, a NUL character, or a number that is too large.
    """
    kinds = kinds_of(field.annotation)
    if isinstance(value, str) and bool in kinds and str not in kinds:  # YAML 1.2 reads `yes` and `on` as text
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
    """Convert a NumPy number to a Python number."""
    if isinstance(value, bool | int | float) or not isinstance(value, numbers.Real):
        return value
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def kinds_of(annotation: Any) -> tuple[Any, ...]:
    """Return the types of a union, or the single type, without their validators."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return tuple(get_args(kind)[0] if get_origin(kind) is Annotated else kind for kind in kinds)


def meanings(model: type) -> dict[str, str]:
    """Return each setting's line under `Args` in the docstrings of a settings class and its bases."""
    found: dict[str, str] = {}
    for one in reversed(model.__mro__):  # base classes first, so that a subclass can say it anew
        name = ""
        for line in inspect.cleandoc(one.__doc__ or "").partition("Args:\n")[2].splitlines():
            if match := re.fullmatch(r" {4}(\w+): (.*)", line):
                name, found[match[1]] = match[1], match[2]
            elif line.strip() and name:
                found[name] += " " + line.strip()
    return found


def wrong_value(error: ValidationError, model: type[BaseModel], where: str = "") -> SettingsError:
    """Turn a validation error into one sentence.

    Args:
        error: pydantic's error.
        model: class of the settings.
        where: name of what holds them, such as "the recipe".
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
    if len(first["loc"]) == 2 and not isinstance(first["loc"][1], int):  # a union: name all its types
        of_type = [PLAIN.get(one["type"], "") for one in error.errors() if one["loc"][:1] == first["loc"][:1]]
        said = " or ".join(dict.fromkeys([said, *(one.removeprefix("it must be ") for one in of_type if one != said)]))
    return SettingsError(f"`{name}`{of} cannot be `{shown(given)}`: {said}")


def checked(fits: Callable[[Any], bool], said: str) -> AfterValidator:
    """Make a validator that refuses a value with the message `said` unless `fits` accepts it."""

    def check(value: Any) -> Any:
        if not fits(value):
            raise ValueError(said)
        return value

    return AfterValidator(check)


def one_or_several(value: Any) -> Any:
    """Turn one text into a list of one."""
    return (value,) if isinstance(value, str) else value


def split_by(split: Callable[[str], Iterable[str]]) -> BeforeValidator:
    """Make a validator that splits each text of a list into its entries."""

    def read(value: Any) -> Any:
        texts = one_or_several(value)
        if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
            return value
        return tuple(part for text in texts for part in split(text))

    return BeforeValidator(read)


def between_commas(text: str) -> list[str]:
    """Return the entries of `a, b`."""
    return [part.strip() for part in text.split(",") if part.strip()]


def read_labels(value: Any) -> Any:
    """Return the labels in `good,fair`, in a list, or in YAML's `true` and `1`; return anything else unchanged."""
    many = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(one, str | int) for one in many):
        return value
    texts = [str(one).lower() if isinstance(one, bool) else str(one) for one in many]
    return tuple(label for text in texts for label in between_commas(text))


def short_dtype(value: Any) -> Any:
    """Return the short name of a dtype: `bf16` for `bfloat16`."""
    return DTYPES.get(value, value) if isinstance(value, str) else value


Count = Annotated[int, checked(lambda n: n >= 1, "it must be at least 1")]
Seed = Annotated[int, checked(lambda n: 0 <= n < SEEDS, f"it must be at least 0 and below {SEEDS}")]
WholeNumber = Annotated[int, checked(lambda n: n >= 0, "it must be 0 or more")]
NotNegative = Annotated[float, checked(lambda x: x >= 0, "it must be 0 or more")]
Positive = Annotated[float, checked(lambda x: x > 0, "it must be above 0")]
Share = Annotated[float, checked(lambda x: 0 <= x < 1, "it must be at least 0 and below 1")]
Texts = Annotated[tuple[str, ...], BeforeValidator(one_or_several)]
Names = Annotated[tuple[str, ...], split_by(between_commas)]
Labels = Annotated[tuple[str, ...], BeforeValidator(read_labels)]
Dtype = Annotated[Literal["auto", "fp32", "bf16", "fp16"], BeforeValidator(short_dtype)]
WeightDtype = Annotated[Literal["auto", "fp32", "bf16", "fp16", "fp8"], BeforeValidator(short_dtype)]
