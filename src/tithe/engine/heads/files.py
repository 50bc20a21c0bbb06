"""A head on disk: a folder with `head.json`, its card, and `head.safetensors`, its weights.

The card is written last and names the weights' sha256, so a folder with a card is a whole head. Reading a card
does not load torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tithe.data.checksum import seal, unseal
from tithe.data.outfile import atomic, check_writable
from tithe.engine.heads.base import demand_layers
from tithe.engine.model_files import PICKLED
from tithe.errors import ModelError
from tithe.extras import __version__
from tithe.foreign import demand_regular, foreign

if TYPE_CHECKING:
    import torch

    from tithe.engine.heads.base import StateHead
    from tithe.engine.heads.cnn import CnnHead

CARD, WEIGHTS = "head.json", "head.safetensors"
FORMAT = 2  # format 1 had no checksum of the card itself
MEANING = 1  # raise it when the same card gives other scores, so that stored scores are not reused
KINDS = ("probe", "cnn")
MODEL = ("name", "fingerprint", "dtype")
HINT = "a head is a folder with `head.json` and `head.safetensors`, as `tithe head train` writes it"


@dataclass(frozen=True)
class HeadCard:
    """A description of a head: the model it reads, how its responses were rendered, and how it was trained.

    Args:
        kind: `probe` or `cnn`.
        layers: numbers of the hidden states it reads, ascending.
        count: number of the model's hidden states.
        width: of one state.
        model: `name`, `fingerprint` and `dtype` of the model it reads.
        rendering: settings that turned records into token ids.
        training: facts, numbers and the report; they do not affect scores.
        weights: sha256 of the weights' file; empty before it is written.
        format: version of this format.
        tithe: version of tithe that wrote it.
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
        """Make the card of a head that is not written yet."""
        return cls(head.kind, head.layers, head.count, head.width, dict(model), dict(rendering), dict(training))

    @property
    def fingerprint(self) -> str:
        """Return 16 hex digits for all that affects scores: the weights' bytes, the states read, and the rendering."""
        assert self.weights != "", "not written yet"
        model = {name: self.model[name] for name in ("fingerprint", "dtype")}  # its name may change
        parts = [self.kind, self.layers, self.count, self.width, model, self.rendering, self.weights, MEANING]
        text = json.dumps(parts, sort_keys=True, ensure_ascii=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def to_json(self) -> bytes:
        """Return the card's file content, with a checksum from format 2 on."""
        values = asdict(self) if self.format == 1 else seal(asdict(self))
        return json.dumps(values, indent=2, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def parse_card(raw: bytes, path: Path) -> HeadCard:
    """Parse a card from the bytes of `path`.

    Raises:
        ModelError: it is not JSON, not the card of a head, damaged, or of a newer format.
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
        found = unseal(found, demanded=is_number(version) and version > 1)
    except ValueError as error:
        raise ModelError(f"`{path}` is damaged: {error}", hint="copy it again, or train anew") from None
    # After the checksum: what is wrong now was written so, and is not a damaged file.
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
    """Return a value for an error message, shortened if it is long."""
    text = json.dumps(found[name]) if name in found else "missing"
    return text if len(text) <= 60 else f"{text[:57]}..."


# For each field of a card, the check of its value and what the message says it must be.
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

ANCHOR = "fc.0.weight"  # a weight of every convolutional head: what stands before this name is a prefix


def save_head(folder: Path, head: StateHead, card: HeadCard, *, overwrite: bool = False) -> HeadCard:
    """Write a head, whole or not at all.

    Args:
        folder: created if it is missing.
        head: the head whose weights to write.
        card: see `HeadCard.of`.
        overwrite: whether to replace an existing head.

    Returns:
        The card as written, with the weights' sha256, so that it has a fingerprint.

    Raises:
        OutputError: there is a head already, or the folder cannot be written.
    """
    from safetensors.torch import save

    assert (card.kind, card.layers, card.count, card.width) == (head.kind, head.layers, head.count, head.width)
    for name in (CARD, WEIGHTS):
        check_writable(folder / name, overwrite)
    raw = save(head.weights())  # serialised in memory first, as the card needs the checksum
    written = replace(card, weights=hashlib.sha256(raw).hexdigest())
    text = written.to_json()
    with suppress(FileNotFoundError):
        (folder / CARD).unlink()  # without a card the folder is no head, should writing be interrupted
    with atomic(folder / WEIGHTS, overwrite) as stream:
        stream.write(raw)
    with atomic(folder / CARD, overwrite) as stream:
        stream.write(text)
    return written


def read_card(folder: Path) -> HeadCard:
    """Read a head's card and check the weights' bytes against it. Loads no torch.

    Raises:
        ModelError: there is no head, it is damaged, or it is of a newer format.
    """
    if not folder.is_dir():
        raise ModelError(
            f"there is no folder `{folder}`" if not folder.exists() else f"`{folder}` is a file", hint=HINT
        )
    missing = [name for name in (CARD, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise ModelError(f"the folder `{folder}` has no `{missing[0]}`", hint=HINT)
    try:
        card = parse_card((folder / CARD).read_bytes(), folder / CARD)
        with (folder / WEIGHTS).open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"the head `{folder}` cannot be read: {error.strerror or error}") from None
    if digest != card.weights:
        raise ModelError(
            f"`{folder / WEIGHTS}` is not the file that `{CARD}` was written with",
            hint="copy both again, or train anew",
        )
    return card


def load_head(folder: Path) -> StateHead:
    """Load a head, on the CPU.

    Raises:
        ModelError: see `read_card`; or the weights do not fit the card.
    """
    from tithe.engine.heads.cnn import CnnHead
    from tithe.engine.heads.probe import ProbeHead

    card = read_card(folder)
    kinds: dict[str, type[StateHead]] = {"probe": ProbeHead, "cnn": CnnHead}
    return kinds[card.kind].of(read_tensors(folder / WEIGHTS), card.layers, card.count, card.width)


def import_cnn(weights: Path, *, count: int, width: int, layers: Sequence[int] | None = None) -> CnnHead:
    """Make a head from a network that was trained with the paper's own scripts.

    Args:
        weights: a .safetensors file; its names may share a prefix, as in `module.convs.0.weight`.
        count: number of the model's hidden states, `num_hidden_layers + 1`.
        width: of one state.
        layers: numbers of the hidden states it reads; None for all.

    Raises:
        ModelError: the file is missing or pickled, or holds the weights of another network.
    """
    from tithe.engine.heads.cnn import CnnHead

    if weights.suffix in PICKLED:
        raise ModelError(
            f"`{weights}` is a pickled file, and those are not read: loading one can run what it holds",
            hint="convert it: `safetensors.torch.save_file(torch.load(path, weights_only=True), new)`",
        )
    if not weights.is_file():
        raise ModelError(f"there is no file `{weights}`", hint="name the .safetensors file with the network's weights")
    found = without_prefix(read_tensors(weights))
    return CnnHead.of(found, tuple(range(count)) if layers is None else layers, count, width)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read all tensors of a .safetensors file."""
    from safetensors.torch import load_file

    with foreign(ModelError, f"`{path}` is no safetensors file", HINT):
        demand_regular(path, ModelError, HINT)
        return load_file(path)


def without_prefix(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Remove the prefix that all weight names share, if they do."""
    prefix = next((name.removesuffix(ANCHOR) for name in state if name.endswith(f".{ANCHOR}")), "")
    if not all(name.startswith(prefix) for name in state):
        return dict(state)
    return {name.removeprefix(prefix): one for name, one in state.items()}
