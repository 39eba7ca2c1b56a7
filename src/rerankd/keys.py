"""The keys that let clients in.

`api_key` is one key, named "default". `api_keys_file` holds several, one a line: NAME:SHA256 or
NAME:SHA256:PRIORITY, with the SHA-256 of the key in hex. `rerankd key new NAME` makes one. The keys are
random (32 bytes), so a plain hash of them can't be reversed, unlike one of a password. rerankd reads the file
at the start and on SIGHUP.
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
# Makes a key that was published by mistake easy to search for.
_PREFIX = "rk-"


class Key(NamedTuple):
    """A key that lets a client in. `digest` is its SHA-256 in hex; `priority` weighs this client's requests
    against those of other clients."""

    name: str
    digest: str
    priority: Priority = "normal"

    @property
    def line(self) -> str:
        """The key as a line of a file."""
        return ":".join(self[: 2 if self.priority == "normal" else 3]) + "\n"


class Keys:
    """The keys of a service."""

    def __init__(self, keys: Iterable[Key], *, is_asked: bool) -> None:
        self._keys = {key.digest: key for key in keys}
        self._is_asked = is_asked

    def __bool__(self) -> bool:
        """Whether a key is asked for. Without any in the file, nobody is let in."""
        return self._is_asked

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, sent: bytes) -> Key | None:
        """The key that a client sent, as the bytes of its header; None for no key of these.

        What the time of the look-up tells is about the digest of the sent key, which leads nowhere.
        """
        return self._keys.get(hashlib.sha256(sent).hexdigest())


def read(settings: Settings) -> Keys:
    """The keys of these settings. Raises ConfigError for a file that can't be read or trusted."""
    keys = list(read_file(settings.api_keys_file).values()) if settings.api_keys_file is not None else []
    if settings.api_key is not None:
        # Clients send a header as UTF-8 or as Latin-1.
        for encoding in ("utf-8", "latin-1"):
            key = settings.api_key.encode(encoding, "ignore")
            if key.decode(encoding) == settings.api_key:
                keys.append(Key(DEFAULT, hashlib.sha256(key).hexdigest()))
    return Keys(keys, is_asked=settings.api_key is not None or settings.api_keys_file is not None)


def read_file(path: Path) -> dict[str, Key]:
    """The keys in a file, by name. Raises ConfigError; the message never quotes a line, which may be a
    key."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):  # a pipe gives its keys once, and then holds up whoever reads it
            raise ConfigError(f"The file of API keys {path} is not a plain file. Name one in api_keys_file.")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The file of API keys {path} can't be read: {error}.") from error
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(
            f"Others than its owner may write to the file of API keys {path}, and so let themselves in: "
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
                f"Line {number} of {path} is not NAME:SHA256 or NAME:SHA256:PRIORITY: a name, 64 hexadecimal "
                "digits, and low, normal or high. Make a key with `rerankd key new NAME`."
            )
        name, digest, priority = parts.groups(default="normal")
        key = Key(name, digest.lower(), cast(Priority, priority))
        if key.name in keys or key.name == DEFAULT:
            raise ConfigError(
                f"Line {number} of {path}: the name {key.name} is taken. Give each key its own."
            )
        keys[key.name] = key
    return keys


def new(name: str, priority: Priority = "normal") -> tuple[str, Key]:
    """A random key, and what a file keeps of it. Raises ConfigError for what can't be its name."""
    if not _NAME.fullmatch(name) or name == DEFAULT:
        raise ConfigError(
            f"{name!r} can't be the name of a key. A name has up to 64 letters, digits, dots, dashes and "
            f"underscores, starts with a letter or a digit, and is not {DEFAULT!r}."
        )
    key = _PREFIX + secrets.token_urlsafe(32)
    return key, Key(name, hashlib.sha256(key.encode()).hexdigest(), priority)
