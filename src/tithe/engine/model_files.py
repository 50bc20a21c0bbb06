"""What a model's folder holds, looked at before anything heavy reads it: files, JSON, weight headers. No torch."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeAlias

from tithe.data.lines import parse_json
from tithe.errors import ModelError
from tithe.foreign import foreign, special_kind

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
READ = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".safetensors", ".py")  # what somebody opens
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
AGAIN = "download or copy the folder again"
FLOATS = ("F64", "F32", "F16", "BF16")
MOST_HEADER = 100_000_000  # bytes, what safetensors itself allows
LOOPED = re.compile(r"(^|_)(layers?|experts?|blocks?)$")  # in a config: how often something is built
MOST_BUILT = 10_000  # models have hundreds; far more would be built for hours
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
    """Turn whatever the readers of foreign folders raise into one sentence; too little memory is another matter.

    Args:
        what: what cannot be done.
        where: the folder.

    Raises:
        ModelError: with the file that is to blame, where one of the folder's JSON files is.
    """

    def told(error: BaseException) -> str:
        culprit = broken_json(where)
        return f"`{culprit}` holds no JSON object" if culprit else first_line(error)

    return foreign(ModelError, what, f"looked in `{where}`", told=told, passes=lacks_memory)


def lacks_memory(error: BaseException) -> bool:
    """Tell whether the machine is to blame and not the file; torch says so in words alone."""
    return isinstance(error, MemoryError) or "out of memory" in str(error).lower()


def first_line(error: BaseException) -> str:
    """Return a foreign error's first line, for our own sentence; its next line where the first only announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and "ignore_mismatched_sizes" in lines[0]:  # an option of transformers that nobody here has set
        return "its tensors have other shapes than `config.json` says"
    if len(lines) > 1 and lines[0].endswith(":"):
        lines = [f"{lines[0]} {lines[1]}"]
    return lines[0][:200].rstrip(".") if lines else type(error).__name__


def broken_json(folder: Path) -> str | None:
    """Find the first of a folder's JSON files that holds no object, as models' and tokenizers' all do."""
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        try:
            if path.name != "vocab.json" and path.is_file() and not isinstance(json.loads(path.read_bytes()), dict):
                return path.name
        except (OSError, ValueError, RecursionError):
            return path.name
    return None


def demand_model_files(name: str, folder: Path) -> None:
    """Refuse what would be opened as a file and is none: a folder, a pipe, a device, a link to nowhere.

    Raises:
        ModelError: naming it.
    """
    for path in sorted(folder.iterdir()):
        if path.suffix not in READ:
            continue
        with foreign(ModelError, f"`{path.name}` of `{name}` cannot be read", f"looked in `{folder}`"):
            what = "a folder" if path.is_dir() else special_kind(path)
        if what:
            raise ModelError(f"`{path.name}` of `{name}` is {what}, not a file", hint=f"remove it from `{folder}`")


def read_object(path: Path, whose: str) -> dict[str, Any]:
    """Read the JSON object in a file; no field may stand there twice.

    Args:
        path: the file.
        whose: for the sentence: `model x`.

    Raises:
        ModelError: it cannot be read, or holds something else.
    """
    with foreign(ModelError, f"cannot read `{path.name}` of {whose}", AGAIN):
        found = parse_json(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ModelError(f"`{path.name}` of {whose} holds no JSON object", hint=AGAIN)
    return found


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """Read a model's `config.json` and check the kinds of its values.

    Raises:
        ModelError: it cannot be read, or a value is of another kind or out of any measure.
    """
    config = read_object(folder / "config.json", f"model `{name}`")
    for key, (kind, wanted) in KINDS.items():
        value = config.get(key)
        wrong = value is not None and not isinstance(value, kind)
        if wrong or (key == "architectures" and not all(isinstance(one, str) for one in value or ())):
            raise ModelError(f"`{key}` in `config.json` of model `{name}` must be {wanted}", hint=AGAIN)
    for part in (config, config.get("text_config") or {}):
        for key, value in part.items():
            if LOOPED.search(key) and isinstance(value, int) and value > MOST_BUILT:
                raise ModelError(
                    f"`{key}` in `config.json` of model `{name}` is {value:,}: no model has so many", hint=AGAIN
                )
    return config


def tensors_of(file: Path) -> Tensors:
    """Read names, dtypes and shapes from a safetensors header: 8 bytes of length, then JSON.

    Raises:
        ModelError: it is no safetensors file.
    """
    with foreign(ModelError, f"`{file}` is not a safetensors file", AGAIN, told=first_line):
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = parse_json(stream.read(min(length, MOST_HEADER)).decode())
        found = {key: (str(one["dtype"]), tuple(one["shape"])) for key, one in header.items() if key != "__metadata__"}
        if not all(isinstance(size, int) for _, shape in found.values() for size in shape):
            raise ValueError("a shape that is no list of numbers")
    return found


def weight_files(folder: Path, name: str) -> list[Path]:
    """List the files that transformers reads the weights from; none where it finds none itself.

    Raises:
        ModelError: it is open which they are, or one is missing.
    """
    single, index = folder / SINGLE, folder / INDEX
    if single.is_file():
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
    """Read which tensor is in which file, as an index says."""
    found = read_object(path, f"model `{name}`").get("weight_map")
    fits = isinstance(found, dict) and all(isinstance(file, str) and Path(file).name == file for file in found.values())
    if not fits or not found:
        raise ModelError(f"`{path.name}` of model `{name}` has no map of tensors to files", hint=AGAIN)
    return dict(found)


def tensors_in(folder: Path, name: str) -> Tensors:
    """List all tensors of a model's weights, each from the one file where its index looks for it.

    Raises:
        ModelError: index and files do not agree.
    """
    files = weight_files(folder, name)
    index = read_index(folder / INDEX, name) if files and files != [folder / SINGLE] else None
    found: Tensors = {}
    for file in files:
        here = tensors_of(file)
        if index is not None:
            for tensor in here:
                if index.get(tensor) != file.name:
                    place = f"looks for it in `{index[tensor]}`" if tensor in index else "does not name it"
                    raise ModelError(
                        f"`{file.name}` of `{name}` holds the tensor `{tensor}`, and `{INDEX}` {place}", hint=AGAIN
                    )
            lost = next((tensor for tensor, place in index.items() if place == file.name and tensor not in here), None)
            if lost is not None:
                raise ModelError(
                    f"`{INDEX}` of `{name}` looks for the tensor `{lost}` in `{file.name}`, and it is not there",
                    hint=AGAIN,
                )
        found |= here
    return found
