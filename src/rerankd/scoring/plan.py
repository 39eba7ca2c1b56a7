"""(pure) A request as texts to score: each text once, in micro-batches, and back to one value a document."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rerankd.scoring.truncate import Chunks


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """How a kind of engine gets its work.

    A micro-batch, of up to so many `texts` and `characters`, is what one call to the engine scores.
    `at_engine` of them are there at a time, of one request no more than `of_one`; a new request gets its
    `first_turns` together.
    """

    texts: int
    characters: int
    at_engine: int
    of_one: int
    first_turns: int


# An engine that works on one call after the other: what is there is what another request has to wait for.
# Small micro-batches cost nothing while the next one waits at the engine: 9.8, 9.9, 9.4 and 9.3 documents a
# second with 4, 8, 16 and 32 texts (77 tokens each, 12 layers of 384, one core).
IN_TURN = BatchPolicy(texts=4, characters=16 * 1024, at_engine=2, of_one=2, first_turns=4)
# An engine that shares its time between the calls it has, and puts texts of one length together: it is given
# much at a time, and a little of everybody's.
SHARED = BatchPolicy(texts=64, characters=256 * 1024, at_engine=32, of_one=2, first_turns=1)


@dataclass(frozen=True, slots=True)
class Plan:
    """`texts` to score, each once; `parts` holds, for each document, which of them it is made of. A blank
    document has none, since a blank text is never scored."""

    texts: tuple[str, ...]
    parts: tuple[tuple[int, ...], ...]

    @property
    def blank(self) -> tuple[int, ...]:
        """The documents without a text to score."""
        return tuple(at for at, parts in enumerate(self.parts) if not parts)

    def merge(self, raw: Sequence[float | None]) -> list[float | None]:
        """One raw value a document: that of its best chunk; None where no chunk has one."""
        return [
            max((value for part in parts if (value := raw[part]) is not None), default=None)
            for parts in self.parts
        ]


def make(documents: Sequence[Chunks]) -> Plan:
    """The plan for documents cut to the window. Texts that are equal are scored once, blank ones never."""
    places: dict[str, int] = {}
    parts = tuple(
        tuple(places.setdefault(text, len(places)) for text in document.texts if not is_blank(text))
        for document in documents
    )
    return Plan(tuple(places), parts)


def micro_batches(texts: Sequence[str], most: int, most_characters: int) -> Iterator[range]:
    """Consecutive ranges of `texts`, each of no more texts and characters, but one text at least."""
    start = characters = 0
    for at, text in enumerate(texts):
        if at > start and (at - start == most or characters + len(text) > most_characters):
            yield range(start, at)
            start, characters = at, 0
        characters += len(text)
    if start < len(texts):
        yield range(start, len(texts))


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


def token_shares(tokens: int, query: str, texts: Sequence[str]) -> list[int]:
    """What each pair has of the tokens that a call read for all of them, by length in bytes. The sum is
    exact, a share is an estimate: most engines only count the call."""
    weights = itertools.accumulate(len(query.encode()) + len(text.encode()) for text in texts)
    marks = [0, *weights]
    whole = marks[-1] or 1
    return [tokens * end // whole - tokens * start // whole for start, end in itertools.pairwise(marks)]


def named(documents: Sequence[int]) -> str:
    """Documents by their indexes, the first 20 of them: document 1; documents 1, 4, 7."""
    more = f" and {len(documents) - 20} more" if len(documents) > 20 else ""
    return f"document{'s' * (len(documents) > 1)} {', '.join(map(str, documents[:20]))}{more}"
