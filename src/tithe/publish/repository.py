"""Push a data set folder to a repository on the hub, through `huggingface_hub`; no message has the token."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tithe.errors import EndpointError, MissingExtraError, OutputError, SettingsError
from tithe.extras import install_hint
from tithe.foreign import shown
from tithe.publish.card import TAG

LOG_IN = "`hf auth login`, or the environment variable `HF_TOKEN`, with a token that may write"
OURS = (".gitattributes",)  # files that a new repository may have
_NAME = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{6,}|(?<=[Bb]earer )\S+")


@dataclass(frozen=True)
class Repository:
    """A data set repository on the hub.

    Args:
        name: `owner/name`.
        private: whether it shall be private.
        overwrite: whether to replace card and data of a repository that tithe did not write.
    """

    name: str
    private: bool = True
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or ".." in self.name or "--" in self.name or self.name.endswith(".git"):
            raise SettingsError(f"`{shown(self.name)}` is no repository's name", hint="`owner/name`, as on the hub")

    @property
    def url(self) -> str:
        """Where it is."""
        return f"{endpoint()}/datasets/{self.name}"

    def check(self) -> str | None:
        """Check the token and the repository, before hours of work; return a note on an existing one.

        Raises:
            MissingExtraError: `huggingface_hub` is not installed.
            EndpointError: there is no token, the hub refuses it, or does not answer.
            OutputError: the repository is public, or holds something else.
        """
        api = self.api()
        with hub_errors(self.name):
            api.whoami()
        info = self.info(api)
        if info is None:
            return None
        if self.private and not info.private:
            raise OutputError(
                f"`{self.name}` exists and is public, and a push is private unless said otherwise",
                hint="`--public` agrees to publish there, or name another repository",
            )
        files = [one.rfilename for one in info.siblings or () if one.rfilename not in OURS]
        tags = (info.card_data.to_dict() if info.card_data is not None else {}).get("tags") or ()
        if files and TAG not in tags and not self.overwrite:
            raise OutputError(
                f"`{self.name}` exists with {len(files):,} files that tithe did not write",
                hint="`--overwrite` replaces its card and `data/`, or name another repository",
            )
        return None if info.private == self.private else f"note: `{self.name}` is private already, and stays so"

    def push(self, folder: Path, message: str) -> str:
        """Upload a folder as one commit, and return the repository's address; nothing of it appears if that fails.

        Raises:
            TitheError: see `check`, or the upload fails.
        """
        api = self.api()
        with hub_errors(self.name, uploading=True):
            if self.info(api) is None:
                api.create_repo(self.name, repo_type="dataset", private=self.private)
            api.upload_folder(
                repo_id=self.name,
                folder_path=folder,
                repo_type="dataset",
                commit_message=message,
                delete_patterns=["data/*"],  # of an earlier push, which may have had other files
            )
        return self.url

    def info(self, api: Any) -> Any:
        """Return what the hub says of the repository; None if there is none, or none that the token may see."""
        missing = importlib.import_module("huggingface_hub.errors").RepositoryNotFoundError
        with hub_errors(self.name):
            try:
                return api.dataset_info(self.name, timeout=20)
            except missing as error:
                if status_of(error) == 401:
                    raise
                return None

    def api(self) -> Any:
        """Return the hub's client.

        Raises:
            MissingExtraError: it is not installed.
            EndpointError: there is no token.
        """
        try:
            hub = importlib.import_module("huggingface_hub")
        except ImportError:
            raise MissingExtraError(
                "pushing to the hub needs the package `huggingface_hub`", hint=install_hint("hub")
            ) from None
        token = hub.get_token()
        if not token:
            raise EndpointError("there is no token for the hub", hint=LOG_IN)
        return hub.HfApi(endpoint=endpoint(), token=token)


def endpoint() -> str:
    """Return the hub's address."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


@contextmanager
def hub_errors(name: str, *, uploading: bool = False) -> Iterator[None]:
    """Turn the errors of the hub and its client into an `EndpointError` without the token.

    Args:
        name: of the repository.
        uploading: whether records are on their way.
    """
    again = f"nothing is lost: `tithe push RUN {name}` tries again" if uploading else None
    try:
        yield
    except (EndpointError, OutputError):
        raise
    except Exception as error:  # the client and what it calls raise dozens of unrelated classes
        first = cause_of(error)
        raise EndpointError(*told(first, name), hint=hint_for(first) or again) from None


def cause_of(error: Exception) -> Exception:
    """Return the error that the client wrapped into others: it has what the server said."""
    while status_of(error) is None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def told(error: Exception, name: str) -> tuple[str]:
    """Return the sentence for an error of the hub's client."""
    status = status_of(error)
    if status == 401:
        return (f"the hub at {endpoint()} does not know the token",)
    if status == 403:
        return (f"the token has no right to write to `{name}`",)
    if type(error).__name__ == "OfflineModeIsEnabled":
        return ("the hub is switched off: `HF_HUB_OFFLINE` is set",)
    if status is not None:
        return (f"the hub at {endpoint()} answered {status}{server_words(error)}",)
    words = without_secrets(next(iter(str(error).splitlines()), ""))
    return (f"the hub at {endpoint()} cannot be used: {type(error).__name__}{f': {words}' if words else ''}",)


def hint_for(error: Exception) -> str | None:
    """Return the way out of an error, where it is not to try again."""
    if status_of(error) == 401:
        return LOG_IN
    return "a token that may write there, or a name of your own" if status_of(error) == 403 else None


def status_of(error: Exception) -> int | None:
    """Return the HTTP status of an error, or None."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def server_words(error: Exception) -> str:
    """Return what the server said, for the end of a sentence."""
    words = without_secrets(" ".join(str(getattr(error, "server_message", None) or "").split()))
    return f": {words[:200]}" if words else ""


def without_secrets(text: str) -> str:
    """Blank out the token, which a server may echo, and anything that looks like one."""
    token = importlib.import_module("huggingface_hub").get_token()
    return _TOKEN.sub("***", text.replace(token, "***") if token else text)
