"""(pure) Texts that a client has tokenized itself: token ids are read only if they show that they are the
model's own.

Nothing in a list of numbers says which tokenizer made it, and another one's ids are other words here: a
vector without meaning, and no error. The ids of the model's own tokenizer, as it returns them for a text,
begin and end with its special tokens; those of OpenAI's tokenizers, which some clients send to every server,
do not.
"""

from __future__ import annotations

import numpy as np

from rerankd.errors import InvalidRequest, TooLong
from rerankd.ids import Ids
from rerankd.scoring.engine_input import Input
from rerankd.scoring.question import PreparedQuestion, Truncation

_INSTEAD = "Send strings; for LangChain's OpenAIEmbeddings, set check_embedding_ctx_length=False."


def read(
    ids: Ids, size: int | None, prepared: PreparedQuestion, at: int, how: Truncation
) -> tuple[Input, bool]:
    """The input of text `at`, and whether it is truncated. `size` is the number of all ids, None if the
    engine tokenizes. Raises InvalidRequest for ids that may be another tokenizer's, and TooLong if they are
    too many and must not be truncated."""
    start, end = prepared.question.before, prepared.question.after
    if size is None:
        raise InvalidRequest(f"The engine of this model tokenizes and reads no token ids. {_INSTEAD}")
    if not len(start) + len(end):
        raise InvalidRequest(
            "The tokenizer of this model adds no special tokens, so that nothing shows whether token ids are "
            f"its own. {_INSTEAD}"
        )
    own = ids[len(start) : max(len(ids) - len(end), 0)]
    if not len(own) or not np.array_equal(np.concatenate((start, own, end)), ids):
        raise InvalidRequest(
            f"Text {at} consists of token ids, but not of those that this model's tokenizer returns for a "
            f"text: it puts {_named(start)} before them and {_named(end)} after them. They may be another "
            f"tokenizer's, such as OpenAI's, and mean other words here. {_INSTEAD}"
        )
    wrong = own[(own < 0) | (own >= size)]
    if len(wrong):
        raise InvalidRequest(
            f"Text {at} has the token id {wrong[0]}; those of this model are 0 to {size - 1}."
        )
    space = prepared.ids_limit
    if len(own) > space and not how.is_allowed:
        raise TooLong(
            f"Text {at} has {len(own)} tokens, but the model reads {space}. Shorten the text, or omit "
            "truncate: false to have it truncated."
        )
    kept = own[:space]
    named = " ".join(map(str, kept))  # for the quarantine; an engine that reads ids never sees it
    return Input(prepared.question, named, kept, len(start) + len(kept) + len(end)), len(own) > space


def _named(ids: Ids) -> str:
    return " ".join(map(str, ids)) if len(ids) else "nothing"
