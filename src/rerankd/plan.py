"""(pure) A request as texts to score: each text once, in micro-batches, and back to one value a document."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rerankd.window import Chunks

# A micro-batch is what one call to the engine scores: large enough that the call costs nothing beside it,
# small enough that a cancelled request soon stops.
_BATCH_TEXTS = 32
_BATCH_CHARACTERS = 64 * 1024


@dataclass(frozen=True, slots=True)
class Plan:
    """`texts` to score, each once; `parts` holds, for each document, which of them it is made of."""

    texts: tuple[str, ...]
    parts: tuple[tuple[int, ...], ...]

    def batches(self) -> Iterator[range]:
        """Consecutive ranges of `texts`, each a micro-batch."""
        start = characters = 0
        for at, text in enumerate(self.texts):
            if at > start and (at - start == _BATCH_TEXTS or characters + len(text) > _BATCH_CHARACTERS):
                yield range(start, at)
                start, characters = at, 0
            characters += len(text)
        if start < len(self.texts):
            yield range(start, len(self.texts))

    def merge(self, raw: Sequence[float]) -> list[float]:
        """One raw value a document: that of its best chunk."""
        return [max(raw[part] for part in parts) for parts in self.parts]


def make(documents: Sequence[Chunks]) -> Plan:
    """The plan for documents cut to the window. Texts that are equal are scored once."""
    places: dict[str, int] = {}
    parts = tuple(
        tuple(places.setdefault(text, len(places)) for text in document.texts) for document in documents
    )
    return Plan(tuple(places), parts)


def clean(text: str, *, nfc: bool = False) -> str:
    """`text` without what no tokenizer takes (lone surrogates become U+FFFD, NUL a space), composed if
    `nfc`."""
    text = text.replace("\0", " ")
    if text.isascii():
        return text
    text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return unicodedata.normalize("NFC", text) if nfc else text
