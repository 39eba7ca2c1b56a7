"""Model references: parse a name such as hf:org/repo:Q8_0 or a path into a `ModelRef`, and render it.

    ref      = builtin | hub | name | path
    builtin  = "builtin:" word                        builtin:e5
    hub      = ("hf:" | "ms:") org "/" repo rest      hf: is Hugging Face, ms: is ModelScope
    rest     = "" | ":" quant | "/" file              hf:org/repo:Q8_0, ms:org/repo/folder/file.gguf
    name     = word ["/" word] [":" quant]            qwen3-reranker-8b:q4_k_m, BAAI/bge-reranker-v2-m3
    path     = anything else                          model.gguf, ./model, ~/models/x, /models/x

A name is the catalog's name of a model or an alias: the model's name on its hub, which contains one slash.
A text that could be a name may also be the relative path of a file or of a safetensors folder: **if that path
exists, it wins** (`Store.locate` checks). A text that ends in .gguf, or begins with a dot, a tilde or a
slash, is always a path. Prefixes always win: write `./hf:x` for a file named `hf:x`. The case of a prefix, of
a built-in model and of a quant does not matter. The quant `latest`, which Ollama's users append, means no
quant.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from rerankd.errors import UnknownModel

Hub = Literal["hf", "ms"]
Kind = Literal["builtin", "hf", "ms", "name", "path"]
LATEST = ":latest"
HUBS: tuple[Hub, ...] = get_args(Hub)

_WORD = r"[A-Za-z0-9_][A-Za-z0-9_.+-]*"
_QUANT = rf"(?::(?P<quant>{_WORD}))?"
_HUB = re.compile(rf"(?P<name>{_WORD}/{_WORD})(?:{_QUANT}|/(?P<file>[^:\0]+\.gguf))", re.IGNORECASE)
_NAME = re.compile(rf"(?P<name>{_WORD}(?:/{_WORD})?){_QUANT}")
_WEB = re.compile(r"https?://(?:www\.)?(?P<host>huggingface\.co|hf\.co|modelscope\.(?:cn|ai))/(?P<rest>.+)")
# The URL of a repository or of a file in it, after the host name.
_WEB_FILE = re.compile(r"^(?:models/)?(?P<repo>[^/]+/[^/]+)(?:/(?:resolve|blob)/[^/]+/(?P<file>[^?]+))?")


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A parsed model reference. `name` is the catalog's name, `org/repo` or the path, depending on `kind`.

    `file` is a path within the repository. `file` and `quant` are "" if the user leaves the choice to
    rerankd.
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
        """Whether the model may be on a hub."""
        return self.kind in ("hf", "ms", "name")


def parse(text: str) -> ModelRef:
    """Parse a reference. Raises UnknownModel if a hub's prefix is not followed by a valid repository name."""
    text = text.strip()
    if text.lower().endswith(LATEST):
        text = text[: -len(LATEST)]
    prefix, _, rest = text.partition(":")
    if prefix.lower() == "builtin":
        return ModelRef("builtin", rest.lower())
    if (prefix := prefix.lower()) in HUBS:
        match = _HUB.fullmatch(rest)
        if match is None:
            raise UnknownModel(
                f"{text!r} is not a valid model reference. Write {prefix}:ORG/REPO, {prefix}:ORG/REPO:QUANT "
                f"as in {prefix}:org/repo:Q8_0, or {prefix}:ORG/REPO/FILE.gguf."
            )
        file = match["file"] or ""
        if any(part in ("", ".", "..") for part in file.split("/")) and file:
            raise UnknownModel(
                f"{text!r} is not a valid model reference: {file!r} can't be a path in a repository."
            )
        return ModelRef(prefix, match["name"], match["quant"] or "", file)
    if web := _WEB.fullmatch(text):
        raise UnknownModel(f"{text!r} is a URL, not a model reference.{_as_ref(web)}")
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
