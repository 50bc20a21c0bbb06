"""Installed packages: their versions, and the command that adds an optional extra to this installation."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import Distribution, PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

__version__ = "0.1.0"
# Files that a tool leaves in the environments it makes -> its command that installs into one that is there.
TOOLS = {"uv-receipt.toml": "uv tool install --force", "pipx_metadata.json": "pipx install --force"}
NAME, RECORD = "tithe", "direct_url.json"  # PEP 610: where a package came from, if not from an index


def install_hint(extra: str) -> str:
    """Return the command that adds an extra to this installation, wherever it came from."""
    try:
        return f"{installer(Path(sys.prefix))} {requirement(distribution(NAME), extra)}"
    except PackageNotFoundError:  # run from source without an installation
        return f"pip install -e '{Path(__file__).parents[2]}[{extra}]'"


def installer(environment: Path) -> str:
    """Return the command that installs into an environment: those of `uv tool` and pipx have no pip of their own."""
    return next((command for file, command in TOOLS.items() if (environment / file).is_file()), "pip install")


def requirement(installed: Distribution, extra: str) -> str:
    """Return the requirement for pip: a folder, an address, or a name in an index."""
    origin: dict[str, Any] = json.loads(installed.read_text(RECORD) or "{}")
    url = origin.get("url", "")
    place = Path(unquote(urlsplit(url).path)) if url.startswith("file:") else None
    if "dir_info" in origin and place is not None and place.is_dir():
        editable = "-e " if origin["dir_info"].get("editable") else ""
        return f"{editable}'{place}[{extra}]'"
    if "vcs_info" in origin:
        vcs = origin["vcs_info"]
        return f"'{NAME}[{extra}] @ {vcs['vcs']}+{url}@{vcs['commit_id']}'"
    if "archive_info" in origin and (place is None or place.is_file()):
        return f"'{NAME}[{extra}] @ {url}'"
    return f"'{NAME}[{extra}]'"


def versions(names: Iterable[str] = ("torch", "transformers", "tokenizers", "numpy", "pyarrow")) -> Mapping[str, str]:
    """Return the versions of tithe, Python and those of these packages that are installed, for a run record."""
    found = {"tithe": __version__, "python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
