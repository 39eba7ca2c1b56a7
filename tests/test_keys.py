"""API keys: rejected settings, comparison, and key files."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from rerankd import config, keys
from rerankd.config import Settings
from rerankd.errors import ConfigError
from support import rerankd, until

sys.path.append(str(Path(__file__).parent / "faults"))
from served import Service, service

BODY = {"query": "q", "documents": ["a"]}


@pytest.mark.parametrize("blank", ["", " ", "\n", "\t \r\n"])
def test_a_blank_key_is_no_open_server(blank: str) -> None:
    with pytest.raises(ConfigError, match=r"^RERANKD_API_KEY: .*would admit every client"):
        config.load("", {"RERANKD_API_KEY": blank}, {})
    with pytest.raises(ConfigError, match=r"^RERANKD_API_KEYS_FILE: .*it is blank; name a path"):
        config.load("", {"RERANKD_API_KEYS_FILE": blank}, {})
    with pytest.raises(ConfigError, match="would admit every client"):
        config.load("", {}, {"api_key": blank})
    with pytest.raises(ConfigError, match="would admit every client"):
        config.load(f"api_key = {blank!r}".replace("'", '"'), {}, {})


def test_a_key_that_no_header_can_contain_is_rejected_and_not_shown() -> None:
    with pytest.raises(ConfigError, match="a header can't contain") as caught:
        config.load("", {"RERANKD_API_KEY": "sec\nret"}, {})
    assert "sec" not in caught.value.message


def test_a_blank_key_ends_the_start_with_the_reason(tmp_path: Path) -> None:
    ended = rerankd("serve", home=tmp_path, RERANKD_API_KEY="")
    assert ended.returncode == 2
    assert "RERANKD_API_KEY: api_key can't be used: an empty value would admit every client" in ended.stderr


@pytest.mark.parametrize(
    ("key", "sent"),
    [
        ("secret\n", b"secret"),  # from a file
        (" secret\r\n", b"secret"),
        ("schlüssel", "schlüssel".encode()),
        ("schlüssel", "schlüssel".encode("latin-1")),
        ("钥匙", "钥匙".encode()),
        ("a" * 4000, b"a" * 4000),
    ],
)
def test_the_key_is_accepted_in_any_encoding(key: str, sent: bytes) -> None:
    assert keys.read(Settings(api_key=key)).find(sent) == (
        "default",
        hashlib.sha256(sent).hexdigest(),
        "normal",
    )


@pytest.mark.parametrize("sent", [b"", b"Secret", b"secret\x00", "钥匙".encode("gb18030"), b"?", b"\xff"])
def test_a_wrong_key_is_rejected(sent: bytes) -> None:
    for key in ("secret", "钥匙", "schlüssel"):
        assert keys.read(Settings(api_key=key)).find(sent) is None


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


DIGEST = hashlib.sha256(b"k").hexdigest()


@pytest.mark.parametrize(
    ("text", "mode", "says"),
    [
        ("laptop:rk-secret", 0o600, "Line 1 of .* is not NAME:SHA256"),
        (f"# keys\n\n{DIGEST}\n", 0o600, "Line 3 of"),
        (f"a b:{DIGEST}", 0o600, "is not NAME:SHA256"),
        (f"a:{DIGEST}:urgent", 0o600, "NAME:SHA256:PRIORITY .a name, .* and low, normal or high"),
        (f"a:{DIGEST}:", 0o600, "is not NAME:SHA256"),
        (f"a:{DIGEST}:low:high", 0o600, "is not NAME:SHA256"),
        ("a:rk-secret:low", 0o600, "is not NAME:SHA256"),
        (f"a:{DIGEST}\na:{DIGEST}", 0o600, "Line 2 of .*: the name a is already used"),
        (f"default:{DIGEST}", 0o600, "the name default is already used"),
        (f"a:{DIGEST}", 0o620, "chmod go-w"),
        (f"a:{DIGEST}", 0o602, "chmod go-w"),
        ("# nobody yet\n", 0o600, "contains no key. Create one with `rerankd key new NAME`"),
    ],
)
def test_a_file_of_keys_that_can_not_be_trusted_ends_the_start(
    text: str, mode: int, says: str, tmp_path: Path
) -> None:
    from rerankd import Reranker

    path = write(tmp_path / "keys", text, mode)
    with pytest.raises(ConfigError, match=says) as caught:
        Reranker(Settings(api_keys_file=path, home=tmp_path))
    assert "rk-secret" not in caught.value.message


def test_a_pipe_as_key_file_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "keys", 0o600)
    with pytest.raises(ConfigError, match="not a regular file"):
        keys.read(Settings(api_keys_file=tmp_path / "keys"))


def test_a_missing_key_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"can't be read: .*No such file"):
        keys.read(Settings(api_keys_file=tmp_path / "none"))


def key(*arguments: str, file: Path, home: Path) -> str:
    ended = rerankd("key", *arguments, "--file", str(file), home=home)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def test_a_key_has_the_priority_of_its_line(tmp_path: Path) -> None:
    names = ["a", "b", "c", "d"]
    digests = [hashlib.sha256(name.encode()).hexdigest() for name in names]
    lines = [f"{name}:{digest}" for name, digest in zip(names, digests, strict=True)]
    ends = ["", ":low", " : high ", ":normal"]
    file = write(tmp_path / "keys", "\n".join(line + end for line, end in zip(lines, ends, strict=True)))
    known = keys.read(Settings(api_keys_file=file))
    found = [known.find(name.encode()) for name in names]
    priorities = ["normal", "low", "high", "normal"]
    assert found == [*zip(names, digests, priorities, strict=True)]


def test_keys_are_created_listed_and_removed(tmp_path: Path) -> None:
    file = tmp_path / "etc" / "keys"
    made = key("new", "laptop", file=file, home=tmp_path)
    write(file, "# who is who\n" + file.read_text(), 0o640)
    other = key("new", "dify", "--priority", "low", file=file, home=tmp_path)
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert made not in file.read_text() and len(made) > 40
    told = [line.split() for line in key("list", file=file, home=tmp_path).splitlines()]
    assert [(name, priority) for name, _, priority in told] == [("laptop", "normal"), ("dify", "low")]
    known = keys.read(Settings(api_keys_file=file))
    assert [found and found.name for found in map(known.find, (made.encode(), other.encode()))] == [
        "laptop",
        "dify",
    ]
    again = rerankd("key", "new", "dify", "--file", str(file), home=tmp_path)
    assert again.returncode == 2 and "already has a key named dify" in again.stderr
    key("remove", "laptop", file=file, home=tmp_path)
    assert file.read_text().startswith("# who is who\n")
    assert keys.read(Settings(api_keys_file=file)).find(made.encode()) is None
    wrong = rerankd("key", "new", "x", "--priority", "urgent", "--file", str(file), home=tmp_path)
    assert wrong.returncode == 2 and "'low', 'normal', 'high'" in wrong.stderr
    gone = rerankd("key", "remove", "laptop", "--file", str(file), home=tmp_path)
    assert gone.returncode == 2 and "no key named laptop" in gone.stderr


def test_a_new_key_file_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    key("new", "a", file=tmp_path / "keys", home=tmp_path)
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o600


@pytest.fixture
def file(tmp_path: Path) -> Path:
    lines = (f"{name}:{hashlib.sha256(name.encode()).hexdigest()}" for name in ("laptop", "dify"))
    return write(tmp_path / "keys", "\n".join(lines))


@contextlib.contextmanager
def served(tmp_path: Path, file: Path) -> Iterator[Service]:
    with service(tmp_path, api_keys_file=file, open_metrics=True) as it:
        yield it


def status(it: Service, sent: bytes) -> int:
    with it.client() as client:
        headers: list[tuple[bytes, bytes]] = [(b"authorization", b"Bearer " + sent)]
        return client.post("/v1/rerank", json=BODY, headers=httpx.Headers(headers)).status_code


def test_a_removed_key_is_refused_at_once(tmp_path: Path, file: Path) -> None:
    with served(tmp_path, file) as it:
        assert (status(it, b"laptop"), status(it, b"dify"), status(it, b"x")) == (200, 200, 401)
        first, second = file.read_text().splitlines()
        file.write_text(first)
        it.signal(signal.SIGHUP)
        until(lambda: status(it, b"dify") == 401)
        assert status(it, b"laptop") == 200
        file.write_text("")  # the last one is removed: nobody is let in, and not everybody
        it.signal(signal.SIGHUP)
        until(lambda: status(it, b"laptop") == 401)
        assert it.get("/v1/models").status_code == 401
        file.write_text("damaged")
        it.signal(signal.SIGHUP)
        until(lambda: "is not NAME:SHA256" in it.output)
        assert status(it, b"laptop") == 401
        file.write_text(f"{first}\n{second}")
        it.signal(signal.SIGHUP)
        until(lambda: status(it, b"dify") == 200)


def test_metrics_tell_whose_key_and_which_model_it_was(tmp_path: Path, file: Path) -> None:
    with served(tmp_path, file) as it:
        status(it, b"laptop")
        status(it, b"wrong")
        text = it.get("/metrics").text
        assert (
            'rerankd_requests_total{dialect="jina",key="laptop",model="xlmr-head",status="200"} 1.0' in text
        )
        assert 'rerankd_requests_total{dialect="jina",key="",model="",status="401"} 1.0' in text
        assert 'rerankd_request_seconds_count{dialect="jina",model="xlmr-head"} 1.0' in text


def test_a_key_that_is_not_ascii_is_accepted_over_a_socket(tmp_path: Path) -> None:
    with service(tmp_path, api_key="schlüssel 钥匙\n") as it:
        assert status(it, "schlüssel 钥匙".encode()) == 200
        assert status(it, b"schl\xfcssel") == 401


def test_the_programs_own_commands_send_a_key_that_is_not_ascii(tmp_path: Path) -> None:
    with service(tmp_path, api_key="schlüssel") as it:
        port = it.url.rpartition(":")[2]
        ended = rerankd("status", home=tmp_path, RERANKD_API_KEY="schlüssel", RERANKD_PORT=port)
        assert ended.returncode == 0, ended.stderr
