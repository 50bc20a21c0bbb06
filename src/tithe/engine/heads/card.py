"""What a head's JSON says. No torch here: a plan or a listing reads it without loading weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tithe.data.checksum import sealed, unsealed
from tithe.engine.heads.base import demand_layers
from tithe.errors import ModelError
from tithe.extras import __version__

if TYPE_CHECKING:
    from tithe.engine.heads.base import StateHead

CARD, WEIGHTS = "head.json", "head.safetensors"
FORMAT = 2  # 1 had no checksum of the card itself
MEANING = 1  # raise it when a card's values mean other scores: stored ones are then not met again
KINDS = ("probe", "cnn")
MODEL = ("name", "fingerprint", "dtype")
HINT = "a head is a folder with `head.json` and `head.safetensors`, as `tithe head train` writes it"


@dataclass(frozen=True)
class HeadCard:
    """Whose states a head reads, how its responses were rendered, and how it was trained.

    Args:
        kind: `probe` or `cnn`.
        layers: which hidden states are read, ascending.
        count: hidden states of the model.
        width: of one state.
        model: `name`, `fingerprint` and `dtype` of the model that it reads.
        rendering: settings by which records became token ids.
        training: facts, numbers and the report; they change no score.
        weights: sha256 of the weights' file; empty before it is written.
        format: version of this layout.
        tithe: version that wrote it.
    """

    kind: str
    layers: tuple[int, ...]
    count: int
    width: int
    model: Mapping[str, str]
    rendering: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    weights: str = ""
    format: int = FORMAT
    tithe: str = __version__

    @classmethod
    def of(
        cls, head: StateHead, *, model: Mapping[str, str], rendering: Mapping[str, Any], training: Mapping[str, Any]
    ) -> Self:
        """The card of a head that is not written yet."""
        return cls(head.kind, head.layers, head.count, head.width, dict(model), dict(rendering), dict(training))

    @property
    def fingerprint(self) -> str:
        """16 hex digits of all that changes a score: the weights' bytes, the states read, and the rendering."""
        assert self.weights != "", "not written yet"
        model = {name: self.model[name] for name in ("fingerprint", "dtype")}
        parts = [self.kind, self.layers, self.count, self.width, model, self.rendering, self.weights, MEANING]
        text = json.dumps(parts, sort_keys=True, ensure_ascii=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def to_json(self) -> bytes:
        values = asdict(self) if self.format == 1 else sealed(asdict(self))
        return json.dumps(values, indent=2, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def parse_card(raw: bytes, path: Path) -> HeadCard:
    """A card from the bytes of `path`.

    Raises:
        ModelError: it is no JSON, no head, or of a newer format.
    """
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        raise ModelError(f"`{path}` is not JSON", hint=HINT) from None
    if not isinstance(found, dict) or "kind" not in found or "format" not in found:
        raise ModelError(f"`{path}` is not the card of a head", hint=HINT)
    version = found["format"]
    if is_number(version) and version > FORMAT:
        raise ModelError(f"`{path}` has format {version}, this tithe reads {FORMAT}", hint="a newer tithe reads it")
    if found["kind"] not in KINDS:
        raise ModelError(f"`{path}` is a head of kind `{found['kind']}`", hint=f"there is: {', '.join(KINDS)}")
    try:
        found = unsealed(found, demanded=is_number(version) and version > 1)
    except ValueError as error:
        raise ModelError(f"`{path}` is damaged: {error}", hint="copy it again, or train anew") from None
    wrong = next((name for name, fits in FITS.items() if not fits(found.get(name))), None)
    if wrong is not None:
        raise ModelError(f"`{wrong}` in `{path}` is {shown(found, wrong)}, it must be {WANTED[wrong]}", hint=HINT)
    try:
        demand_layers(found["layers"], found["count"])
    except ModelError as error:
        raise ModelError(f"`{path}`: {error}", hint=error.hint) from None
    return HeadCard(**{name: found[name] for name in FITS} | {"kind": found["kind"], "layers": tuple(found["layers"])})


def is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def is_model(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(name), str) for name in MODEL)


def shown(found: Mapping[str, Any], name: str) -> str:
    """A value in an error's sentence, cut where it is long."""
    text = json.dumps(found[name]) if name in found else "missing"
    return text if len(text) <= 60 else f"{text[:57]}..."


FITS: Mapping[str, Callable[[Any], bool]] = {
    "format": lambda value: is_number(value) and value >= 1,
    "layers": lambda value: isinstance(value, list) and all(is_number(one) for one in value),
    "count": lambda value: is_number(value) and value >= 1,
    "width": lambda value: is_number(value) and value >= 1,
    "model": is_model,
    "rendering": lambda value: isinstance(value, dict),
    "training": lambda value: isinstance(value, dict),
    "weights": is_digest,
    "tithe": lambda value: isinstance(value, str),
}
WANTED = {
    "format": "a number from 1",
    "layers": "a list of numbers",
    "count": "a number from 1",
    "width": "a number from 1",
    "model": f"an object with the texts {', '.join(MODEL)}",
    "rendering": "an object",
    "training": "an object",
    "weights": "64 hex digits",
    "tithe": "a text",
}
