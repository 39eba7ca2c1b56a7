"""Convert a Jinja chat template with the roles system, query and document to a template of a recipe, which
has {instruction}, {query} and {document}.

The template is rendered once with marks instead of the texts, and the marks are replaced by placeholders.
This is correct only if the template does nothing but insert texts. To verify it, the template is rendered
again with other texts, and each result must equal the placeholders filled in. A template that trims,
truncates or repeats a text, or has conditions on it, is refused.

The system message is the instruction of a request. If the template has a default text in its place, that
becomes the instruction of the recipe. If it has more or less text without a system message, a recipe can't
express this, and the template is used without an instruction.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Text of a template that reads contents as lists of parts (_infer_format in base/modality.py of the library).
_OF_PARTS = ("content[0]", ".type", "'type'", '"type"', "item.type", "message.content[")
_FORMATS = ("auto", "flat", "structured")
# Marks instead of the texts: private-use characters, which no template contains.
_SYSTEM, _QUERY, _DOCUMENT = "\uf8d0", "\uf8d1", "\uf8d2"
_PLACEHOLDERS = {_SYSTEM: "{instruction}", _QUERY: "{query}", _DOCUMENT: "{document}"}
# rerankd's own mark between parts that are tokenised separately (see scoring/prompt.py).
_PART_MARK = "\x1e"
# The marks of a part that a prompt without an instruction leaves out (see scoring/prompt.py).
_OPTIONAL_MARKS = ("{?instruction}", "{/instruction}")
# Instruction, query and document for the verification: texts that a template might treat differently.
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
# Wall time, on a busy machine; the process itself limits its CPU time.
_TIMEOUT_S = 60
# What Python needs to start.
_ENVIRONMENT = ("HOME", "LD_LIBRARY_PATH", "PATH", "PYTHONHOME", "PYTHONPATH", "SYSTEMROOT")

Pair = tuple[str | None, str, str]
"""Instruction (None: no system message), query and document."""


@dataclass(frozen=True, slots=True)
class Chat:
    """A chat template, its variables besides the messages (as JSON), and whether the content of a message is
    a list of parts instead of a text."""

    source: str
    variables: str
    is_structured: bool

    @classmethod
    def of(cls, source: str, variables: Mapping[str, Any], said: str) -> Chat:
        """`said` is the format of the contents: flat, structured or auto."""
        guessed = said not in _FORMATS[1:]
        structured = any(part in source for part in _OF_PARTS) if guessed else said == "structured"
        return cls(source, json.dumps(variables, sort_keys=True), structured)


@dataclass(frozen=True, slots=True)
class Question:
    """A template with placeholders, and the default for {instruction}."""

    template: str
    instruction: str


@functools.lru_cache(maxsize=64)
def question(chat: Chat, prompt: str) -> Question | str:
    """The template of a recipe for this chat template, or why there is none. `prompt` is the default system
    message, "" for none."""
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
            continue  # not used: there is always a system message
        if instruction is not None and not (prompt or "{instruction}" in made.template):
            continue  # not used: there is no place for an instruction
        expected = filled(made, instruction, query, document)
        if text != expected:
            return "its chat template does more than insert texts: " + _difference(text, expected)
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
    """The template from two renderings with marks: with a system message, and without."""
    before, mark, after = marked.partition(_SYSTEM)
    if mark and prompt:
        return Question(_placed(marked), prompt)
    default = plain[len(before) : len(plain) - len(after)]
    # Otherwise, there is a line for the instruction that is omitted without one.
    is_replaced = plain == before + default + after and not {_QUERY, _DOCUMENT} & {*default}
    if mark and is_replaced and default:
        return Question(_placed(marked), default)
    return Question(_placed(plain), "")


def _placed(text: str) -> str:
    for mark, placeholder in _PLACEHOLDERS.items():
        text = text.replace(mark, placeholder)
    return text


def _unusable(text: str) -> str:
    """Why a rendering with marks can't become a template; "" if it can."""
    for name, mark in (("query", _QUERY), ("document", _DOCUMENT)):
        if (times := text.count(mark)) != 1:
            return f"its chat template inserts the {name} {times} times, not once"
    if text.count(_SYSTEM) > 1:
        return "its chat template inserts the system message more than once"
    for own in (*_PLACEHOLDERS.values(), *_OPTIONAL_MARKS, _PART_MARK):
        if own in text:
            return f"its chat template contains {own!r}, which rerankd would replace"
    return ""


def _difference(text: str, expected: str) -> str:
    at = next((at for at, (a, b) in enumerate(zip(text, expected, strict=False)) if a != b), len(expected))
    begin = max(at - 20, 0)
    return f"it renders {text[begin : at + 20]!r} for {expected[begin : at + 20]!r}"


def _rendered(chat: Chat, pairs: Sequence[Pair]) -> list[str] | str:
    """Render the prompt of each pair. Returns the reason if that fails."""
    job = {
        "source": chat.source,
        "variables": json.loads(chat.variables),
        "conversations": [_messages(pair, is_structured=chat.is_structured) for pair in pairs],
    }
    argv = [sys.executable, "-P", "-m", "rerankd.formats.template_sandbox"]
    # No tokens or keys for code from a repository, even if it should escape the sandbox.
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    try:
        done = subprocess.run(
            argv,
            input=json.dumps(job).encode(),
            capture_output=True,
            timeout=_TIMEOUT_S,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        return "rendering its chat template takes too long"
    if done.returncode < 0:  # killed at its limit
        return "rendering its chat template takes too much time or memory"
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        return f"rendering its chat template failed: {last:.200}"
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
