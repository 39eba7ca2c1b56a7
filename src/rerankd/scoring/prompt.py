"""(pure) The prompt of a causal LM: a template, its control tokens, and texts that can't become control
tokens.

A causal reranker answers a question with one of two label tokens. Its reference implementation tokenizes the
prompt as every tokenizer does: control tokens (`<|im_start|>`) split the text, and each piece between them is
tokenized as a whole. So the template is split at its control tokens once, the texts are inserted into the
pieces, and each piece is tokenized as plain text. The query and the document share tokens with the words
around them exactly as in the reference: tokenizing a document separately moves the log-odds by 0.04. A
document that contains `<|im_end|>` remains plain text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

Piece = int | str
"""A control token's id, or a text that is tokenized as a whole."""

PART_MARK = "\x1e"
INSTRUCTION = "{instruction}"
QUERY = "{query}"
DOCUMENT = "{document}"
_PLACEHOLDER = re.compile(r"\{(instruction|query|document)\}")
_OPTIONAL = re.compile(r"\{\?instruction\}(.*?)\{/instruction\}", re.DOTALL)
_MARKS = ("{?instruction}", "{/instruction}")


def choose(template: str, *, instructed: bool) -> str:
    """The template for a prompt with or without an instruction: keep or remove the optional parts, which
    stand between `{?instruction}` and `{/instruction}`."""
    return _OPTIONAL.sub(r"\1" if instructed else "", template)


def stray_mark(template: str) -> str:
    """The first mark of an optional part that has no counterpart, "" if all parts are complete."""
    left = _OPTIONAL.sub("", template)
    return next((mark for mark in _MARKS if mark in left), "")


def split(template: str, control_tokens: Mapping[str, int]) -> list[Piece]:
    """Split the template at its control tokens and part marks. No piece of text is empty."""
    pieces: list[Piece] = []
    # Longest first, because one control token may be a prefix of another.
    texts = sorted((text for text in control_tokens if text), key=len, reverse=True)
    control = re.compile("|".join(map(re.escape, texts)) or r"(?!)")
    for part in template.split(PART_MARK):
        at = 0
        for match in control.finditer(part):
            pieces += [part[at : match.start()], control_tokens[match.group()]]
            at = match.end()
        pieces.append(part[at:])
    return [piece for piece in pieces if piece != ""]


def is_document_first(template: str) -> bool:
    """Whether the document is before the query."""
    return 0 <= template.find(DOCUMENT) < template.find(QUERY)


def placeholders(text: str) -> list[str]:
    """The names of the placeholders in a template or a piece of one, in order."""
    return _PLACEHOLDER.findall(text)


def fill(text: str, **values: str) -> str:
    """Insert the texts, by the names of their placeholders, into a piece in one pass, so that a query that
    contains `{document}` stays as it is."""
    placeholder = re.compile(rf"\{{({'|'.join(values)})\}}")
    return placeholder.sub(lambda match: values[match.group(1)], text)
