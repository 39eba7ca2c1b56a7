"""(pure) A judge's prompt: a template, its control tokens, and texts that can't become any.

A causal reranker is asked a question whose answer is one of two label tokens. Its reference implementation
tokenises a prompt as every tokenizer does: control tokens (`<|im_start|>`) split the text first, and each
piece between them is tokenised whole. So a template is split at its control tokens once, the texts are put
into the pieces, and each piece goes through the tokenizer as plain text: the query and the document join
their neighbours' tokens exactly as in the reference (tokenising a document apart from the words before it
moves the log-odds by 0.04), and a document that spells `<|im_end|>` stays a text that does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

Piece = int | str
"""A control token's id, or text to be tokenised whole."""

PART_MARK = "\x1e"
INSTRUCTION = "{instruction}"
DOCUMENT = "{document}"
_PLACEHOLDER = re.compile(r"\{(instruction|query|document)\}")


def split(template: str, control_tokens: Mapping[str, int]) -> list[Piece]:
    """The template cut at its control tokens and part marks, in order; no piece of text is empty."""
    pieces: list[Piece] = []
    # The longest first: one may begin with another.
    texts = sorted((text for text in control_tokens if text), key=len, reverse=True)
    control = re.compile("|".join(map(re.escape, texts)) or r"(?!)")
    for part in template.split(PART_MARK):
        at = 0
        for match in control.finditer(part):
            pieces += [part[at : match.start()], control_tokens[match.group()]]
            at = match.end()
        pieces.append(part[at:])
    return [piece for piece in pieces if piece != ""]


def placeholders(text: str) -> list[str]:
    """Which texts of a request a template, or a piece of one, takes; in order."""
    return _PLACEHOLDER.findall(text)


def fill(text: str, *, instruction: str, query: str, document: str) -> str:
    """Put the texts into a piece, in one pass: a query that contains `{document}` keeps it as it is."""
    values = {"instruction": instruction, "query": query, "document": document}
    return _PLACEHOLDER.sub(lambda match: values[match.group(1)], text)
