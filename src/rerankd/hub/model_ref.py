"""What a user types to name a model <-> `ModelRef`.

    ref      = builtin | hub | name | path
    builtin  = "builtin:" word                        builtin:e5
    hub      = ("hf:" | "ms:") org "/" repo rest      hf: is Hugging Face, ms: is ModelScope
    rest     = "" | ":" quant | "/" file              hf:org/repo:Q8_0, ms:org/repo/folder/file.gguf
    name     = word ["/" word] [":" quant]            qwen3-reranker-8b:q4_k_m, BAAI/bge-reranker-v2-m3
    path     = anything else                          model.gguf, ./model, ~/models/x, /models/x

A name is the catalog's, or an alias: what the model's maker calls it on a hub, which holds one slash.
What may be a name may also be the relative path of a file, or of a folder of safetensors: **what exists
wins** (`Store.locate` looks).
What ends in .gguf, or begins with a dot, a tilde or a slash, is always a path. The prefixes always win: a
file that is called `hf:x` is `./hf:x`. Quants are compared without regard to case.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from rerankd.errors import UnknownModel

Hub = Literal["hf", "ms"]
Kind = Literal["builtin", "hf", "ms", "name", "path"]
HUBS: tuple[Hub, ...] = get_args(Hub)

_WORD = r"[A-Za-z0-9_][A-Za-z0-9_.+-]*"
_QUANT = rf"(?::(?P<quant>{_WORD}))?"
_HUB = re.compile(rf"(?P<name>{_WORD}/{_WORD})(?:{_QUANT}|/(?P<file>[^:\0]+\.gguf))", re.IGNORECASE)
_NAME = re.compile(rf"(?P<name>{_WORD}(?:/{_WORD})?){_QUANT}")
_WEB = re.compile(r"https?://(?:www\.)?(?P<host>huggingface\.co|hf\.co|modelscope\.(?:cn|ai))/(?P<rest>.+)")
# What stands between a repository and a file of it in an address.
_WEB_FILE = re.compile(r"^(?:models/)?(?P<repo>[^/]+/[^/]+)(?:/(?:resolve|blob)/[^/]+/(?P<file>[^?]+))?")


@dataclass(frozen=True, slots=True)
class ModelRef:
    """One model as a user names it. `name` is the catalog's name, `org/repo`, or the path, by `kind`.

    `file` is a path within the repository; it and `quant` are "" where the user leaves the choice.
    """

    kind: Kind
    name: str
    quant: str = ""
    file: str = ""

    def __str__(self) -> str:
        prefix = "" if self.kind in ("name", "path") else f"{self.kind}:"
        quant = f":{self.quant}" if self.quant else ""
        return f"{prefix}{self.name}{quant}" + (f"/{self.file}" if self.file else "")

    @property
    def is_pullable(self) -> bool:
        """Whether it names something that a hub may have."""
        return self.kind in ("hf", "ms", "name")


def parse(text: str) -> ModelRef:
    """The reference that `text` is. Raises UnknownModel for a hub's prefix with something else behind it."""
    text = text.strip()
    prefix, _, rest = text.partition(":")
    if prefix == "builtin":
        return ModelRef("builtin", rest)
    if prefix in HUBS:
        match = _HUB.fullmatch(rest)
        if match is None:
            raise UnknownModel(
                f"{text!r} is not a reference to a model. Write {prefix}:ORG/REPO, {prefix}:ORG/REPO:QUANT "
                f"as in {prefix}:org/repo:Q8_0, or {prefix}:ORG/REPO/FILE.gguf."
            )
        file = match["file"] or ""
        if any(part in ("", ".", "..") for part in file.split("/")) and file:
            raise UnknownModel(
                f"{text!r} is not a reference to a model: {file!r} is no path in a repository."
            )
        return ModelRef(prefix, match["name"], match["quant"] or "", file)
    if web := _WEB.fullmatch(text):
        raise UnknownModel(f"{text!r} is an address, not a reference to a model.{_as_ref(web)}")
    if text.lower().endswith(".gguf") or text.startswith((".", "~", "/")):
        return ModelRef("path", text)
    if match := _NAME.fullmatch(text):
        return ModelRef("name", match["name"], match["quant"] or "")
    return ModelRef("path", text)


def _as_ref(web: re.Match[str]) -> str:
    hub = "ms" if web["host"].startswith("modelscope") else "hf"
    found = _WEB_FILE.match(web["rest"])
    if found is None:
        return ""
    return f" Write {hub}:{found['repo']}" + (f"/{found['file']}." if found["file"] else ".")
