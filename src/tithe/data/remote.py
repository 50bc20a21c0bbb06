"""Copy files from a web address or an object store to this machine, by fsspec."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tithe.errors import DataError, MissingExtraError, SettingsError
from tithe.extras import install_hint
from tithe.foreign import foreign

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://")
_SECRET = re.compile(r"sig|token|secret|password|credential|auth|api_?key|access_?key", re.IGNORECASE)
_PACKAGES = {
    "http": "aiohttp",
    "https": "aiohttp",
    "s3": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
}
_PATTERN = re.compile(r"[*\[]")  # a question mark begins the query of a web address
FROM_ENVIRONMENT = "credentials come from the environment, as the store's own package reads them"


def is_address(name: str) -> bool:
    """Tell whether a name is an address with a scheme, such as `https://`."""
    return _ADDRESS.match(name) is not None


def check_address(address: str) -> None:
    """Refuse an address that holds a secret, which would be written into the run record, and chains of schemes.

    Raises:
        SettingsError: says what is wrong, without the secret.
    """
    parts = urlsplit(address.partition("::")[0])
    plain = f"{parts.scheme}://{parts.hostname or ''}{parts.path}"
    if "::" in address:
        raise SettingsError(f"`{plain}` chains several schemes", hint="give one address")
    if parts.scheme in ("file", "local"):
        raise SettingsError(f"`{address}` is on this disk", hint=f"name its path: `{parts.path}`")
    if parts.username or parts.password:
        raise SettingsError(f"the address of `{plain}` holds a user or password", hint=FROM_ENVIRONMENT)
    if any(_SECRET.search(name) for name, _ in parse_qsl(parts.query, keep_blank_values=True)):
        raise SettingsError(
            f"the address of `{plain}` holds a key, which a run record would keep",
            hint=f"download the file first, or leave the key out: {FROM_ENVIRONMENT}",
        )


def fetch(address: str, folder: Path) -> Iterator[tuple[Path, str]]:
    """Copy the file at an address, or all files that its pattern matches, into a folder.

    Yields:
        (path of the copy, address of the file), sorted by address.

    Raises:
        DataError: there is no such file, or it could not be copied whole.
        SettingsError: see `check_address`.
        MissingExtraError: the package for this scheme is missing.
    """
    check_address(address)
    store, path = open_store(address)
    scheme = urlsplit(address).scheme
    with foreign(DataError, f"`{address}` cannot be read", "check the address, the connection and your access"):
        paths = sorted(store.glob(path)) if _PATTERN.search(path) else [path]
    if not paths:
        raise DataError(f"the pattern `{address}` matches nothing", hint="`**` also looks into sub-folders")
    for number, one in enumerate(paths):
        name = address if len(paths) == 1 and one == path else f"{scheme}://{one.removeprefix(f'{scheme}://')}"
        copy = folder / str(number) / PurePosixPath(urlsplit(one).path or one).name
        copy.parent.mkdir()
        with foreign(DataError, f"`{name}` cannot be read", "check the address, the connection and your access"):
            try:
                store.get_file(one, str(copy))
            except FileNotFoundError:
                raise DataError(f"there is no file `{name}`", hint="check the address") from None
        if not copy.is_file():
            raise DataError(f"`{name}` is no file", hint=f"a pattern names several: `{name.rstrip('/')}/*.parquet`")
        yield copy, name


def open_store(address: str) -> tuple[Any, str]:
    """Return fsspec's file system for an address, and the path within it.

    Raises:
        MissingExtraError: fsspec or the package for this scheme is missing.
        DataError: fsspec knows no such scheme.
    """
    scheme = urlsplit(address).scheme
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise MissingExtraError(
            "reading from an address needs the package `fsspec`", hint="pip install fsspec"
        ) from None
    try:
        store, path = url_to_fs(address)
    except ImportError as error:
        package = _PACKAGES.get(scheme, "its package")
        hint = install_hint("remote") if package == "aiohttp" else f"pip install {package}"
        raise MissingExtraError(f"reading from `{scheme}://` needs the package `{package}`", hint=hint) from error
    except ValueError as error:
        raise DataError(
            f"`{scheme}://` is no scheme that can be read", hint="https, s3, gs, az, hf and others that fsspec knows"
        ) from error
    return store, path
