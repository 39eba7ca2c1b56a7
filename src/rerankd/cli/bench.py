"""`rerankd bench`: measure throughput and latency of a model, an engine or another server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rerankd import config, text_files
from rerankd.cli import completion
from rerankd.cli.output import Config, Json, print_json, say
from rerankd.cli.progress_bar import progress
from rerankd.errors import ConfigError
from rerankd.progress import Progress, step

if TYPE_CHECKING:
    from rerankd.benchmark.drive import Target
    from rerankd.benchmark.engines import EngineRow
    from rerankd.benchmark.load import Plan
    from rerankd.benchmark.report import Benchmark


def bench(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A name from `rerankd list`, a GGUF file, or builtin:e5.",
            show_default="the model that `rerankd serve` serves",
            autocompletion=completion.models_here,
        ),
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="Measure the running server at this URL instead of starting one.")
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="URL of another server to compare with: rerankd, llama-server, TEI, Infinity, Cohere's "
            "API …; may be repeated."
        ),
    ] = None,
    remote_model: Annotated[
        str | None, typer.Option(help="Model name to send in requests to --url and --against.")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(help="API key for the servers of --url and --against.")
    ] = None,
    compare_engines: Annotated[
        bool, typer.Option("--compare-engines", help="Measure the model on every engine on this machine.")
    ] = False,
    documents: Annotated[
        str, typer.Option(help="Documents per request: a list of sizes to measure.")
    ] = "1,20,100",
    concurrency: Annotated[
        str,
        typer.Option(
            help="Concurrent clients: a list of numbers to measure; values after the first are measured with "
            "one request size only."
        ),
    ] = "1,4",
    words: Annotated[
        str, typer.Option(help="Words per document, or a range such as 20-400 for mixed lengths.")
    ] = "100",
    rounds: Annotated[int, typer.Option(help="Number of times that each case is measured.", min=1)] = 5,
    seconds: Annotated[
        float, typer.Option(help="Time limit; the results measured until then are printed.", min=1)
    ] = 300,
    seed: Annotated[
        int, typer.Option(help="Random seed of the texts; the same seed sends the same requests.")
    ] = 1,
    as_json: Json = False,
    config_file: Config = None,
) -> None:
    """Measure throughput (pairs/s) and latency of a served model.

    A pair is one document scored against the query. The command starts the service and sends it HTTP
    requests, as a client does, for each number of documents and of concurrent clients. No text is sent
    twice, so that no cache answers. With --against or --compare-engines, all servers receive the same
    requests in alternation (A B A B), and the report shows ratios: on a busy machine ratios are more reliable
    than times. Ctrl-C prints the results so far.

    To compare with a running llama-server: rerankd bench --against http://localhost:8080
    """
    from rerankd.benchmark import engines, load, report

    if url and (model or compare_engines):
        raise ConfigError(
            "--url measures a running server, so it can't be combined with MODEL or --compare-engines."
        )
    settings = config.from_machine({"model": (model,) if model else None}, config_file)
    if compare_engines:
        path = config_file or config.find(os.environ)
        in_file = config.load(text_files.read(path) if path else "", {}, {})  # without the environment
        for name, variable in engines.programs().items():
            if getattr(in_file, name) is not None:
                raise ConfigError(
                    f"The settings file sets an engine's program ({name}), so no other engine can be "
                    f"compared with it. Remove it from the file, and set {variable} for this command instead."
                )
    cases = load.cases(
        load.numbers(documents, "documents"),
        load.numbers(concurrency, "concurrency"),
        load.word_range(words),
    )
    arguments = [*([model] if model else ()), *(("--config", str(config_file)) if config_file else ())]

    with progress() as tell:
        run = _run(
            settings,
            [one for one in (url, *(against or ())) if one],
            arguments=None if url else arguments,
            compare=compare_engines,
            remote=(remote_model, api_key),
            plan=load.Plan(cases, rounds, seconds, seed),
            tell=tell,
        )
        found = asyncio.run(run)
    if as_json:
        print_json(report.as_json(found))
    else:
        _print(found)


async def _run(
    settings: config.Settings,
    urls: Sequence[str],
    *,
    arguments: Sequence[str] | None,
    compare: bool,
    remote: tuple[str | None, str | None],
    plan: Plan,
    tell: Progress,
) -> Benchmark:
    """Start the services, send the requests to all targets, and stop the services. `arguments` are those of
    the services to start; None: start none."""
    from rerankd.benchmark import drive, engines, hardware, service
    from rerankd.benchmark.report import Benchmark
    from rerankd.remote_client import Remote
    from rerankd.serving import backend_offers
    from rerankd.serving.prepare_model import prepare_first

    with step(tell, "measuring the machine"):
        here = await asyncio.to_thread(hardware.read)
    starts = arguments is not None
    served, models = await asyncio.to_thread(prepare_first, settings, tell) if starts else ("", [])
    prepared = models[0] if len(models) == 1 else None
    if compare and len(models) > 1:
        raise ConfigError(f"{served} is a cascade. Compare the engines of one of its models.")
    chosen: list[EngineRow] = []
    if prepared is not None and compare:
        offers = await asyncio.to_thread(
            backend_offers.all_offers, prepared.spec, prepared.wanted, settings.home
        )
        chosen = engines.all_of(offers, prepared.wanted, settings.home)
    elif models:
        chosen = [engines.as_set(*(model.engine for model in models))]
    if compare and len(chosen) == 1:
        named = " or ".join(engines.programs().values())
        say(
            f"This machine has one engine for this model: {chosen[0].name}. Set {named} to compare it with "
            "another one."
        )
    targets: list[Target] = []
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rerankd-bench-")))
        for at, row in enumerate(chosen):
            tell("starting", at, len(chosen))
            address, start_s = await stack.enter_async_context(
                service.running(
                    arguments or (),
                    row.environment(os.environ),
                    folder / f"{at}.log",
                    settings.start_timeout_s,
                )
            )
            server = Remote(address, api_key=settings.api_key)
            targets.append(drive.Target(row.name, await stack.enter_async_context(server), start_s))
        tell("starting", len(chosen), len(chosen) or 1)
        name, key = remote
        for address in urls:
            server = await stack.enter_async_context(Remote(address, api_key=key, model=name))
            again = sum(target.server.url == server.url for target in targets)
            targets.append(drive.Target(f"{address} ({again + 1})" if again else address, server))
        driven = await drive.drive(targets, plan, tell)
    return Benchmark(
        hardware=here,
        model=served or targets[0].server.served or name or "unknown",
        metadata=prepared.metadata if prepared else None,
        causal=prepared is not None and prepared.recipe.method == "causal_lm",
        known=frozenset(row.name for row in chosen),
        start_s={target.name: target.start_s for target in targets if target.start_s is not None},
        driven=driven,
        seed=plan.seed,
    )


def _print(found: Benchmark) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from rerankd.benchmark import report

    # In a file or a pipe the table is not truncated to the width of a terminal.
    console = Console(width=None if os.isatty(1) else 200, highlight=False)
    console.print(*report.before(found), sep="\n", markup=False)
    head, rows = report.table(found)
    table = Table(box=None, pad_edge=False)
    for at, title in enumerate(head):
        table.add_column(title, justify="left" if at == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    console.print("", table, "", sep="\n")
    console.print(*report.after(found), sep="\n", markup=False)
