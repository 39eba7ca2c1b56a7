"""What goes wrong between this machine and another one, in sentences: one table for all errors of httpx, and
of httpx2, which has the same ones, and one way to say them of what is fetched (`Origin`).

`ERRORS` are what a request, or the making of a client, can raise. Callers catch these and show `explain`.
"""

from __future__ import annotations

import contextlib
import email.utils
import ipaddress
import math
import os
import re
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

import httpx

from rerankd.errors import FetchError, HubUnreachable

C = TypeVar("C", httpx.Client, httpx.AsyncClient)

# Statuses that another attempt may not meet.
_BUSY = (408, 429, 500, 502, 503, 504)


def errors_of(library: ModuleType) -> tuple[type[Exception], ...]:
    """What making a client of httpx or httpx2, a request by it, or reading the answer can raise.

    ValueError: an address or a proxy that can't be read. ImportError: a proxy's protocol that needs a
    library.
    """
    own = library.HTTPError, library.InvalidURL, library.CookieConflict, library.StreamError
    return (*own, ImportError, OSError, ValueError)


ERRORS = errors_of(httpx)

# By the names of the classes. `{said}` is what the error says itself.
SENTENCES: Mapping[str, str] = {
    "ConnectTimeout": "no connection came about in time",
    "ReadTimeout": "no data came in time",
    "WriteTimeout": "the request could not be sent in time",
    "PoolTimeout": "no connection became free in time",
    "TimeoutException": "it took too long",
    "ConnectError": "no connection: {said}",
    "ReadError": "the connection was cut: {said}",
    "WriteError": "the connection was cut while the request was sent: {said}",
    "CloseError": "the connection was cut at its end: {said}",
    "NetworkError": "the network failed: {said}",
    "ProxyError": "the proxy refused: {said}",
    "UnsupportedProtocol": "the address is neither http:// nor https://: {said}",
    "LocalProtocolError": "the request can't be written as HTTP, perhaps for a line break in a token: {said}",
    "RemoteProtocolError": "the answer is not valid HTTP: {said}",
    "ProtocolError": "what was said is not valid HTTP: {said}",
    "TransportError": "the connection failed: {said}",
    "DecodingError": "the answer says that it is compressed and is not, or is damaged: {said}",
    "TooManyRedirects": "the address leads in a circle of redirects",
    "RequestError": "the request failed: {said}",
    "HTTPStatusError": "it was refused: {said}",
    "HTTPError": "the request failed: {said}",
    "InvalidURL": "the address can't be read: {said}",
    "CookieConflict": "the answer sets two cookies of one name: {said}",
    "StreamConsumed": "the answer was read twice",
    "StreamClosed": "the answer was read after its end",
    "ResponseNotRead": "the answer was not read",
    "RequestNotRead": "the request was not read",
    "SSEError": "the answer's events can't be read: {said}",
    "StreamError": "the answer can't be read: {said}",
}


def explain(error: BaseException) -> str:
    """What an error means, in the middle of a sentence: the first cause that has one in the table, with the
    words of the innermost."""
    chain = [error]
    while inner := chain[-1].__cause__ or chain[-1].__context__:
        if inner in chain:
            break
        chain.append(inner)
    said = next((str(one) for one in reversed(chain) if str(one)), type(chain[-1]).__name__)
    said = said.splitlines()[0][:200]
    if "CERTIFICATE_VERIFY_FAILED" in said or isinstance(chain[-1], ssl.SSLCertVerificationError):
        return (
            f"its certificate is not trusted ({said}); where a proxy reads along, name its certificate with "
            "SSL_CERT_FILE"
        )
    for one in chain:
        for kind in type(one).__mro__:
            if kind.__module__.partition(".")[0] in ("httpx", "httpx2") and kind.__name__ in SENTENCES:
                return SENTENCES[kind.__name__].format(said=said)
    return said


def client(**options: Any) -> httpx.Client:
    """An httpx.Client that goes by the environment's proxies and certificates. Raises ValueError, with a
    sentence that names the variable, where these can't be used."""
    return _made(httpx.Client, options)


def async_client(**options: Any) -> httpx.AsyncClient:
    """As `client`."""
    return _made(httpx.AsyncClient, options)


def _made(kind: Callable[..., C], options: dict[str, Any]) -> C:
    with environment():
        try:
            return kind(**options)
        except ERRORS as error:
            raise ValueError(fault_of_environment(error, os.environ)) from error


@contextlib.contextmanager
def environment() -> Iterator[None]:
    """Within it, the proxy variables are written as all clients read them.

    GNOME writes ALL_PROXY=socks://HOST:PORT, and many people NO_PROXY=[::1]: httpx and httpx2 refuse both.
    """
    before = {name: os.environ[name] for name in _PROXIES if name in os.environ}
    os.environ.update({name: _plain(name, value) for name, value in before.items()})
    try:
        yield
    finally:
        os.environ.update(before)


_SCHEMES = ("http", "https", "all")
_PROXIES = tuple(
    written for scheme in (*_SCHEMES, "no") for written in (f"{scheme}_proxy", f"{scheme}_proxy".upper())
)
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


def _plain(name: str, value: str) -> str:
    if name.lower() != "no_proxy":
        return value.replace("socks://", "socks5://", 1) if value.startswith("socks://") else value
    hosts = (host.strip() for host in value.split(","))
    return ",".join(_plain_host(host) for host in hosts if host)


def _plain_host(host: str) -> str:
    """[::1] and [::1]:8080 -> ::1; HOST:PORT -> HOST, since httpx knows no ports here."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    name, colon, port = host.partition(":")
    return name if colon and port.isdigit() else host


def fault_of_environment(error: Exception, environ: Mapping[str, str]) -> str:
    """The sentence for a client that could not even be made."""
    for name in _CERTIFICATES:
        if (value := environ.get(name)) and not os.path.exists(value):
            return f"{name} names {value}, which is not there. Correct it, or unset it"
    # Without the password that a proxy's address may hold.
    found = {name: re.sub(r"//[^/@]*@", "//…@", environ[name]) for name in _PROXIES if environ.get(name)}
    proxies = " ".join(f"{name}={value}" for name, value in found.items())
    if isinstance(error, OSError):
        names = " ".join(f"{name}={environ[name]}" for name in _CERTIFICATES if environ.get(name))
        return f"the certificates can't be read ({explain(error)}){f': look at {names}' if names else ''}"
    return (
        f"the proxy settings can't be used ({explain(error)}): look at {proxies or 'the system settings'}. A "
        "proxy is http://HOST:PORT, https://, socks5:// or socks5h://"
    )


def retry_after_s(value: str | None) -> int | None:
    """The seconds of a Retry-After header, which may hold a date; None where it can't be read."""
    if not value:
        return None
    with contextlib.suppress(ValueError, OverflowError):
        return max(math.ceil(float(value)), 0)
    with contextlib.suppress(ValueError, TypeError, IndexError):
        return max(math.ceil(email.utils.parsedate_to_datetime(value).timestamp() - time.time()), 0)
    return None


class Busy(FetchError):
    """The server refuses for now; another attempt may fare better."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where something is fetched from, as error sentences speak of it: what is fetched (`ref`), the server's
    name and address, and what else to do where it fails."""

    ref: str
    server: str
    endpoint: str
    otherwise: str

    def refused(self, status: int, retry_after: str = "") -> FetchError:
        """The error of an answer with this HTTP status; `retry_after_s` is what the server asks to wait."""
        kind, wait_s = (Busy, retry_after_s(retry_after)) if status in _BUSY else (FetchError, None)
        why, next_step = self.reason(status, wait_s)
        return kind(f"{self.ref} can't be fetched: {self.server} {why}. {next_step}", retry_after_s=wait_s)

    def reason(self, status: int, wait_s: int | None) -> tuple[str, str]:
        """What a refusal means, as the end of a sentence, and what to do about it."""
        when = "later" if wait_s is None else f"in {wait_s} s"
        return f"answers with an error ({status})", f"Try again {when}, or {self.otherwise}."

    def unreachable(self, error: Exception) -> HubUnreachable:
        """The error of no answer at all."""
        return HubUnreachable(
            f"{self.ref} can't be fetched: {self.server} can't be reached at {self.endpoint} "
            f"({explain(error)}). Check the network, and HTTPS_PROXY where a proxy is in the way, or "
            f"{self.otherwise}."
        )

    def web_page(self, host: str) -> HubUnreachable:
        """The error of a page for people where data should be."""
        return HubUnreachable(
            f"{self.ref} can't be fetched: a web page came from {host} instead of what {self.server} has. "
            "The network may ask you to log in first (open any page in a browser), or a proxy blocks it; "
            f"else {self.otherwise}."
        )


def is_near(host: str) -> bool:
    """Whether a host is reached without a proxy whatever the environment says: this machine, an address of a
    private network, or a name without a dot, such as a container's."""
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return "." not in host or host.endswith((".localhost", ".local", ".internal"))
    return address.is_private or address.is_loopback or address.is_link_local
