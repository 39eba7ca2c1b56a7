"""A program that renders a chat template with limits on time and memory.

A chat template is code from a repository. The environment is the same as in transformers: its sandbox blocks
access to files and to Python's internals, but does not limit loops and the size of texts. So this process
limits its own CPU time and address space.

It reads JSON from stdin: {"source", "variables", "conversations"}. It writes {"texts"} or {"error"} to
stdout.

Source: _compile_jinja_template of transformers 5.24 (utils/chat_template_utils.py).
"""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

CPU_S = 2
MEMORY_BYTES = 512 * 2**20
MOST_CHARACTERS = 200_000
"""In one rendered text."""


class _Dict:
    """Python's dict without its attributes."""

    def __call__(self, *pairs: Any, **items: Any) -> dict[Any, Any]:
        return dict(*pairs, **items)

    def fromkeys(self, *keys: Any) -> dict[Any, Any]:
        return dict.fromkeys(*keys)


class _Namespace(Namespace):
    """Jinja's namespace without attributes of Python's own."""

    def __init__(*own: Any, **items: Any) -> None:
        for name in dict(*own[1:], **items):
            _check(name)
        Namespace.__init__(*own, **items)

    def __setitem__(self, name: str, value: Any) -> None:
        _check(name)
        super().__setitem__(name, value)


def _check(name: Any) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"access to attribute {name!r:.40} of a namespace is unsafe")


class _Generation(Extension):
    """Render the body of `{% generation %}`, a block that is used in training only, without change."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(_: str) -> NoReturn:
    raise TemplateError("it inserts the current date")


def _json(value: Any, ensure_ascii: bool = False, **how: Any) -> str:
    # Jinja's own filter escapes HTML.
    return json.dumps(value, ensure_ascii=ensure_ascii, **how)


def render(source: str, variables: dict[str, Any], conversations: list[Any]) -> list[str]:
    """Render each conversation. Raises TemplateError, and any error that an expression in the template
    raises."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _json
    environment.globals |= {
        "raise_exception": _raise, "strftime_now": _now, "dict": _Dict(), "namespace": _Namespace,
    }  # fmt: skip
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
        with contextlib.suppress(ValueError):  # macOS has no limit of the address space
            resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def main() -> None:
    job = json.load(sys.stdin)
    _limit()
    try:
        texts = render(job["source"], job["variables"], job["conversations"])
        if max(map(len, texts), default=0) > MOST_CHARACTERS:
            raise TemplateError(f"it renders more than {MOST_CHARACTERS:,} characters")
        answer: dict[str, Any] = {"texts": texts}
    except Exception as error:  # an expression in a template can raise any error
        answer = {"error": f"{error!s:.200}" or type(error).__name__}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
