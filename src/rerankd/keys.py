"""API keys: the settings `api_key` and `api_keys_file`, and creation of new keys.

`api_key` is one key with the name "default". `api_keys_file` has one key per line, NAME:SHA256 or
NAME:SHA256:PRIORITY, with the SHA-256 of the key in hex. `rerankd key new NAME` creates a key. Keys are 32
random bytes, so a plain hash can't be reversed, unlike the hash of a password. rerankd reads the file at its
start and on SIGHUP.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, cast, get_args

from rerankd.config import Settings
from rerankd.domain import Priority
from rerankd.errors import ConfigError

DEFAULT = "default"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LINE = re.compile(
    rf"({_NAME.pattern})\s*:\s*([0-9a-fA-F]{{64}})(?:\s*:\s*({'|'.join(get_args(Priority))}))?"
)
# Makes keys that were published by mistake easy to find.
_PREFIX = "rk-"


class Key(NamedTuple):
    """An API key. `digest` is its SHA-256 in hex; `priority` is the weight of its client in the queue."""

    name: str
    digest: str
    priority: Priority = "normal"

    @property
    def line(self) -> str:
        """The key as a line of the file."""
        return ":".join(self[: 2 if self.priority == "normal" else 3]) + "\n"


class Keys:
    """The API keys of a service."""

    def __init__(self, keys: Iterable[Key], *, is_required: bool) -> None:
        self._keys = {key.digest: key for key in keys}
        self._is_required = is_required

    def __bool__(self) -> bool:
        """Whether a key is required. If one is required and the file has none, every request is rejected."""
        return self._is_required

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, sent: bytes) -> Key | None:
        """Return the key with these bytes, which a client sent in a header, or None if it is unknown.

        The lookup is not constant-time, but its timing can reveal only digests, which can't be reversed.
        """
        return self._keys.get(hashlib.sha256(sent).hexdigest())


def read(settings: Settings) -> Keys:
    """Return the keys of these settings. Raises ConfigError for a file that can't be read or trusted."""
    keys = list(read_file(settings.api_keys_file).values()) if settings.api_keys_file is not None else []
    if settings.api_key is not None:
        # Clients encode headers as UTF-8 or Latin-1.
        for encoding in ("utf-8", "latin-1"):
            key = settings.api_key.encode(encoding, "ignore")
            if key.decode(encoding) == settings.api_key:
                keys.append(Key(DEFAULT, hashlib.sha256(key).hexdigest()))
    return Keys(keys, is_required=settings.api_key is not None or settings.api_keys_file is not None)


def read_file(path: Path) -> dict[str, Key]:
    """Return the keys in a file by name. Raises ConfigError; its message never quotes a line, which may be a
    key."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):  # a pipe delivers its keys once and blocks the next reader
            raise ConfigError(
                f"The API key file {path} is not a regular file. Set api_keys_file to a regular file."
            )
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The API key file {path} can't be read: {error}.") from error
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(
            f"Other users can write to the API key file {path} and so give themselves access. Run: "
            f"chmod go-w {path}"
        )
    keys: dict[str, Key] = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        parts = _LINE.fullmatch(line)
        if parts is None:
            raise ConfigError(
                f"Line {number} of {path} is not NAME:SHA256 or NAME:SHA256:PRIORITY (a name, 64 hexadecimal "
                "digits, and low, normal or high). Create a key with `rerankd key new NAME`."
            )
        name, digest, priority = parts.groups(default="normal")
        key = Key(name, digest.lower(), cast(Priority, priority))
        if key.name in keys or key.name == DEFAULT:
            raise ConfigError(
                f"Line {number} of {path}: the name {key.name} is already used. Give each key its own name."
            )
        keys[key.name] = key
    return keys


def new(name: str, priority: Priority = "normal") -> tuple[str, Key]:
    """Return a random key and its entry for the file. Raises ConfigError for an invalid name."""
    if not _NAME.fullmatch(name) or name == DEFAULT:
        raise ConfigError(
            f"{name!r} is not a valid key name. A name has up to 64 letters, digits, dots, dashes and "
            f"underscores, starts with a letter or a digit, and is not {DEFAULT!r}."
        )
    key = _PREFIX + secrets.token_urlsafe(32)
    return key, Key(name, hashlib.sha256(key.encode()).hexdigest(), priority)
