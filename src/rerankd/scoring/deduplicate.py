"""(pure) Deduplicate the documents of a request: each distinct text is scored once."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from rerankd.content import Content, with_images


@dataclass(frozen=True, slots=True)
class UniqueTexts:
    """The distinct texts of a request. `text_index` holds, for each document, its index in `texts`; it is
    None for a blank document, for the documents in `unscored`, which exceed `max_scored_documents`, and for
    those in `elsewhere`, which do not take part in this stage of a cascade."""

    texts: tuple[Content, ...]
    text_index: tuple[int | None, ...]
    unscored: tuple[int, ...] = ()
    elsewhere: frozenset[int] = frozenset()

    @property
    def blank(self) -> tuple[int, ...]:
        """Indexes of the blank documents."""
        left_out = self.elsewhere.union(self.unscored)
        return tuple(at for at, text in enumerate(self.text_index) if text is None and at not in left_out)

    def documents(self, texts: Sequence[int]) -> tuple[int, ...]:
        """Indexes of the documents whose text has one of these indexes."""
        wanted = {*texts}
        return tuple(at for at, text in enumerate(self.text_index) if text in wanted) if wanted else ()

    def first_documents(self, texts: Sequence[int]) -> list[int]:
        """Return, for each of these texts, the index of its first document."""
        first: dict[int | None, int] = {}
        for document, at in enumerate(self.text_index):
            first.setdefault(at, document)
        return [first[at] for at in texts]


def unique_texts(documents: Sequence[Content], limit: int | None = None) -> UniqueTexts:
    """Deduplicate documents that `clean` has returned. Blank ones are left out, and only the first `limit`
    documents are read."""
    found: dict[Content, int] = {}
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


def of_candidates(documents: Sequence[Content], candidates: Sequence[int]) -> UniqueTexts:
    """Deduplicate the documents with these indexes, none of which is blank. Their texts are in the order of
    `candidates`."""
    found: dict[Content, int] = {}
    text_index: list[int | None] = [None] * len(documents)
    for at in candidates:
        text_index[at] = found.setdefault(documents[at], len(found))
    elsewhere = frozenset(range(len(documents))).difference(candidates)
    return UniqueTexts(tuple(found), tuple(text_index), elsewhere=elsewhere)


def is_blank(text: Content) -> bool:
    """Whether `text` has no visible characters: only spaces, control and format characters (byte order mark,
    zero-width space). An embedding model may score such a text above all others. A document with images is
    not blank."""
    if not isinstance(text, str):
        return False
    return all(character.isspace() or unicodedata.category(character) in ("Cc", "Cf") for character in text)


def clean(text: str, *, nfc: bool = False) -> str:
    """Replace what tokenizers reject (lone surrogates become U+FFFD, NUL becomes a space); with `nfc`, also
    compose the text."""
    text = text.replace("\0", " ")
    if text.isascii():
        return text
    text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return unicodedata.normalize("NFC", text) if nfc else text


def clean_content(content: Content, *, nfc: bool = False) -> Content:
    """The same for a document that may have images."""
    if isinstance(content, str):
        return clean(content, nfc=nfc)
    return with_images(clean(content.text, nfc=nfc), content.images)


def document_list(documents: Sequence[int]) -> str:
    """List documents by index, up to 20 of them: "document 1"; "documents 1, 4, 7"."""
    more = f" and {len(documents) - 20} more" if len(documents) > 20 else ""
    return f"document{'s' * (len(documents) > 1)} {', '.join(map(str, documents[:20]))}{more}"
