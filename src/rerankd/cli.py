"""The command line; the one place that builds everything from settings.

What a program may read goes to standard output, everything else to standard error. Exit codes: 0 done, 1
failed, 2 wrong usage or settings, 3 the model, 4 the engine, 5 a download, 6 the address, 7 the data folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from rerankd import __version__, config
from rerankd.domain import RerankResult
from rerankd.errors import InvalidRequest, RerankdError, UnknownModel

app = typer.Typer(
    name="rerankd",
    help="Serve reranker models on your own machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Config = Annotated[Path | None, typer.Option(help="Settings file (TOML) instead of ./rerankd.toml.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def main() -> None:
    """The `rerankd` program."""
    try:
        app()
    except RerankdError as error:
        typer.echo(f"rerankd: {error.message}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rerankd {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def serve(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A name of `rerankd list`, a GGUF file, or builtin:e5.",
            show_default="the one pulled last, or builtin:e5",
        ),
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; 0.0.0.0 for all.", show_default="127.0.0.1")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port; 0 picks a free one.", show_default="11440", min=0, max=65535)
    ] = None,
    alias: Annotated[
        list[str] | None, typer.Option(help="Name to serve the model under; may be repeated.")
    ] = None,
    api_key: Annotated[str | None, typer.Option(help="Ask for this key. Better set RERANKD_API_KEY.")] = None,
    api_prefix: Annotated[str | None, typer.Option(help="Serve all paths under this one too.")] = None,
    gpu_layers: Annotated[
        int | None, typer.Option(help="Layers on the GPU; -1 leaves it to llama.cpp.", show_default="-1")
    ] = None,
    force: Annotated[
        bool | None, typer.Option("--force", help="Serve a model even if it fails the check at load.")
    ] = None,
    config_file: Annotated[Path | None, typer.Option("--config", help="Settings file (TOML).")] = None,
) -> None:
    """Serve a reranker over HTTP until Ctrl-C.

    Without MODEL it serves the one that was pulled last; where none was, the small built-in one, which is
    fetched at the first start.
    """
    flags = {
        "model": model,
        "host": host,
        "port": port,
        "alias": tuple(alias) if alias else None,
        "api_key": api_key,
        "api_prefix": api_prefix,
        "gpu_layers": gpu_layers,
        "force": force,
    }
    settings = config.from_machine(flags, config_file)
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    if settings.log_level != "debug":
        for chatty in ("gguf", "httpx", "uvicorn"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        asyncio.run(_serve(settings))
    except asyncio.CancelledError:
        sys.exit(0)


async def _serve(settings: config.Settings) -> None:
    from rerankd.api.listen import bind
    from rerankd.service import Reranker, prepare

    # Until the server takes over, a signal ends the start, wherever it is, in order.
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    with bind(settings.host, settings.port) as sock:
        async with contextlib.AsyncExitStack() as stack:
            with _progress() as report:
                model = await asyncio.to_thread(prepare, settings, report)
                report(f"loading {model.path.name}", 0, 0)
                # The web framework takes about as long to import as a small model to load.
                threading.Thread(target=_import_web, daemon=True).start()
                reranker = await stack.enter_async_context(Reranker(settings, prepared=model))
            server, web = _import_web()
            host, port = sock.getsockname()[:2]
            started = partial(_say, _greeting(reranker, host, port))
            await server.serve(web.create_app(reranker=reranker), sock, started, reranker)
    _say("rerankd has stopped.")


def _import_web() -> tuple[Any, Any]:
    from rerankd.api import app as web
    from rerankd.api import server

    return server, web


def _greeting(reranker: Any, host: str, port: int) -> str:
    model = reranker.model
    shown = "localhost" if host in ("127.0.0.1", "0.0.0.0", "::", "::1") else host
    lines = [
        f"rerankd {__version__} serves {model.name} at http://{shown}:{port}",
        f"  model    {model.path}",
        f"  scoring  {model.verdict.explain}",
        f"  engine   {reranker.settings.llama_path or 'llama.cpp (bundled)'}, log in {reranker.engine_log}",
    ]
    if model.name.startswith("builtin:"):
        lines += [
            "  This is a small model for trying things out. For a real reranker, and then start again:",
            "    rerankd pull bge-reranker-v2-m3",
        ]
    elif not reranker.settings.model:
        lines += [
            "  It is the model that was pulled last. For another one: rerankd serve NAME (rerankd list)"
        ]
    if host in ("0.0.0.0", "::") and not reranker.settings.api_key:
        lines.append("  Whoever can reach this machine can use it: ask for a key with --api-key.")
    lines += [
        "  In Dify, add a model of the provider OpenAI-API-compatible:",
        "    Model Type        Rerank",
        f"    Model Name        {model.name}",
        f"    API endpoint URL  http://{_address_for_others(host)}:{port}/v1",
    ]
    return "\n".join(lines)


def _address_for_others(host: str) -> str:
    return "THIS-MACHINE" if host in ("0.0.0.0", "::") else host


@app.command()
def rerank(
    query: Annotated[str, typer.Argument(help="The question.")],
    files: Annotated[
        list[Path] | None, typer.Argument(help="Files of documents, - for standard input.", show_default="-")
    ] = None,
    jsonl: Annotated[
        bool, typer.Option("--jsonl", help='Each line is a JSON string or an object with a "text".')
    ] = False,
    top_n: Annotated[int | None, typer.Option(help="Print only the best so many.", min=1)] = None,
    model: Annotated[str | None, typer.Option(help="Use this model with an engine of its own.")] = None,
    raw_scores: Annotated[bool, typer.Option(help="The model's raw values instead of 0 to 1.")] = False,
    as_json: Json = False,
    config_file: Annotated[Path | None, typer.Option("--config", help="Settings file (TOML).")] = None,
) -> None:
    """Order documents, one a line, by how well they answer QUERY.

    Asks the server on this machine when there is one, else starts an engine for this one call.
    """
    settings = config.from_machine({"model": model}, config_file)
    documents = [text for path in files or [Path("-")] for text in _documents(path, jsonl=jsonl)]
    if not documents:
        raise InvalidRequest("There are no documents: the input is empty. Put one on each line.")
    body = {"query": query, "documents": documents, "raw_scores": raw_scores}
    if top_n:
        body["top_n"] = top_n
    answer = None if model else _ask_server(settings, body)
    if answer is None:
        answer = _ask_engine(settings, body)
    if as_json:
        rows = [{**row, "text": documents[row["index"]]} for row in answer["results"]]
        typer.echo(json.dumps({**answer, "results": rows}, ensure_ascii=False, indent=2))
    else:
        _print_table(answer, documents)


def _documents(path: Path, *, jsonl: bool) -> list[str]:
    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise InvalidRequest(f"{path} can't be read: {error.strerror}.") from error
    lines = [line for line in data.decode("utf-8", "replace").splitlines() if line.strip()]
    if not jsonl:
        return lines
    return [_jsonl_text(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]


def _jsonl_text(line: str, place: str) -> str:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise InvalidRequest(f"{place}: not valid JSON: {error}.") from error
    text = value.get("text") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise InvalidRequest(f'{place}: neither a JSON string nor an object with a "text" string.')
    return text


def _ask_server(settings: config.Settings, body: dict[str, Any]) -> dict[str, Any] | None:
    """The running server's answer; None where there is no rerankd at the address of the settings."""
    import httpx

    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    url = f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"
    headers = {"authorization": f"Bearer {settings.api_key}"} if settings.api_key else {}
    try:
        with httpx.Client(base_url=url, headers=headers, trust_env=False) as client:
            if client.get("/ready", timeout=2).status_code != 200:
                return None
            answer = client.post("/v1/rerank", json=body, timeout=settings.request_timeout_s + 5)
            value = answer.json()
    except (httpx.TransportError, ValueError):
        return None
    if answer.status_code != 200:
        message = value.get("message", answer.text) if isinstance(value, dict) else answer.text
        raise InvalidRequest(f"The server at {url} says: {message}")
    return value if isinstance(value, dict) and "results" in value else None


def _ask_engine(settings: config.Settings, body: dict[str, Any]) -> dict[str, Any]:
    from rerankd.api import jina
    from rerankd.service import Reranker, prepare

    async def ask() -> RerankResult:
        with _progress() as report:
            model = await asyncio.to_thread(prepare, settings, report)
        async with Reranker(settings, prepared=model) as reranker:
            return await reranker.answer(jina.parse(body))

    return dict(jina.render(asyncio.run(ask()), "rerank-local"))


def _print_table(answer: dict[str, Any], documents: list[str]) -> None:
    rows = [
        (f"{row['relevance_score']:.4f}", row["index"], documents[row["index"]]) for row in answer["results"]
    ]
    if not sys.stdout.isatty():
        for score, index, text in rows:
            typer.echo(f"{score}\t{index}\t{text}")
    else:
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        table = Table("score", "line", "document", box=None, pad_edge=False)
        for score, index, text in rows:
            table.add_row(score, str(index + 1), escape(text))
        Console().print(table)
    for warning in answer["meta"].get("warnings", ()):
        _say(f"note: {warning}")


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="A GGUF file, a name of `rerankd list`, or builtin:e5.")],
    as_json: Json = False,
    config_file: Annotated[Path | None, typer.Option("--config", help="Settings file (TOML).")] = None,
) -> None:
    """Tell what a model file is and how it would be scored, or why it can't be.

    Exit code 0 when it can be scored, 3 when it can't.
    """
    from rerankd.models import gguf, store
    from rerankd.models import inspect as words
    from rerankd.service import judge_file

    settings = config.from_machine({}, config_file)
    with _progress() as report:
        path = store.Store(settings.home).locate(model, report, settings.builtin_wheel)
    facts = gguf.read(path)
    decided = judge_file(facts, settings)
    if as_json:
        typer.echo(json.dumps(words.describe_json(facts, decided), ensure_ascii=False, indent=2))
    else:
        typer.echo(words.describe(facts, decided))
    if decided.scoring is None:
        raise typer.Exit(3)


@app.command()
def pull(
    model: Annotated[
        str,
        typer.Argument(help="A name of `rerankd list --catalog`, with :QUANT if you like, or hf:ORG/REPO."),
    ],
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Start the engine once, to see that it scores right.")
    ] = True,
    config_file: Annotated[Path | None, typer.Option("--config", help="Settings file (TOML).")] = None,
) -> None:
    """Download a model from Hugging Face (hf:) or ModelScope (ms:), and check it.

    A download that was cut goes on where it stopped. Before it begins, the file's header tells whether and
    how the model can be scored.
    """
    from rerankd.engine import machine
    from rerankd.models import builtin, store

    settings = config.from_machine({}, config_file)
    folders = store.Store(settings.home)
    folders.check_writable()
    with _progress() as report:
        if model == builtin.NAME:
            folders.locate(model, report, settings.builtin_wheel)
            _say(f"{model} is ready. Serve it: rerankd serve {model}")
            return
        from rerankd.models import hubs, ref, transfer
        from rerankd.models.pull import Puller
        from rerankd.service import judge_file

        for client in ("huggingface_hub", "modelscope_hub"):
            logging.getLogger(client).setLevel(logging.ERROR)

        def start_once(path: Path) -> None:
            report("starting the engine to check it", 0, 1)
            asyncio.run(_start_once(config.override(settings, {"model": str(path)})))
            report("starting the engine to check it", 1, 1)

        ref.parse(model)
        with transfer.Transfer() as bytes_from:
            puller = Puller(
                store=folders,
                hubs={"hf": hubs.HuggingFace(), "ms": hubs.ModelScope()},
                transfer=bytes_from,
                judge=lambda facts: judge_file(facts, settings),
                check=start_once if check else lambda path: None,
                say=_say,
                progress=report,
                memory_bytes=machine.read().memory_bytes if settings.on_cpu else None,
            )
            record = puller.pull(model)
    _say(f"{record.name} is ready. Serve it: rerankd serve {record.name}")


async def _start_once(settings: config.Settings) -> None:
    from rerankd.service import Reranker

    async with Reranker(settings):
        pass


@app.command("list")
def list_models(
    catalog: Annotated[bool, typer.Option("--catalog", help="What can be pulled by name.")] = False,
    as_json: Json = False,
    config_file: Annotated[Path | None, typer.Option("--config", help="Settings file (TOML).")] = None,
) -> None:
    """List the models on this machine, or those that can be pulled by name."""
    from rerankd.models import listing, store

    settings = config.from_machine({}, config_file)
    folders = store.Store(settings.home)
    rows = listing.pullable() if catalog else listing.present(folders, partial(_judge, settings))
    if as_json:
        typer.echo(json.dumps(rows, ensure_ascii=False, indent=2))
    elif rows:
        _print_rows(listing.columns(rows, catalog=catalog))
    else:
        _say("There is no model on this machine yet. See what there is: rerankd list --catalog")


@app.command()
def show(
    model: Annotated[str, typer.Argument(help="A name of `rerankd list` or `rerankd list --catalog`.")],
    as_json: Json = False,
    config_file: Annotated[Path | None, typer.Option("--config", help="Settings file (TOML).")] = None,
) -> None:
    """Tell what is known of a model: its file and how it is scored, or where it can be pulled from."""
    from rerankd.models import listing, store

    settings = config.from_machine({}, config_file)
    told = listing.describe(store.Store(settings.home), model, partial(_judge, settings))
    if as_json:
        typer.echo(json.dumps(told, ensure_ascii=False, indent=2))
    else:
        typer.echo(told["text"])


@app.command()
def remove(
    model: Annotated[str, typer.Argument(help="A name of `rerankd list`.")],
    config_file: Annotated[Path | None, typer.Option("--config", help="Settings file (TOML).")] = None,
) -> None:
    """Delete a pulled model from this machine."""
    from rerankd.models import store
    from rerankd.models.inspect import size_words

    folders = store.Store(config.from_machine({}, config_file).home)
    record = folders.find(model)
    if record is None:
        names = ", ".join(record.name for record in folders.records()) or "none"
        raise UnknownModel(f"{model!r} is not a model that was pulled. Pulled are: {names}.")
    folders.remove(record)
    _say(f"{record.name} is gone; {size_words(record.size_bytes)} are free again.")


def _judge(settings: config.Settings, facts: Any) -> Any:
    from rerankd.service import judge_file

    return judge_file(facts, settings)


def _print_rows(rows: Sequence[Sequence[str]]) -> None:
    """A table, its head first; on a terminal aligned, elsewhere with tabs and without the head."""
    if not sys.stdout.isatty():
        for row in rows[1:]:
            typer.echo("\t".join(row))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(*rows[0], box=None, pad_edge=False)
    for row in rows[1:]:
        table.add_row(*map(escape, row))
    Console().print(table)


class _progress:
    """Shows progress on a terminal as a bar, elsewhere as a line for each step, and one more every ten
    seconds of a long one. A context manager of a callable.

    What still reports after its end was not waited for, and is ended by the KeyboardInterrupt it gets.
    """

    def __enter__(self) -> Callable[[str, int, int], None]:
        self._ended = False
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}
        self._said_at = 0.0
        return self._report

    def __exit__(self, *_: object) -> None:
        self._ended = True
        if self._bar is not None:
            self._bar.stop()

    def _report(self, what: str, done: int, total: int) -> None:
        if self._ended:
            raise KeyboardInterrupt
        if not sys.stderr.isatty():
            if what not in self._tasks:
                self._tasks[what] = None
                _say(f"{what} …")
                self._said_at = time.monotonic()
            elif time.monotonic() - self._said_at > 10 and done < total:
                _say(f"{what}: {done / total:.0%}")
                self._said_at = time.monotonic()
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        if self._bar is None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.start()
        if what not in self._tasks:
            self._tasks[what] = self._bar.add_task(what, total=total or None)
        self._bar.update(self._tasks[what], completed=done, total=total or None)


def _say(text: str) -> None:
    typer.echo(text, err=True)
