"""`rerankd rerank`: rerank documents from files or standard input."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from rerankd import config, text_files
from rerankd.cli import completion, running_server
from rerankd.cli.output import Config, Json, print_json, say
from rerankd.cli.progress_bar import progress
from rerankd.cli.tables import print_rows
from rerankd.errors import InvalidRequest, RerankdError
from rerankd.rerank_result import RerankResult


def rerank(
    query: Annotated[str, typer.Argument(help="The query.")],
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="Files with one document per line; - for standard input.", show_default="-"),
    ] = None,
    jsonl: Annotated[
        bool, typer.Option("--jsonl", help='Read each line as a JSON string or an object with "text".')
    ] = False,
    top_n: Annotated[
        int | None, typer.Option(help="Print only this many documents, the best first.", min=1)
    ] = None,
    model: completion.OwnModel = None,
    raw_scores: Annotated[
        bool, typer.Option(help="Print the model's raw scores instead of scores from 0 to 1.")
    ] = False,
    as_json: Json = False,
    config_file: Config = None,
) -> None:
    """Sort documents, one per line, by their relevance to QUERY.

    Uses the server running on this machine. If none is running, starts an engine for this call and says so.
    """
    settings = config.from_machine({"model": (model,) if model else None}, config_file)
    documents = [text for path in files or [Path("-")] for text in _documents(path, jsonl=jsonl)]
    if not documents:
        raise InvalidRequest("The input has no documents. Write one document per line.")
    body = {"query": query, "documents": documents, "raw_scores": raw_scores}
    if top_n:
        body["top_n"] = top_n
    answer = None if model else _ask_server(settings, body)
    if answer is None:
        answer = _run_engine(settings, body, says_so=not model)
    if as_json:
        rows = [{**row, "text": documents[row["index"]]} for row in answer["results"]]
        print_json({**answer, "results": rows})
    else:
        _print_table(answer, documents)


def _documents(path: Path, *, jsonl: bool) -> list[str]:
    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
        text = text_files.decode(data, errors="replace")
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{path} can't be read: {getattr(error, 'strerror', error)}.") from error
    # str.splitlines would also split at form feeds and U+2028, which occur in documents and JSON strings; a
    # carriage return is part of a line's end only before the line feed.
    numbered = enumerate(text.split("\n"), 1)
    lines = [(number, line.removesuffix("\r")) for number, line in numbered if line.strip()]
    if not jsonl:
        return [line for _, line in lines]
    return [_jsonl_text(line, f"{path}, line {number}") for number, line in lines]


def _jsonl_text(line: str, location: str) -> str:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise InvalidRequest(f"{location}: not valid JSON: {error}.") from error
    from rerankd.api.dialects import lenient

    text = lenient.named_text(value) if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise InvalidRequest(
            f'{location}: expected a JSON string, or an object with a string "text", "page_content" or '
            '"content".'
        )
    return text


def _ask_server(settings: config.Settings, body: dict[str, Any]) -> dict[str, Any] | None:
    """Return the response of the running server; None if no rerankd answers at the configured address.

    A server that is still loading its model is used as well: a second engine would compete for its memory.
    """
    import httpx

    try:
        with running_server.client(settings) as client:
            ready = client.get("/ready", timeout=2).json()
            if not isinstance(ready, dict) or "status" not in ready:
                return None
            answer = client.post("/v1/rerank", json=body, timeout=settings.request_timeout_s + 5)
            value = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        return None
    if answer.status_code != 200:
        message = value.get("message", answer.text) if isinstance(value, dict) else answer.text
        kind = RerankdError if answer.status_code >= 500 else InvalidRequest
        raise kind(f"The server at {settings.local_url} reports: {message}")
    return value if isinstance(value, dict) and "results" in value else None


def _run_engine(settings: config.Settings, body: dict[str, Any], *, says_so: bool) -> dict[str, Any]:
    from rerankd.api.dialects.table import DEFAULT
    from rerankd.service import Reranker
    from rerankd.serving.prepare_model import prepare_first

    async def answer() -> RerankResult:
        with progress() as report:
            name, models = await asyncio.to_thread(prepare_first, settings, report)
        if says_so:
            say(
                f"note: no rerankd answers at {settings.local_url}; starting an engine for this call, with "
                f"the model {name}."
            )
        async with Reranker(settings, prepared=models) as reranker:
            (request,) = DEFAULT.parse(body)
            return await reranker.answer(request)

    return dict(DEFAULT.render(asyncio.run(answer()), "rerank-local"))


def _print_table(answer: dict[str, Any], documents: list[str]) -> None:
    first = 1 if sys.stdout.isatty() else 0  # line numbers for people, indexes for programs
    unscored = set(answer["meta"].get("unscored", ()))
    scored = [(row["relevance_score"], row["index"]) for row in answer["results"]]
    rows = [
        ("-" if index in unscored else f"{score:.4f}", str(index + first), documents[index])
        for score, index in scored
    ]
    print_rows([("score", "line", "document"), *rows])
    for warning in answer["meta"].get("warnings", ()):
        say(f"note: {warning}")
