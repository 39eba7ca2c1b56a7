"""Network errors: proxies, certificates, and the messages for the exceptions of httpx."""

from __future__ import annotations

import datetime
import email.utils
import subprocess
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import httpx
import httpx2
import pytest

from fake_hub import FakeHub, fake_hub
from fake_socks import socks_proxy
from rerankd import network_errors, pip
from rerankd.errors import RemoteError
from rerankd.remote_client import Remote
from support import GOLDEN, environment, rerankd

REPO, FILE = "org/tiny-GGUF", "tiny-Q8_0.gguf"


def errors_of(library: ModuleType) -> list[type[Exception]]:
    public = (getattr(library, name) for name in library.__all__)
    return [one for one in public if isinstance(one, type) and issubclass(one, Exception)]


@pytest.mark.parametrize("library", [httpx, httpx2])
def test_every_exception_of_the_library_has_a_message_and_is_caught(library: ModuleType) -> None:
    errors = errors_of(library)
    assert len(errors) > 20
    assert {one.__name__ for one in errors} - set(network_errors.SENTENCES) == set()
    assert [one for one in errors if not issubclass(one, network_errors.errors_of(library))] == []


def test_the_message_has_the_innermost_cause() -> None:
    try:
        try:
            raise OSError(111, "Connection refused")
        except OSError as error:
            raise httpx.ConnectError("All connection attempts failed") from error
    except httpx.ConnectError as error:
        assert network_errors.explain(error) == "connecting failed: [Errno 111] Connection refused"
    untrusted = httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate")
    assert "SSL_CERT_FILE" in network_errors.explain(untrusted)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7", 7), ("0", 0), ("1.2", 2), ("-3", 0), ("", None), ("soon", None), (None, None)],
)
def test_retry_after(value: str | None, seconds: int | None) -> None:
    assert network_errors.retry_after_s(value) == seconds


def test_retry_after_may_be_a_date() -> None:
    now = datetime.datetime.now(datetime.UTC)
    found = network_errors.retry_after_s(email.utils.format_datetime(now + datetime.timedelta(seconds=60)))
    assert found is not None and 55 < found <= 60


@pytest.mark.parametrize(
    ("host", "near"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("10.1.2.3", True),
        ("localhost", True),
        ("rerankd", True),
        ("host.docker.internal", True),
        ("api.cohere.com", False),
        ("8.8.8.8", False),
    ],
)
def test_hosts_that_need_no_proxy(host: str, near: bool) -> None:
    assert network_errors.is_near(host) is near


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with fake_hub(repos={REPO: {FILE: (GOLDEN / "xlmr-head.gguf").read_bytes()}}) as running:
        yield running


def pull(hub: FakeHub, home: Path, kind: str, **env: str) -> subprocess.CompletedProcess[str]:
    endpoints = {"HF_ENDPOINT": hub.url, "MODELSCOPE_ENDPOINT": hub.url, "HF_HOME": str(home / "hf")}
    caches = {"MODELSCOPE_CACHE": str(home / "ms"), "HOME": str(home)}
    return rerankd("pull", f"{kind}:{REPO}", "--no-check", home=home, **endpoints, **caches, **env)


@pytest.mark.parametrize("kind", ["hf", "ms"])
@pytest.mark.parametrize("scheme", ["socks", "socks5", "socks5h"])
def test_a_model_is_downloaded_through_a_socks_proxy(
    hub: FakeHub, tmp_path: Path, kind: str, scheme: str
) -> None:
    with socks_proxy() as (port, connections):
        ended = pull(hub, tmp_path, kind, ALL_PROXY=f"{scheme}://127.0.0.1:{port}", NO_PROXY="")
        assert ended.returncode == 0, ended.stderr
        assert connections


@pytest.mark.parametrize("kind", ["hf", "ms"])
@pytest.mark.parametrize("no_proxy", ["[::1]", "localhost,[::1]:8080,127.0.0.1", "*", "127.0.0.1:80,::1"])
def test_spellings_of_no_proxy(hub: FakeHub, tmp_path: Path, kind: str, no_proxy: str) -> None:
    ended = pull(hub, tmp_path, kind, NO_PROXY=no_proxy)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("kind", ["hf", "ms"])
@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"SSL_CERT_FILE": "/nowhere/ca.pem"}, "SSL_CERT_FILE names /nowhere/ca.pem, which does not exist"),
        ({"SSL_CERT_FILE": __file__}, "the certificates can't be read"),
        ({"ALL_PROXY": "gopher://user:secret@127.0.0.1:9"}, "the proxy settings are invalid"),
        ({"HTTP_PROXY": "http://127.0.0.1:port"}, "the proxy settings are invalid"),
        ({"HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": ""}, "can't be reached"),
        ({"ALL_PROXY": "socks5://127.0.0.1:9", "NO_PROXY": ""}, "can't be reached"),
    ],
)
def test_invalid_proxies_and_certificates_are_reported(
    hub: FakeHub, tmp_path: Path, kind: str, env: dict[str, str], says: str
) -> None:
    """Each ended in a traceback."""
    ended = pull(hub, tmp_path, kind, **env)
    assert (ended.returncode, "Traceback" in ended.stderr) == (5, False), ended.stderr
    assert says in ended.stderr
    assert "secret" not in ended.stderr


def test_a_remote_server_with_invalid_proxy_settings_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "gopher://127.0.0.1:9")
    with pytest.raises(RemoteError, match="the proxy settings are invalid"):
        Remote("https://api.example.com")
    Remote("http://127.0.0.1:9")  # needs no proxy
    with pytest.raises(RemoteError, match="can't be used"):
        Remote("http://[::1")


@pytest.fixture
def without_pip(tmp_path: Path) -> Path:
    """The Python of an environment like uv's: all of this one's packages but pip."""
    folder = tmp_path / "no-pip"
    venv.create(folder, with_pip=False)
    (site,) = (folder / "lib").glob("python*/site-packages")
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not entry.name.startswith("pip"):
            (site / entry.name).symlink_to(entry)
    return folder / "bin" / "python"


def test_an_environment_without_pip_uses_that_of_ensurepip(without_pip: Path, tmp_path: Path) -> None:
    if pip.bundled() is None:
        pytest.skip("this Python has no ensurepip; apt install python3-venv")
    program = (
        "from rerankd import pip; import subprocess, sys; sys.exit(subprocess.call([*pip.command(), '-V']))"
    )
    ended = subprocess.run([without_pip, "-c", program], capture_output=True, text=True, check=False)
    assert ended.stdout.startswith("pip "), ended.stderr


def test_an_environment_without_any_pip_is_reported(without_pip: Path, tmp_path: Path) -> None:
    library = tmp_path / "library"  # hides Python's own
    (library / "ensurepip").mkdir(parents=True)
    (library / "ensurepip" / "__init__.py").touch()
    env = environment(tmp_path / "home", PYTHONPATH=str(library), RERANKD_MODEL="builtin:e5")
    for arguments in (["serve", "--port", "0"], ["doctor"]):
        ended = subprocess.run(
            [without_pip, "-m", "rerankd", *arguments], env=env, capture_output=True, text=True, timeout=120
        )
        assert "This Python environment has no pip" in ended.stderr + ended.stdout
        assert ended.returncode == (5 if arguments[0] == "serve" else 1)
        assert "Traceback" not in ended.stderr


def test_pip_uses_the_index_of_uv() -> None:
    of_uv = {"UV_DEFAULT_INDEX": "https://a/simple", "UV_INDEX": "inner=https://b/simple https://c/x=y"}
    found = pip.environment(of_uv)
    assert found["PIP_INDEX_URL"] == "https://a/simple"
    assert found["PIP_EXTRA_INDEX_URL"] == "https://b/simple https://c/x=y"
    assert pip.environment({**of_uv, "PIP_INDEX_URL": "https://mine"})["PIP_INDEX_URL"] == "https://mine"
