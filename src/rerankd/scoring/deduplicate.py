"""(pure) A request as texts to score, each once, and back to one value a document."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class UniqueTexts:
    """`texts` to score, each once; `text_index` holds, for each document, which of them it is. None: it is not
    scored, since it is blank, or left out (`unscored`)."""

    texts: tuple[str, ...]
    text_index: tuple[int | None, ...]
    unscored: tuple[int, ...] = ()

    @property
    def blank(self) -> tuple[int, ...]:
        """The documents without anything to read."""
        left_out = {*self.unscored}
        return tuple(at for at, text in enumerate(self.text_index) if text is None and at not in left_out)

    def documents(self, texts: Sequence[int]) -> tuple[int, ...]:
        """The documents that are one of these texts."""
        wanted = {*texts}
        return tuple(at for at, text in enumerate(self.text_index) if text in wanted) if wanted else ()


def unique_texts(documents: Sequence[str], limit: int | None = None) -> UniqueTexts:
    """The plan for documents that are clean. Equal ones are scored once, blank ones never, and only the first
    `limit` are read."""
    found: dict[str, int] = {}
    text_index: list[int | None] = []
    unscored: list[int] = []
    for at, text in enumerate(documents):
        if is_blank(text):
            text_index.append(None)
        elif limit is not None and at >= limit and text not in found:
            text_index.append(None)
            unscored.append(at)
        else:
            text_index.append(found.setdefault(text, len(found)))
    return UniqueTexts(tuple(found), tuple(text_index), tuple(unscored))


def is_blank(text: str) -> bool:
    """Whether nothing of `text` can be seen: it has only spaces, control and format characters (a byte order
    mark, zero-width spaces). An embedding model may put such a text above all others."""
    return all(character.isspace() or unicodedata.category(character) in ("Cc", "Cf") for character in text)


def clean(text: str, *, nfc: bool = False) -> str:
    """`text` without what no tokenizer takes (lone surrogates become U+FFFD, NUL a space), composed if
    `nfc`."""
    text = text.replace("\0", " ")
    if text.isascii():
        return text
    text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return unicodedata.normalize("NFC", text) if nfc else text


def document_list(documents: Sequence[int]) -> str:
    """Documents by their indexes, the first 20 of them: document 1; documents 1, 4, 7."""
    more = f" and {len(documents) - 20} more" if len(documents) > 20 else ""
    return f"document{'s' * (len(documents) > 1)} {', '.join(map(str, documents[:20]))}{more}"
