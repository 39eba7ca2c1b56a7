"""(pure) A judge's prompt: a template, its control tokens, and texts that can't become any.

A causal reranker is asked a question whose answer is one of two label tokens. Its reference implementation
tokenises a prompt as every tokenizer does: control tokens (`<|im_start|>`) split the text first, and each
piece between them is tokenised whole. So a template is split at its control tokens once, the texts are put
into the pieces, and each piece goes through the tokenizer as plain text: the query and the document join
their neighbours' tokens exactly as in the reference (tokenising a document apart from the words before it
moves the log-odds by 0.04), and a document that spells `<|im_end|>` stays a text that does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

Piece = int | str
"""A control token's id, or text to be tokenised whole."""

PART_MARK = "\x1e"
INSTRUCTION = "{instruction}"
DOCUMENT = "{document}"
_PLACEHOLDER = re.compile(r"\{(instruction|query|document)\}")
# Beyond it float32 has no probability left: exp(-87) is the smallest one that is not denormal.
_LARGEST_LOG_ODDS = 87.0


def control_pattern(control_tokens: Mapping[str, int]) -> re.Pattern[str]:
    """Matches any control token's text, the longest first."""
    texts = sorted((text for text in control_tokens if text), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, texts)) or r"(?!)")


def split(template: str, control_tokens: Mapping[str, int]) -> list[Piece]:
    """The template cut at its control tokens and part marks, in order; no piece of text is empty."""
    pieces: list[Piece] = []
    control = control_pattern(control_tokens)
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


def completion_body(prompts: Sequence[Sequence[Piece]], labels: tuple[int, int]) -> dict[str, Any]:
    """llama.cpp's `/completion` request that answers, for each prompt, the two labels' probabilities.

    Both labels get the same large bias, so that they are the two likeliest tokens whatever the model prefers,
    and the bias cancels out of the softmax over the two.
    """
    return {
        "prompt": prompts,
        "n_predict": 1,
        "cache_prompt": True,
        "logit_bias": [[label, 100] for label in labels],
        "n_probs": 2,
        "post_sampling_probs": True,
        "samplers": ["top_k", "temperature"],
        "top_k": 2,
        "temperature": 1.0,
        # By default each answer repeats its whole prompt and every setting.
        "response_fields": ["index", "completion_probabilities", "tokens_evaluated"],
    }


def log_odds(answer: Mapping[str, Any], labels: tuple[int, int]) -> float:
    """logit(first label) - logit(second label) from one answer. Raises KeyError where one is not in it."""
    top = answer["completion_probabilities"][0]["top_probs"]
    probability = {entry["id"]: entry["prob"] for entry in top}
    relevant, irrelevant = (probability[label] for label in labels)
    if relevant <= 0 or irrelevant <= 0:
        return math.copysign(_LARGEST_LOG_ODDS, relevant - irrelevant)
    return math.log(relevant) - math.log(irrelevant)
