"""The keys that let clients in.

`api_key` is one key, named "default". `api_keys_file` holds several, a line each: a name, a colon, and the
SHA-256 of the key in hex. `rerankd key new NAME` makes one. The keys are random (32 bytes), so a plain hash
of them can't be reversed, unlike one of a password. rerankd reads the file at the start and on SIGHUP.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path

from rerankd.config import Settings
from rerankd.errors import ConfigError

DEFAULT = "default"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
# Makes a key that was published by mistake easy to search for.
_PREFIX = "rk-"


class Keys:
    """Names by the SHA-256 of their key."""

    def __init__(self, names: Mapping[str, str], *, is_asked: bool) -> None:
        self._names = dict(names)
        self._is_asked = is_asked

    def __bool__(self) -> bool:
        """Whether a key is asked for. Without any in the file, nobody is let in."""
        return self._is_asked

    def __len__(self) -> int:
        return len(self._names)

    def name_of(self, sent: bytes) -> str | None:
        """The name of the key that a client sent, as the bytes of its header; None for no key of these.

        What the time of the look-up tells is about the digest of the sent key, which leads nowhere.
        """
        return self._names.get(hashlib.sha256(sent).hexdigest())


def read(settings: Settings) -> Keys:
    """The keys of these settings. Raises ConfigError for a file that can't be read or trusted."""
    names: dict[str, str] = {}
    if settings.api_keys_file is not None:
        names = {digest: name for name, digest in read_file(settings.api_keys_file).items()}
    if settings.api_key is not None:
        # Clients send a header as UTF-8 or as Latin-1.
        for encoding in ("utf-8", "latin-1"):
            key = settings.api_key.encode(encoding, "ignore")
            if key.decode(encoding) == settings.api_key:
                names[hashlib.sha256(key).hexdigest()] = DEFAULT
    return Keys(names, is_asked=settings.api_key is not None or settings.api_keys_file is not None)


def read_file(path: Path) -> dict[str, str]:
    """The digests in a file of keys, by name. Raises ConfigError; the message never quotes a line,
    which may be a key."""
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
    digests: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, _, digest = (part.strip() for part in line.partition(":"))
        if not _NAME.fullmatch(name) or not _DIGEST.fullmatch(digest):
            raise ConfigError(
                f"Line {number} of {path} is not NAME:SHA256, a name and 64 hexadecimal digits. Make a key "
                "with `rerankd key new NAME`."
            )
        if name in digests or name == DEFAULT:
            raise ConfigError(f"Line {number} of {path}: the name {name} is taken. Give each key its own.")
        digests[name] = digest.lower()
    return digests


def new() -> tuple[str, str]:
    """A random key, and its digest."""
    key = _PREFIX + secrets.token_urlsafe(32)
    return key, hashlib.sha256(key.encode()).hexdigest()


def check_name(name: str) -> None:
    """Raise ConfigError for what can't be a key's name."""
    if not _NAME.fullmatch(name) or name == DEFAULT:
        raise ConfigError(
            f"{name!r} can't be the name of a key. A name has up to 64 letters, digits, dots, dashes and "
            f"underscores, starts with a letter or a digit, and is not {DEFAULT!r}."
        )
