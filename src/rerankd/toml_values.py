"""(pure) Values and keys in the syntax of TOML, for lines that users put into rerankd.toml."""

from __future__ import annotations

import json
from collections.abc import Sequence


def toml(value: str | Sequence[str]) -> str:
    """A string or a list of strings in TOML syntax."""
    # A JSON string is a valid TOML basic string, except that TOML requires DEL to be escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def toml_key(name: str) -> str:
    """A key in TOML syntax, in quotes if it needs them."""
    is_bare = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
    return name if is_bare else toml(name)
