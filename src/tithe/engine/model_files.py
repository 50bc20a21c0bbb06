"""Check a model's folder before anything heavy reads it: its files, JSON and weight headers. Imports no torch."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeAlias

from tithe.errors import ModelError
from tithe.foreign import foreign, parse_json, special_kind

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
READ = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".safetensors", ".py")  # files that some reader opens
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
AGAIN = "download or copy the folder again"
FLOATS = ("F64", "F32", "F16", "BF16")
MOST_HEADER = 100_000_000  # bytes; safetensors' own limit
LOOPED = re.compile(r"(^|_)(layers?|experts?|blocks?)$")  # config keys that say how many modules are built
MOST_BUILT = 10_000  # real models have hundreds; a damaged number would keep transformers building for hours
KINDS: Mapping[str, tuple[type, str]] = {
    "architectures": (list, "a list of names"),
    "auto_map": (dict, "an object"),
    "is_encoder_decoder": (bool, "true or false"),
    "model_type": (str, "a name"),
    "quantization_config": (dict, "an object"),
    "text_config": (dict, "an object"),
}
Tensors: TypeAlias = dict[str, tuple[str, tuple[int, ...]]]  # name -> dtype as safetensors calls it, shape


def reading_folder(what: str, where: Path) -> AbstractContextManager[None]:
    """Turn any error of a library that reads the folder into one sentence; out-of-memory errors pass through.

    Args:
        what: the sentence's beginning: what cannot be done.
        where: the folder.

    Raises:
        ModelError: names the file at fault if it is one of the folder's JSON files.
    """

    def explain(error: BaseException) -> str:
        culprit = broken_json(where)
        return f"`{culprit}` holds no JSON object" if culprit else first_line(error)

    return foreign(ModelError, what, f"looked in `{where}`", told=explain, passes=lacks_memory)


def lacks_memory(error: BaseException) -> bool:
    """Tell whether the machine is at fault and not the file; torch says so only in the text."""
    return isinstance(error, MemoryError) or "out of memory" in str(error).lower()


def first_line(error: BaseException) -> str:
    """Return the first line of a library's error; with the second if the first ends in a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and "ignore_mismatched_sizes" in lines[0]:  # advises an option that users cannot set here
        return "its tensors have other shapes than `config.json` says"
    if len(lines) > 1 and lines[0].endswith(":"):
        lines = [f"{lines[0]} {lines[1]}"]
    return lines[0][:200].rstrip(".") if lines else type(error).__name__


def broken_json(folder: Path) -> str | None:
    """Return the name of the first JSON file that holds no object; all files of models and tokenizers hold one."""
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        try:
            if path.name != "vocab.json" and path.is_file() and not isinstance(json.loads(path.read_bytes()), dict):
                return path.name
        except (OSError, ValueError, RecursionError):
            return path.name
    return None


def demand_model_files(name: str, folder: Path) -> None:
    """Raise if an entry that would be opened as a file is a folder, pipe, device or broken link.

    Raises:
        ModelError: names the entry.
    """
    for path in sorted(folder.iterdir()):
        if path.suffix not in READ:
            continue
        with foreign(ModelError, f"`{path.name}` of `{name}` cannot be read", f"looked in `{folder}`"):
            what = "a folder" if path.is_dir() else special_kind(path)
        if what:
            raise ModelError(f"`{path.name}` of `{name}` is {what}, not a file", hint=f"remove it from `{folder}`")


def read_object(path: Path, whose: str) -> dict[str, Any]:
    """Read the JSON object in a file; duplicate fields are refused.

    Args:
        path: the file.
        whose: the owner, for messages: `model x`.

    Raises:
        ModelError: the file cannot be read, or does not hold an object.
    """
    with foreign(ModelError, f"cannot read `{path.name}` of {whose}", AGAIN):
        found = parse_json(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ModelError(f"`{path.name}` of {whose} holds no JSON object", hint=AGAIN)
    return found


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """Read a model's `config.json` and check the types of its values.

    Raises:
        ModelError: the file cannot be read, or a value has the wrong type or is absurdly large.
    """
    config = read_object(folder / "config.json", f"model `{name}`")
    for key, (kind, wanted) in KINDS.items():
        value = config.get(key)
        wrong = value is not None and not isinstance(value, kind)
        if wrong or (key == "architectures" and not all(isinstance(one, str) for one in value or ())):
            raise ModelError(f"`{key}` in `config.json` of model `{name}` must be {wanted}", hint=AGAIN)
    demand_sane_sizes(config, name)
    return config


def demand_sane_sizes(config: Mapping[str, Any], name: str, where: str = "`config.json`") -> None:
    """Raise if a config counts more modules than any model has: building them would take hours.

    Raises:
        ModelError: names the count.
    """
    for part in (config, config.get("text_config") or {}):
        for key, value in part.items():
            if LOOPED.search(key) and isinstance(value, int) and value > MOST_BUILT:
                raise ModelError(f"`{key}` in {where} of model `{name}` is {value:,}: no model has so many", hint=AGAIN)


def tensors_of(file: Path) -> Tensors:
    """Read names, dtypes and shapes from a safetensors header: 8 bytes of length, then JSON.

    Raises:
        ModelError: the file is not a safetensors file.
    """
    with foreign(ModelError, f"`{file}` is not a safetensors file", AGAIN, told=first_line):
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            # The length of a damaged file may be anything; never read more than the format allows.
            header = parse_json(stream.read(min(length, MOST_HEADER)).decode())
        found = {key: (str(one["dtype"]), tuple(one["shape"])) for key, one in header.items() if key != "__metadata__"}
        if not all(isinstance(size, int) for _, shape in found.values() for size in shape):
            raise ValueError("a shape is not a list of numbers")
    return found


def weight_files(folder: Path, name: str) -> list[Path]:
    """List the files that transformers reads the weights from; empty if it would find none.

    Raises:
        ModelError: it is ambiguous which files they are, or one is missing.
    """
    single, index = folder / SINGLE, folder / INDEX
    if single.is_file():  # transformers prefers it to an index
        files = [single]
    elif index.is_file():
        files = sorted({folder / file for file in read_index(index, name).values()})
    else:
        return []
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ModelError(f"`{INDEX}` of `{name}` names `{missing[0]}`, and there is no such file", hint=AGAIN)
    surplus = sorted(file.name for file in folder.glob("model-*.safetensors") if SHARD.fullmatch(file.name))
    surplus = [file for file in surplus if folder / file not in files]
    if surplus:
        said = f"`{SINGLE}` is there as well" if single.is_file() else f"`{INDEX}` does not name it"
        raise ModelError(
            f"`{name}` holds `{surplus[0]}`, and {said}: its tensors would be left out",
            hint="remove what belongs to another checkpoint, or " + AGAIN,
        )
    return files


def read_index(path: Path, name: str) -> dict[str, str]:
    """Read an index: tensor name -> file name."""
    found = read_object(path, f"model `{name}`").get("weight_map")
    fits = isinstance(found, dict) and all(isinstance(file, str) and Path(file).name == file for file in found.values())
    if not fits or not found:
        raise ModelError(f"`{path.name}` of model `{name}` has no map of tensors to files", hint=AGAIN)
    return dict(found)


def tensors_in(folder: Path, name: str) -> Tensors:
    """List all tensors of a model's weights and check that each is in the file that the index names for it.

    Raises:
        ModelError: the index and the files disagree.
    """
    files = weight_files(folder, name)
    index = read_index(folder / INDEX, name) if files and files != [folder / SINGLE] else None
    found: Tensors = {}
    for file in files:
        here = tensors_of(file)
        if index is not None:
            for tensor in here:
                if index.get(tensor) != file.name:
                    place = f"says it is in `{index[tensor]}`" if tensor in index else "does not name it"
                    raise ModelError(
                        f"`{file.name}` of `{name}` holds the tensor `{tensor}`, and `{INDEX}` {place}", hint=AGAIN
                    )
            lost = next((tensor for tensor, place in index.items() if place == file.name and tensor not in here), None)
            if lost is not None:
                raise ModelError(
                    f"`{INDEX}` of `{name}` says that the tensor `{lost}` is in `{file.name}`, but it is not",
                    hint=AGAIN,
                )
        found |= here
    return found
