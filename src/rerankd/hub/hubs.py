"""Hugging Face and ModelScope: list the files of a repository, and their URLs.

Both hubs are queried with their official clients, which know the user's token, mirror (HF_ENDPOINT,
MODELSCOPE_ENDPOINT) and cache; files in these caches are reused. `download.py` downloads the files of both
hubs, because huggingface_hub 2 discards an incomplete download (its change 4228), and a download of eight
gigabytes should resume, in a later pull too.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import httpx2

# The clients look up the user's home folder when they are imported, and ModelScope's fails without one.
# /nonexistent is Debian's home of users without one; no other user can place a token there.
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
    """The files of a repository at a revision: a commit if the hub reports it, else a branch."""

    revision: str
    files: tuple[RemoteFile, ...]


@dataclass(frozen=True, slots=True)
class HubOrigin(Origin):
    """A repository on a hub, with the URL of its page and the environment variable of the user's token."""

    page: str
    token_variable: str

    def reason(self, status: int, wait_s: int | None) -> tuple[str, str]:
        token = f"create a token and set {self.token_variable} to it"
        if status == 401:
            why = "requires a token for it (401): it is gated, private, or does not exist"
            return why, f"Check the name at {self.page}, accept its terms if it has any, and {token}."
        if status == 403:
            why = "denies this account access to it (403): it is gated"
            return why, f"Accept its terms at {self.page}, then {token}."
        if status == 404:
            return "has no such file or repository (404)", f"Check the name at {self.page}."
        if status == 429:
            when = "in some minutes" if wait_s is None else f"in {wait_s} s"
            more = f"a token ({self.token_variable}) raises the limit"
            return "has received too many requests from this address (429)", f"Try again {when}; {more}."
        return Origin.reason(self, status, wait_s)


class Hub(Protocol):
    """A model hub. `listing` and `source` raise FetchError."""

    def origin(self, repo: str) -> HubOrigin: ...

    def listing(self, repo: str) -> Listing:
        """List the files of `repo` (org/repo)."""

    def source(self, repo: str, revision: str, file: RemoteFile) -> Source:
        """Return the URL and headers of a file. Sends no request."""

    def cached(self, repo: str, revision: str, path: str) -> Path | None:
        """Return the path of the file in the official client's cache, None if it is not there."""


class HuggingFace:
    """huggingface.co, or the mirror set in HF_ENDPOINT."""

    def __init__(self, endpoint: str | None = None) -> None:
        self._api = huggingface_hub.HfApi(endpoint=endpoint, library_name="rerankd")

    def origin(self, repo: str) -> HubOrigin:
        return HubOrigin(
            ref=f"hf:{repo}",
            server="Hugging Face",
            page=f"https://huggingface.co/{repo}",
            token_variable="HF_TOKEN",
            endpoint=self._api.endpoint,
            otherwise="set HF_ENDPOINT to a mirror",
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
            raise FetchError(f"{origin.ref} is not a valid name on Hugging Face: {error}.") from error
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
    """modelscope.cn, or the server set in MODELSCOPE_ENDPOINT or MODELSCOPE_DOMAIN."""

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
            otherwise="set MODELSCOPE_ENDPOINT to another server",
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
# Errors of both clients: huggingface_hub uses httpx2; modelscope-hub uses requests, whose errors are
# OSErrors.
_CLIENT_ERRORS: tuple[type[Exception], ...] = (modelscope_hub.HubError, *network_errors.errors_of(httpx2))


def _failed(origin: Origin, error: Exception) -> FetchError:
    """Return the FetchError for a failed request, or for a client that could not be created."""
    if isinstance(error, (httpx2.HTTPError, httpx2.StreamError)):
        return origin.unreachable(error)
    try:
        network_errors.client().close()
    except ValueError as fault:
        return FetchError(f"{origin.ref} can't be downloaded: {fault}.")
    return origin.unreachable(error)
