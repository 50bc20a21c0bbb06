"""A head on disk: a folder with `head.json`, its card, and `head.safetensors`, its weights.

The card is written last and names the weights' sha256, so a folder with a card is a whole head. Reading a card loads
no torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tithe.data.outfile import atomic, check_writable
from tithe.engine.heads.card import CARD, HINT, WEIGHTS, HeadCard, parse_card
from tithe.errors import ModelError
from tithe.foreign import demand_regular, foreign

if TYPE_CHECKING:
    import torch

    from tithe.engine.heads.base import StateHead
    from tithe.engine.heads.cnn import CnnHead

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
ANCHOR = "fc.0.weight"  # of the convolutional head's names the one by which a prefix is found


def save_head(folder: Path, head: StateHead, card: HeadCard, *, overwrite: bool = False) -> HeadCard:
    """Write a head, whole or not at all.

    Args:
        folder: made where it is missing.
        head: its weights.
        card: see `HeadCard.of`.
        overwrite: replace a head that is there.

    Returns:
        The card as it was written, with the weights' sha256 and so with a fingerprint.

    Raises:
        OutputError: a head is there, or the folder cannot be written.
    """
    from safetensors.torch import save

    assert (card.kind, card.layers, card.count, card.width) == (head.kind, head.layers, head.count, head.width)
    for name in (CARD, WEIGHTS):
        check_writable(folder / name, overwrite)
    raw = save(head.weights())
    written = replace(card, weights=hashlib.sha256(raw).hexdigest())
    text = written.to_json()
    with suppress(FileNotFoundError):
        (folder / CARD).unlink()  # until all is written, this is no head
    with atomic(folder / WEIGHTS, overwrite) as stream:
        stream.write(raw)
    with atomic(folder / CARD, overwrite) as stream:
        stream.write(text)
    return written


def read_card(folder: Path) -> HeadCard:
    """What a head says of itself, its weights' bytes compared with what the card says of them. Loads no torch.

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
    """The head itself, on the CPU.

    Raises:
        ModelError: see `read_card`; or the weights are not those of such a head.
    """
    from tithe.engine.heads.cnn import CnnHead
    from tithe.engine.heads.probe import ProbeHead

    card = read_card(folder)
    kinds: dict[str, type[StateHead]] = {"probe": ProbeHead, "cnn": CnnHead}
    return kinds[card.kind].of(read_tensors(folder / WEIGHTS), card.layers, card.count, card.width)


def import_cnn(weights: Path, *, count: int, width: int, layers: Sequence[int] | None = None) -> CnnHead:
    """A head from a network trained with the paper's own scripts.

    Args:
        weights: a .safetensors file; its names may share a prefix, as in `module.convs.0.weight`.
        count: hidden states of the model, `num_hidden_layers + 1`.
        width: of one state.
        layers: which it reads; None means all.

    Raises:
        ModelError: no such file, a pickled one, or weights of another network.
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
    from safetensors.torch import load_file

    with foreign(ModelError, f"`{path}` is no safetensors file", HINT):
        demand_regular(path, ModelError, HINT)
        return load_file(path)


def without_prefix(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same weights without what all names begin with."""
    prefix = next((name.removesuffix(ANCHOR) for name in state if name.endswith(f".{ANCHOR}")), "")
    if not all(name.startswith(prefix) for name in state):
        return dict(state)
    return {name.removeprefix(prefix): one for name, one in state.items()}
