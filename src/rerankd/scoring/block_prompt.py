"""(pure) The prompt of a listwise model: a query and a block of documents.

The template repeats the text between `{*documents}` and `{/documents}` for each document. There, `{document}`
is the document and `{number}` its number, which counts from 0; `{count}` is the number of documents. The
template is split at its control tokens, and each piece of text between them is tokenized as a whole, as in
the reference implementation (see prompt.py): a document shares a piece with the end of the passage before it.

A control token follows `{document}`, and one follows the last `{query}`: the model compares their states. A
causal model's states do not depend on later tokens, so the prompt ends there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rerankd.scoring import prompt
from rerankd.scoring.prompt import DOCUMENT, Piece

_BEGIN, _END = "{*documents}", "{/documents}"
_QUERY = "{query}"


def template_error(template: str, markers: Sequence[str]) -> str:
    """What is wrong with the template of a listwise model, "" if nothing."""
    if mark := prompt.stray_mark(template):
        return f"the template contains {mark} without its counterpart"
    if template.count(_BEGIN) != 1 or template.count(_END) != 1:
        return f"the template must contain {_BEGIN} and {_END} exactly once"
    each, after = template.partition(_BEGIN)[2].partition(_END)[::2]
    if len(markers) != 2:
        return "a listwise model needs two markers: that of a document and that of the query"
    if template.count(DOCUMENT) != 1 or f"{DOCUMENT}{markers[0]}" not in each:
        return f"the template must contain {DOCUMENT} once, between {_BEGIN} and {_END}, before {markers[0]}"
    if f"{_QUERY}{markers[1]}" not in after:
        return f"the template must contain {_QUERY}{markers[1]} after {_END}"
    return ""


def without_markers(text: str, markers: Sequence[str]) -> str:
    """A text of the user without the markers, which the reference implementation removes, too."""
    for marker in markers:
        text = text.replace(marker, "")
    return text


@dataclass(frozen=True, slots=True)
class Segments:
    """The pieces of a prompt: before the first document's text; up to the marker of each document; and the
    rest, up to the marker of the query."""

    before: Sequence[Piece]
    documents: Sequence[Sequence[Piece]]
    after: Sequence[Piece]


class BlockPrompt:
    """The prompt of one query. Texts can't become control tokens."""

    def __init__(
        self, template: str, control_tokens: Mapping[str, int], *, query: str, instruction: str
    ) -> None:
        chosen = prompt.choose(template, instructed=bool(instruction))
        before, _, rest = chosen.partition(_BEGIN)
        each, _, after = rest.partition(_END)
        self._parts = [prompt.split(part, control_tokens) for part in (before, each, after)]
        self._values = {"query": query, "instruction": instruction}

    def segments(self, documents: Sequence[str]) -> Segments:
        """The filled pieces of the prompt for these documents, at least one."""
        before, each, after = self._parts
        values = self._values | {"count": str(len(documents))}
        pieces = _filled(before, values)
        starts: list[int] = []
        for number, text in enumerate(documents):
            own = _filled(each, values | {"number": str(number), "document": text})
            # Two texts that meet are one piece, as they would be in the whole prompt.
            at = len(pieces) - _joins(pieces, own)
            starts.append(at + _place(each, DOCUMENT))
            _append(pieces, own)
        ends = [start + 2 for start in starts]  # behind the marker
        at = len(pieces) - _joins(pieces, after)
        last = at + max(place for place, one in enumerate(after) if isinstance(one, str) and _QUERY in one)
        _append(pieces, _filled(after, values))
        return Segments(
            pieces[: starts[0]],
            [pieces[start:end] for start, end in zip((starts[0], *ends), ends, strict=False)],
            pieces[ends[-1] : last + 2],
        )


def _filled(pieces: Sequence[Piece], values: Mapping[str, str]) -> list[Piece]:
    return [prompt.fill(one, **values) if isinstance(one, str) else one for one in pieces]


def _place(pieces: Sequence[Piece], placeholder: str) -> int:
    return next(at for at, one in enumerate(pieces) if isinstance(one, str) and placeholder in one)


def _joins(pieces: Sequence[Piece], more: Sequence[Piece]) -> bool:
    """Whether the last piece and the first one of `more` are both text."""
    return bool(pieces) and isinstance(pieces[-1], str) and isinstance(more[0], str)


def _append(pieces: list[Piece], more: list[Piece]) -> None:
    if _joins(pieces, more):
        pieces[-1:] = [f"{pieces[-1]}{more[0]}", *more[1:]]
    else:
        pieces += more
