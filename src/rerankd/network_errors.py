"""Network errors as messages: one table for all exceptions of httpx and httpx2, proxies, certificates,
retries.

`ERRORS` are the exceptions that creating a client or sending a request can raise. Callers catch them and show
`explain(error)`. `Origin` builds the errors of a download.
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

# Statuses after which a retry can succeed.
_BUSY = (408, 429, 500, 502, 503, 504)


def errors_of(library: ModuleType) -> tuple[type[Exception], ...]:
    """Return the exceptions of httpx or httpx2 when creating a client, sending a request or reading a
    response.

    ValueError: an invalid URL or proxy. ImportError: a proxy protocol that needs another library.
    """
    own = library.HTTPError, library.InvalidURL, library.CookieConflict, library.StreamError
    return (*own, ImportError, OSError, ValueError)


ERRORS = errors_of(httpx)

# By class name. `{message}` is that of the exception.
SENTENCES: Mapping[str, str] = {
    "ConnectTimeout": "connecting timed out",
    "ReadTimeout": "waiting for data timed out",
    "WriteTimeout": "sending the request timed out",
    "PoolTimeout": "waiting for a free connection timed out",
    "TimeoutException": "the request timed out",
    "ConnectError": "connecting failed: {message}",
    "ReadError": "the connection broke: {message}",
    "WriteError": "the connection broke while sending the request: {message}",
    "CloseError": "closing the connection failed: {message}",
    "NetworkError": "the network failed: {message}",
    "ProxyError": "the proxy rejected the request: {message}",
    "UnsupportedProtocol": "the URL is neither http:// nor https://: {message}",
    "LocalProtocolError": "the request is not valid HTTP, perhaps due to a line break in a token: {message}",
    "RemoteProtocolError": "the response is not valid HTTP: {message}",
    "ProtocolError": "the communication is not valid HTTP: {message}",
    "TransportError": "the connection failed: {message}",
    "DecodingError": "the compressed response is damaged: {message}",
    "TooManyRedirects": "too many redirects",
    "RequestError": "the request failed: {message}",
    "HTTPStatusError": "the server rejected the request: {message}",
    "HTTPError": "the request failed: {message}",
    "InvalidURL": "the URL is invalid: {message}",
    "CookieConflict": "the response sets two cookies with the same name: {message}",
    "StreamConsumed": "the response was read twice",
    "StreamClosed": "the response was read after its end",
    "ResponseNotRead": "the response was not read",
    "RequestNotRead": "the request was not read",
    "SSEError": "the server-sent events are invalid: {message}",
    "StreamError": "reading the response failed: {message}",
}


def explain(error: BaseException) -> str:
    """Describe an error as a part of a sentence.

    The text is that of the first exception in the chain of causes that is in SENTENCES, with the message of
    the innermost one.
    """
    chain = [error]
    while inner := chain[-1].__cause__ or chain[-1].__context__:
        if inner in chain:
            break
        chain.append(inner)
    message = next((str(one) for one in reversed(chain) if str(one)), type(chain[-1]).__name__)
    message = message.splitlines()[0][:200]
    if "CERTIFICATE_VERIFY_FAILED" in message or isinstance(chain[-1], ssl.SSLCertVerificationError):
        return (
            f"its certificate is not trusted ({message}); if a proxy intercepts TLS, set SSL_CERT_FILE to "
            "the proxy's certificate"
        )
    for one in chain:
        for kind in type(one).__mro__:
            if kind.__module__.partition(".")[0] in ("httpx", "httpx2") and kind.__name__ in SENTENCES:
                return SENTENCES[kind.__name__].format(message=message)
    return message


def client(**options: Any) -> httpx.Client:
    """Return an httpx.Client with the proxies and certificates of the environment.

    Raises ValueError with a message that names the variable if they are invalid.
    """
    return _made(httpx.Client, options)


def async_client(**options: Any) -> httpx.AsyncClient:
    """Return an httpx.AsyncClient; see `client`."""
    return _made(httpx.AsyncClient, options)


def _made(kind: Callable[..., C], options: dict[str, Any]) -> C:
    with environment():
        try:
            return kind(**options)
        except ERRORS as error:
            raise ValueError(fault_of_environment(error, os.environ)) from error


@contextlib.contextmanager
def environment() -> Iterator[None]:
    """Rewrite the proxy variables, within the context, in the form that all HTTP clients accept.

    GNOME sets ALL_PROXY=socks://HOST:PORT, and many users set NO_PROXY=[::1]; httpx and httpx2 reject both.
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
    """[::1] and [::1]:8080 -> ::1; HOST:PORT -> HOST, because httpx does not support ports here."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    name, colon, port = host.partition(":")
    return name if colon and port.isdigit() else host


def fault_of_environment(error: Exception, environ: Mapping[str, str]) -> str:
    """Describe why a client could not be created: an invalid proxy or certificate variable."""
    for name in _CERTIFICATES:
        if (value := environ.get(name)) and not os.path.exists(value):
            return f"{name} names {value}, which does not exist. Correct the variable, or unset it"
    # Without the password that a proxy URL may contain.
    found = {name: re.sub(r"//[^/@]*@", "//…@", environ[name]) for name in _PROXIES if environ.get(name)}
    proxies = " ".join(f"{name}={value}" for name, value in found.items())
    if isinstance(error, OSError):
        names = " ".join(f"{name}={environ[name]}" for name in _CERTIFICATES if environ.get(name))
        return f"the certificates can't be read ({explain(error)}){f'. Check {names}' if names else ''}"
    return (
        f"the proxy settings are invalid ({explain(error)}). Check {proxies or 'the system settings'}. A "
        "proxy is http://HOST:PORT, https://, socks5:// or socks5h://"
    )


def retry_after_s(value: str | None) -> int | None:
    """Return the seconds of a Retry-After header, which may be a date; None if it is missing or invalid."""
    if not value:
        return None
    with contextlib.suppress(ValueError, OverflowError):
        return max(math.ceil(float(value)), 0)
    with contextlib.suppress(ValueError, TypeError, IndexError):
        return max(math.ceil(email.utils.parsedate_to_datetime(value).timestamp() - time.time()), 0)
    return None


class Busy(FetchError):
    """The server is temporarily unavailable; a retry can succeed."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The source of a download, for error messages.

    `ref` is what is downloaded, `server` and `endpoint` the server's name and URL, and `otherwise` the
    alternative if it fails, as the end of a sentence ("Try again later, or …").
    """

    ref: str
    server: str
    endpoint: str
    otherwise: str

    def refused(self, status: int, retry_after: str = "") -> FetchError:
        """Return the error for a response with this HTTP status and Retry-After header."""
        kind, wait_s = (Busy, retry_after_s(retry_after)) if status in _BUSY else (FetchError, None)
        why, next_step = self.reason(status, wait_s)
        return kind(f"{self.ref} can't be downloaded: {self.server} {why}. {next_step}", retry_after_s=wait_s)

    def reason(self, status: int, wait_s: int | None) -> tuple[str, str]:
        """Return the reason of a status, as the end of a sentence, and the next step."""
        when = "later" if wait_s is None else f"in {wait_s} s"
        return f"returned the status {status}", f"Try again {when}, or {self.otherwise}."

    def unreachable(self, error: Exception) -> HubUnreachable:
        """Return the error for a server that does not respond."""
        return HubUnreachable(
            f"{self.ref} can't be downloaded: {self.server} can't be reached at {self.endpoint} "
            f"({explain(error)}). Check the network and, if you need a proxy, HTTPS_PROXY, or "
            f"{self.otherwise}."
        )

    def web_page(self, host: str) -> HubUnreachable:
        """Return the error for a web page in place of the data."""
        return HubUnreachable(
            f"{self.ref} can't be downloaded: {host} returned a web page instead of the data of "
            f"{self.server}. The network may require a login (open any page in a browser), or a proxy blocks "
            "the download. "
            f"Otherwise, {self.otherwise}."
        )


def is_near(host: str) -> bool:
    """Return whether a host is always reached without a proxy: this machine, an address of a private network,
    or a name without a dot, such as that of a container."""
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return "." not in host or host.endswith((".localhost", ".local", ".internal"))
    return address.is_private or address.is_loopback or address.is_link_local
