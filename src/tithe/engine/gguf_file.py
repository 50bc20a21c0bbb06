"""Read and check the header of a GGUF file: what it says about the model, and where its tensors are. Imports no torch.

The header is read here, and not by the `gguf` package, for two reasons. That package follows every number in the file,
so a damaged one lets it loop or allocate without end; here nothing is read beyond the file's end and nothing is longer
than a real model needs. And it takes half a minute for a vocabulary of 262,144 tokens, where this takes a second.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

from tithe.errors import MissingExtraError, ModelError
from tithe.extras import install_hint
from tithe.foreign import demand_regular, describe_error, foreign

SUFFIX = ".gguf"
MAGIC, VERSIONS = b"GGUF", (2, 3)
ALIGNMENT = 32  # bytes, where the file names no other
STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
MOST_ENTRIES, MOST_TENSORS = 10_000, 1_000_000
MOST_ITEMS = 8_000_000  # of a list; the largest vocabularies have 262,144 tokens and twice as many merges
MOST_TEXT = 16_000_000  # bytes; a chat template has thousands
MOST_AXES = 4  # ggml's own limit
MOST_BLOCKS = 10_000  # real models have hundreds
LONG = 1_000  # lists above it (the vocabulary) are counted and not kept
AGAIN = "download or copy the file again"
TOKENS, TOKEN_TABLE = "tokenizer.ggml.tokens", "token_embd.weight"
BLOCK = re.compile(r"blk\.(\d+)\.")
SHARD = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")
# Tensors that transformers leaves out: the file's own scaling of the rotary embedding.
ROTARY = re.compile(r"(^|\.)rope_(freqs|factors_long|factors_short)\.weight$")


@dataclass(frozen=True)
class Entry:
    """One value of a header.

    Args:
        kind: GGUF's number for its type; for a list, that of its items.
        is_list: whether it is a list.
        values: all values, or none for a list of more than `LONG` items.
        count: number of values.
    """

    kind: int
    is_list: bool
    values: tuple[Any, ...]
    count: int


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of a file.

    Args:
        shape: as torch has it: the axis that lies together in memory is the last.
        kind: ggml's number for its type.
        start: place of its first byte in the file.
        size: in bytes.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    start: int
    size: int


@dataclass(frozen=True)
class GgufHeader:
    """All that a file says before its weights."""

    path: Path
    entries: Mapping[str, Entry]
    tensors: tuple[GgufTensor, ...]

    def value(self, name: str) -> Any:
        """Return a single value, None if the file has none of that name."""
        entry = self.entries.get(name)
        return entry.values[0] if entry is not None and not entry.is_list else None

    @property
    def architecture(self) -> str:
        return str(self.value("general.architecture"))

    @property
    def vocabulary(self) -> int:
        """Number of tokens in its tokenizer."""
        return self.entries[TOKENS].count if TOKENS in self.entries else 0

    @property
    def types(self) -> tuple[str, ...]:
        """Names of the types in which its matrices are stored, the most common first."""
        from gguf.constants import GGMLQuantizationType

        counts: dict[int, int] = {}
        for tensor in self.tensors:
            if len(tensor.shape) > 1:
                counts[tensor.kind] = counts.get(tensor.kind, 0) + tensor.size
        return tuple(GGMLQuantizationType(kind).name for kind in sorted(counts, key=lambda kind: -counts[kind]))

    @property
    def unread(self) -> tuple[str, ...]:
        """Tensors that change the model's numbers and that transformers does not read."""
        return tuple(tensor.name for tensor in self.tensors if ROTARY.search(tensor.name))


class Cursor:
    """A place in a mapped file that never leaves it.

    Args:
        data: the file.
        place: the next byte to read.
    """

    def __init__(self, data: mmap.mmap, place: int) -> None:
        self.data, self.place = data, place

    def take(self, size: int) -> int:
        """Step over `size` bytes, and return where they begin."""
        begin = self.place
        if size > len(self.data) - begin:
            raise ValueError(f"its header goes on after its end at {len(self.data):,} bytes: it was cut off")
        self.place = begin + size
        return begin

    def number(self, code: str) -> Any:
        return struct.unpack_from("<" + code, self.data, self.take(struct.calcsize("<" + code)))[0]

    def limited(self, what: str, most: int) -> int:
        """Return a count, which real files keep below `most`."""
        count = int(self.number("Q"))
        if count > most:
            raise ValueError(f"it claims {count:,} {what}, and no model has so many")
        return count

    def text(self) -> str:
        size = self.limited("bytes in one text", MOST_TEXT)
        begin = self.take(size)
        return self.data[begin : begin + size].decode("utf-8")

    def step_over_texts(self, count: int) -> None:
        """Step over texts without decoding them."""
        data, place, size, end = self.data, self.place, struct.Struct("<Q").unpack_from, len(self.data)
        for _ in range(count):
            if place + 8 > end:
                break
            place += 8 + size(data, place)[0]
        else:
            self.take(place - self.place)
            return
        self.take(end + 1 - self.place)  # raises: the file ends before its texts do

    def entry(self) -> Entry:
        kind = int(self.number("I"))
        if kind != ARRAY:
            return Entry(kind, False, (self.scalar(kind),), 1)
        inner, count = int(self.number("I")), self.limited("items in one list", MOST_ITEMS)
        if count > LONG and inner == STRING:
            self.step_over_texts(count)
            return Entry(inner, True, (), count)
        if count > LONG:
            self.take(count * struct.calcsize("<" + code_of(inner)))
            return Entry(inner, True, (), count)
        return Entry(inner, True, tuple(self.scalar(inner) for _ in range(count)), count)

    def scalar(self, kind: int) -> Any:
        return self.text() if kind == STRING else self.number(code_of(kind))


def code_of(kind: int) -> str:
    """Return `struct`'s code for a type of numbers; a list in a list has none."""
    if kind not in SCALARS:
        raise ValueError(f"it holds a value of the unknown type {kind}")
    return SCALARS[kind]


def demand_gguf_package(name: str) -> None:
    """Raise if a package that reading a GGUF file needs is not installed.

    Raises:
        MissingExtraError: it is not.
    """
    for package in ("gguf", "accelerate"):  # transformers asks for accelerate when it reads such a file
        if find_spec(package) is None:
            raise MissingExtraError(
                f"`{name}` is a GGUF file, and reading it needs the package `{package}`", hint=install_hint("gguf")
            )


def read_header(path: Path, name: str) -> GgufHeader:
    """Read the header of a GGUF file and check it against the file's size.

    Args:
        path: the file.
        name: of the model, for messages.

    Raises:
        ModelError: it is not a GGUF file, is damaged or cut off, or holds no language model.
        MissingExtraError: the package `gguf` is not installed.
    """
    demand_gguf_package(name)
    demand_regular(path, ModelError, "give a file")
    with foreign(ModelError, f"cannot read `{name}`", AGAIN):
        state = path.stat()
    header = cached_header(path, name, (state.st_size, state.st_mtime_ns, state.st_ino))
    demand_language_model(header, name)
    return header


@lru_cache(maxsize=8)
def cached_header(path: Path, name: str, state: tuple[int, ...]) -> GgufHeader:
    """Read a header once as long as the file stays what it is."""
    hint = f"{AGAIN}, or give the model as a folder with `config.json` and `.safetensors` files"
    with (
        foreign(ModelError, f"`{name}` is not a GGUF file that can be read", hint, told=describe_error),
        path.open("rb") as stream,
    ):
        if stream.read(4) != MAGIC:
            raise ValueError("it does not begin with `GGUF`")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return parse(path, data)


def parse(path: Path, data: mmap.mmap) -> GgufHeader:
    """Read a header: version, values, tensors."""
    cursor = Cursor(data, len(MAGIC))
    version = int(cursor.number("I"))
    if version not in VERSIONS:
        swapped = version & 0xFFFF == 0
        raise ValueError("its numbers are big-endian" if swapped else f"it has version {version}, and 2 and 3 are read")
    tensors, count = cursor.limited("tensors", MOST_TENSORS), cursor.limited("values", MOST_ENTRIES)
    entries: dict[str, Entry] = {}
    for _ in range(count):
        name = cursor.text()
        if name in entries:
            raise ValueError(f"it has the value `{name}` twice")
        entries[name] = cursor.entry()
    found = list(read_tensors(cursor, tensors))
    alignment = entries["general.alignment"].values[0] if "general.alignment" in entries else ALIGNMENT
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"`general.alignment` is {alignment}, and not a power of two")
    base = -(-cursor.place // alignment) * alignment
    placed = tuple(GgufTensor(one.name, one.shape, one.kind, base + one.start, one.size) for one in found)
    demand_whole(placed, len(data))
    return GgufHeader(path, entries, placed)


def read_tensors(cursor: Cursor, count: int) -> Iterator[GgufTensor]:
    """Yield the tensors; their places count from the end of the header."""
    from gguf.constants import GGML_QUANT_SIZES

    sizes = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}
    names: set[str] = set()
    for _ in range(count):
        name, axes = cursor.text(), int(cursor.number("I"))
        if name in names:
            raise ValueError(f"it has the tensor `{name}` twice")
        names.add(name)
        if axes > MOST_AXES:
            raise ValueError(f"the tensor `{name}` has {axes:,} axes, and at most {MOST_AXES} are possible")
        shape = tuple(int(cursor.number("Q")) for _ in range(axes))[::-1]
        kind, start = int(cursor.number("I")), int(cursor.number("Q"))
        if kind not in sizes:
            raise ValueError(f"the tensor `{name}` is of the type {kind}, which the installed `gguf` does not know")
        block, bytes_each = sizes[kind]
        if shape and shape[-1] % block:
            raise ValueError(f"the rows of the tensor `{name}` are no multiple of {block} long")
        yield GgufTensor(name, shape, kind, start, prod(shape) // block * bytes_each)


def demand_whole(tensors: tuple[GgufTensor, ...], size: int) -> None:
    """Raise if the file ends before its tensors, or if tensors share bytes."""
    end = max((one.start + one.size for one in tensors), default=0)
    if end > size:
        raise ValueError(f"it has {size:,} bytes of at least {end:,}: it was cut off")
    if sum(one.size for one in tensors) > size:  # a small file must not grow into a large model
        raise ValueError("its tensors overlap")


def demand_language_model(header: GgufHeader, name: str) -> None:
    """Raise if a file holds something else than a whole decoder with its tokenizer.

    Raises:
        ModelError: says what it holds.
    """
    architecture, kind = header.value("general.architecture"), header.value("general.type")
    whole = "give the GGUF file of a whole language model"
    if not isinstance(architecture, str):
        raise ModelError(f"`{name}` does not say of which architecture it is: `general.architecture` is missing")
    if kind not in (None, "model"):
        raise ModelError(f"`{name}` is no language model but of the type `{kind}`", hint=whole)
    parts = SHARD.search(header.path.name)
    if (header.value("split.count") or 0) > 1 or (parts and int(parts[1]) > 1):
        raise ModelError(
            f"`{name}` is one of several parts of a model, and transformers reads only whole files",
            hint="join the parts with llama.cpp's `llama-gguf-split --merge`",
        )
    shapes = {tensor.name: tensor.shape for tensor in header.tensors}
    if not header.vocabulary or len(shapes.get(TOKEN_TABLE, ())) != 2:
        lacks = f"token embedding `{TOKEN_TABLE}`" if header.vocabulary else f"tokenizer (`{TOKENS}`)"
        raise ModelError(f"`{name}` is no language model: it is a `{architecture}` without a {lacks}", hint=whole)
    demand_sizes(header, name, shapes[TOKEN_TABLE])


def demand_sizes(header: GgufHeader, name: str, table: tuple[int, ...]) -> None:
    """Raise if the sizes that the file states are not those of its tensors.

    transformers builds a model of the stated sizes, and would allocate whatever a damaged number says.

    Raises:
        ModelError: a size is wrong.
    """
    width, blocks = (header.value(f"{header.architecture}.{part}") for part in ("embedding_length", "block_count"))
    if width != table[1]:
        raise ModelError(
            f"`{name}` states an embedding of width {width}, and its token embedding has width {table[1]:,}", hint=AGAIN
        )
    there = len({found[1] for tensor in header.tensors if (found := BLOCK.match(tensor.name))})
    if not isinstance(blocks, int) or not 1 <= blocks <= min(there, MOST_BLOCKS):
        raise ModelError(f"`{name}` states {blocks} blocks, and it holds tensors of {there:,}", hint=AGAIN)
