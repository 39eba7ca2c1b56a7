"""A Jinja chat template with the roles system, query and document -> a template with {instruction}, {query}
and {document} in it, as rerankd's recipes have it.

The template is rendered once with marks in the places of the texts, and the marks become the placeholders.
That is right for a template that does nothing but insert texts, so it is rendered again with other texts, and
each must come out as the placeholders filled in. A template that trims, cuts or repeats a text, or that has
conditions on it, is refused.

The system message is the caller's instruction. A template that has a default in its place gives that as the
recipe's instruction. One that has more or less text without a system message has no place for an instruction
here, and is taken as it is without one.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# What a template holds that reads contents as lists of parts, as sentence-transformers tells
# (base/modality.py).
_OF_PARTS = ("content[0]", ".type", "'type'", '"type"', "item.type", "message.content[")
_FORMATS = ("auto", "flat", "structured")
# Private-use letters, which stand for the texts; no template holds them.
_SYSTEM, _QUERY, _DOCUMENT = "\uf8d0", "\uf8d1", "\uf8d2"
_PLACEHOLDERS = {_SYSTEM: "{instruction}", _QUERY: "{query}", _DOCUMENT: "{document}"}
# rerankd's own mark in a template, between parts that are tokenised apart (see scoring/prompt.py).
_PART_MARK = "\x1e"
# Instruction, query and document of the second renderings: what a template could treat in another way.
_TEXTS = (
    ("Find it.", "What is a panda?", "The giant panda is a bear."),
    ("  two  ", "  spaces around ", "\nlines\r\n\taround\n\n"),
    ("{query}", "{{ messages }} {% if %}", "{document} {instruction} {"),
    ("<b>&amp;</b>", "<p class='x'>\"A & B\"</p>", "</s> <|im_end|> [SEP] <think>\n\n</think>"),
    ("ÄÖ", "大熊猫 是什么? 🐼", "e\u0301 İSTANBUL \u200b"),
    ("same", "same", "same"),
    ("0", "none", "false"),
    ("i" * 300, "q" * 3000, "d " * 5000),
)
# The process has a bound of its own on its CPU time; this one is for a machine that is busy.
_TIMEOUT_S = 60

Pair = tuple[str | None, str, str]
"""Instruction (None: no system message), query and document."""


@dataclass(frozen=True, slots=True)
class Chat:
    """A chat template, the variables that it is given besides the messages, as JSON, and whether a message's
    content is a list of parts or a text."""

    source: str
    variables: str
    is_structured: bool

    @classmethod
    def of(cls, source: str, variables: Mapping[str, Any], said: str) -> Chat:
        """A template whose content has the format that is `said`: flat, structured, or auto."""
        guessed = said not in _FORMATS[1:]
        structured = any(part in source for part in _OF_PARTS) if guessed else said == "structured"
        return cls(source, json.dumps(variables, sort_keys=True), structured)


@dataclass(frozen=True, slots=True)
class Question:
    """A template with placeholders, and what stands for {instruction} where the caller gives none."""

    template: str
    instruction: str


@functools.lru_cache(maxsize=64)
def question(chat: Chat, prompt: str) -> Question | str:
    """What a chat template asks, or why rerankd can't ask it. `prompt` is the system message by default, ""
    for none."""
    pairs: list[Pair] = [(_SYSTEM, _QUERY, _DOCUMENT), (None, _QUERY, _DOCUMENT)]
    pairs += [pair for one in _TEXTS for pair in (one, (None, *one[1:]))]
    found = _rendered(chat, pairs)
    if isinstance(found, str):
        return found
    (marked, plain), rest = found[:2], found[2:]
    if fault := _unusable(plain) or (_unusable(marked) if prompt else ""):
        return fault
    made = _question(marked, plain, prompt)
    for pair, text in zip(pairs[2:], rest, strict=True):
        instruction, query, document = pair
        if instruction is None and prompt:
            continue  # never asked so
        if instruction is not None and not (prompt or "{instruction}" in made.template):
            continue  # the instruction has no place
        expected = filled(made, instruction, query, document)
        if text != expected:
            return "its chat template does more than to insert texts: " + _difference(text, expected)
    return made


def filled(made: Question, instruction: str | None, query: str, document: str) -> str:
    """The prompt of a pair."""
    values = {
        "{instruction}": made.instruction if instruction is None else instruction,
        "{query}": query,
        "{document}": document,
    }
    text, out = made.template, ""
    while (at := min((text.find(one) for one in values if one in text), default=-1)) >= 0:
        key = next(one for one in values if text.startswith(one, at))
        out, text = out + text[:at] + values[key], text[at + len(key) :]
    return out + text


def _question(marked: str, plain: str, prompt: str) -> Question:
    """What is asked, from the text with a system message and the one without."""
    before, mark, after = marked.partition(_SYSTEM)
    if mark and prompt:
        return Question(_placed(marked), prompt)
    default = plain[len(before) : len(plain) - len(after)]
    # Else it has a line for the instruction that is not there without one.
    is_replaced = plain == before + default + after and not {_QUERY, _DOCUMENT} & {*default}
    if mark and is_replaced and default:
        return Question(_placed(marked), default)
    return Question(_placed(plain), "")


def _placed(text: str) -> str:
    for mark, placeholder in _PLACEHOLDERS.items():
        text = text.replace(mark, placeholder)
    return text


def _unusable(text: str) -> str:
    """Why the text with marks is no template, "" where it is."""
    for name, mark in (("query", _QUERY), ("document", _DOCUMENT)):
        if text.count(mark) != 1:
            times = "does not insert" if not text.count(mark) else "more than once inserts"
            return f"its chat template {times} the {name}"
    if text.count(_SYSTEM) > 1:
        return "its chat template more than once inserts the system message"
    for own in (*_PLACEHOLDERS.values(), _PART_MARK):
        if own in text:
            return f"its chat template holds {own!r}, which has a meaning of its own in rerankd"
    return ""


def _difference(text: str, expected: str) -> str:
    at = next((at for at, (a, b) in enumerate(zip(text, expected, strict=False)) if a != b), len(expected))
    begin = max(at - 20, 0)
    return f"it gives {text[begin : at + 20]!r} where {expected[begin : at + 20]!r} is inserted"


def _rendered(chat: Chat, pairs: Sequence[Pair]) -> list[str] | str:
    """The text of each pair, or why there is none."""
    job = {
        "source": chat.source,
        "variables": json.loads(chat.variables),
        "conversations": [_messages(pair, is_structured=chat.is_structured) for pair in pairs],
    }
    argv = [sys.executable, "-P", "-m", "rerankd.formats.template_sandbox"]
    try:
        done = subprocess.run(argv, input=json.dumps(job).encode(), capture_output=True, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return "its chat template takes too long to be rendered"
    if done.returncode:
        return "its chat template takes more time or memory to be rendered than any prompt is worth"
    answer = json.loads(done.stdout)
    if "error" in answer:
        return f"its chat template can't be rendered: {answer['error']}"
    return [str(text) for text in answer["texts"]]


def _messages(pair: Pair, *, is_structured: bool) -> list[dict[str, Any]]:
    roles = ("system", "query", "document")
    return [
        {"role": role, "content": [{"type": "text", "text": text}] if is_structured else text}
        for role, text in zip(roles, pair, strict=True)
        if text is not None
    ]
