"""Hugging Face and ModelScope: what a repository holds, and the addresses of its files.

Both are asked through their makers' own clients, which know the user's token, mirror (HF_ENDPOINT,
MODELSCOPE_ENDPOINT) and cache. A file that another program already fetched into a client's cache is taken
from there. The bytes themselves come through `download.py`, for both hubs alike, because huggingface_hub 2
throws away what it has when a download ends early (its change 4228), and eight gigabytes should go on where
they stopped, in a later pull too.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import httpx2

# The clients look for the user's home when they are imported, and ModelScope's fails without one. It is then
# what Debian gives to users without a home, and no folder in which somebody else could put a token.
if os.path.expanduser("~") == "~":
    os.environ["HOME"] = "/nonexistent"

import huggingface_hub
import modelscope_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from rerankd import network_errors
from rerankd.download import Source
from rerankd.errors import FetchError
from rerankd.hub.choose_files import RemoteFile
from rerankd.network_errors import Origin

_TIMEOUT_S = 20


@dataclass(frozen=True, slots=True)
class Listing:
    """What a repository holds at a revision: a commit where the hub tells it, else a branch."""

    revision: str
    files: tuple[RemoteFile, ...]


@dataclass(frozen=True, slots=True)
class HubOrigin(Origin):
    """A repository on a hub: its page, and the variable that holds the user's token."""

    page: str
    token_variable: str

    def reason(self, status: int, wait_s: int | None) -> tuple[str, str]:
        token = f"make a token there and set {self.token_variable} to it"
        if status == 401:
            why = "does not give it without a token (401): it is gated or private, or there is no such thing"
            return why, f"Check the name at {self.page}, accept its terms there if it has some, and {token}."
        if status == 403:
            why = "does not give it to this account (403): it is gated"
            return why, f"Accept its terms at {self.page}, then {token}."
        if status == 404:
            return "has no such thing (404)", f"Check the name at {self.page}."
        if status == 429:
            when = "in some minutes" if wait_s is None else f"in {wait_s} s"
            more = f"who sends a token ({self.token_variable}) may ask for more"
            return "has had too many requests from here (429)", f"Try again {when}; {more}."
        return Origin.reason(self, status, wait_s)


class Hub(Protocol):
    """One hub. Every method but `origin` and `cached` raises FetchError in words for the user."""

    def origin(self, repo: str) -> HubOrigin: ...

    def listing(self, repo: str) -> Listing:
        """What `repo` (org/repo) holds now."""

    def source(self, repo: str, revision: str, file: RemoteFile) -> Source:
        """Where a file of it is; asks nobody."""

    def cached(self, repo: str, revision: str, path: str) -> Path | None:
        """The file in the client's own cache, where it is there."""


class HuggingFace:
    """huggingface.co, or the mirror that HF_ENDPOINT names."""

    def __init__(self, endpoint: str | None = None) -> None:
        self._api = huggingface_hub.HfApi(endpoint=endpoint, library_name="rerankd")

    def origin(self, repo: str) -> HubOrigin:
        return HubOrigin(
            ref=f"hf:{repo}",
            server="Hugging Face",
            page=f"https://huggingface.co/{repo}",
            token_variable="HF_TOKEN",
            endpoint=self._api.endpoint,
            otherwise="name a mirror with HF_ENDPOINT",
        )

    def listing(self, repo: str) -> Listing:
        origin = self.origin(repo)
        try:
            with network_errors.environment():
                info = self._api.model_info(repo, files_metadata=True, timeout=_TIMEOUT_S)
        except HfHubHTTPError as error:
            answer = error.response
            raise origin.refused(answer.status_code, answer.headers.get("retry-after", "")) from error
        except HFValidationError as error:
            raise FetchError(f"{origin.ref} is no name on Hugging Face: {error}.") from error
        except json.JSONDecodeError as error:
            raise origin.web_page(origin.endpoint) from error
        except _CLIENT_ERRORS as error:
            raise _failed(origin, error) from error
        return Listing(
            revision=info.sha or "main",
            files=tuple(
                RemoteFile(one.rfilename, one.size or 0, one.lfs.sha256 if one.lfs is not None else "")
                for one in info.siblings or ()
            ),
        )

    def source(self, repo: str, revision: str, file: RemoteFile) -> Source:
        url = huggingface_hub.hf_hub_url(repo, file.path, revision=revision, endpoint=self._api.endpoint)
        token = huggingface_hub.get_token()
        headers = {"authorization": f"Bearer {token}"} if token else {}
        return Source(self.origin(repo), url, file.name, file.size_bytes, file.sha256, headers)

    def cached(self, repo: str, revision: str, path: str) -> Path | None:
        found = huggingface_hub.try_to_load_from_cache(repo, path, revision=revision)
        return Path(found) if isinstance(found, str) else None


class ModelScope:
    """modelscope.cn, or the server that MODELSCOPE_ENDPOINT (or MODELSCOPE_DOMAIN) names."""

    def __init__(self, endpoint: str | None = None) -> None:
        self._config = modelscope_hub.HubConfig(endpoint=endpoint)
        self._api = modelscope_hub.HubApi(self._config)

    def origin(self, repo: str) -> HubOrigin:
        return HubOrigin(
            ref=f"ms:{repo}",
            server="ModelScope",
            page=f"https://modelscope.cn/models/{repo}",
            token_variable="MODELSCOPE_API_TOKEN",
            endpoint=str(self._config.endpoint),
            otherwise="name another server with MODELSCOPE_ENDPOINT",
        )

    def listing(self, repo: str) -> Listing:
        origin = self.origin(repo)
        try:
            with network_errors.environment():
                found = self._api.list_repo_files(repo, "model", revision=_MASTER)
        except modelscope_hub.APIError as error:
            if error.status_code is None:
                raise origin.unreachable(error) from error
            retry_after = getattr(error, "retry_after", None)
            after = f"{retry_after:.0f}" if isinstance(retry_after, (int, float)) else ""
            raise origin.refused(error.status_code, after) from error
        except json.JSONDecodeError as error:
            raise origin.web_page(origin.endpoint) from error
        except _CLIENT_ERRORS as error:
            raise _failed(origin, error) from error
        files = (RemoteFile(one.path, one.size, one.sha256 or "") for one in found if not one.is_dir)
        return Listing(_MASTER, tuple(files))

    def source(self, repo: str, revision: str, file: RemoteFile) -> Source:
        url = self._api.legacy.get_download_url(repo, "model", file.path, revision)
        token = self._config.token
        headers = {"authorization": f"Bearer {token}", "cookie": f"m_session_id={token}"} if token else {}
        return Source(self.origin(repo), url, file.name, file.size_bytes, file.sha256, headers)

    def cached(self, repo: str, revision: str, path: str) -> Path | None:
        with contextlib.suppress(modelscope_hub.HubError):
            return self._api.download_file(repo, "model", path, revision=revision, local_files_only=True)
        return None


_MASTER = "master"
# Of both clients: huggingface_hub's is httpx2, modelscope-hub's is requests, whose errors are OSError.
_CLIENT_ERRORS: tuple[type[Exception], ...] = (modelscope_hub.HubError, *network_errors.errors_of(httpx2))


def _failed(origin: Origin, error: Exception) -> FetchError:
    """The error of a request that failed, or of a client that could not be made."""
    if isinstance(error, (httpx2.HTTPError, httpx2.StreamError)):
        return origin.unreachable(error)
    try:
        network_errors.client().close()
    except ValueError as fault:
        return FetchError(f"{origin.ref} can't be fetched: {fault}.")
    return origin.unreachable(error)
