"""A program that renders a chat template, which is code of a stranger, with bounds on time and memory.

It reads JSON from stdin, {"source", "variables", "conversations"}, and writes {"texts"} or {"error"} to
stdout. The environment is that of transformers, whose sandbox keeps a template from files and from Python's
internals. What the sandbox does not bound, loops and repeated texts, ends with this process: its CPU time and
its address space are limited, and so is what it writes.

Source: _compile_jinja_template of transformers 5.24 (utils/chat_template_utils.py).
"""

from __future__ import annotations

import json
import sys
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

CPU_S = 2
MEMORY_BYTES = 512 * 2**20
MOST_LETTERS = 200_000
"""Of one rendered text."""


class _Generation(Extension):
    """`{% generation %}` marks what an assistant wrote, for training; here its body is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(_: str) -> NoReturn:
    raise TemplateError("it writes the date of each day into the prompt")


def _json(value: Any, ensure_ascii: bool = False, **how: Any) -> str:
    # Jinja's own escapes what HTML could misread.
    return json.dumps(value, ensure_ascii=ensure_ascii, **how)


def render(source: str, variables: dict[str, Any], conversations: list[Any]) -> list[str]:
    """The text of each conversation. Raises what a template can raise: TemplateError and Python's own
    errors."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _json
    environment.globals |= {"raise_exception": _raise, "strftime_now": _now}
    template = environment.from_string(source)
    return [
        template.render(**{"tools": None, "documents": None, **variables, "messages": conversation})
        for conversation in conversations
    ]


def _limit() -> None:
    if sys.platform == "win32":
        return
    import resource

    for kind, most in ((resource.RLIMIT_CPU, CPU_S), (resource.RLIMIT_AS, MEMORY_BYTES)):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def main() -> None:
    job = json.load(sys.stdin)
    _limit()
    try:
        texts = render(job["source"], job["variables"], job["conversations"])
        if max(map(len, texts), default=0) > MOST_LETTERS:
            raise TemplateError(f"it makes a prompt of more than {MOST_LETTERS:,} letters")
        answer: dict[str, Any] = {"texts": texts}
    except Exception as error:  # a template can raise anything that Python can
        answer = {"error": f"{error!s:.200}" or type(error).__name__}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
