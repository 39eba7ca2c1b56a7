"""`rerankd bench`."""

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
from rerankd.cli.output import Config, Json, print_json, progress, say
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
            help="A name of `rerankd list`, a GGUF file, or builtin:e5.",
            show_default="what `rerankd serve` takes",
        ),
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="Measure the server at this address instead of starting one.")
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="Another server to drive in turn: rerankd, llama-server, TEI, Infinity, Cohere's API …; "
            "may be repeated."
        ),
    ] = None,
    remote_model: Annotated[
        str | None, typer.Option(help="The model to name in requests to --url and --against.")
    ] = None,
    api_key: Annotated[str | None, typer.Option(help="The key that --url and --against ask for.")] = None,
    compare_engines: Annotated[
        bool, typer.Option("--compare-engines", help="Measure the model on every engine at hand, in turn.")
    ] = False,
    documents: Annotated[str, typer.Option(help="Documents in a request, as 1,20,100.")] = "1,20,100",
    concurrency: Annotated[
        str, typer.Option(help="Clients that ask at the same time; more than the first with one size only.")
    ] = "1,4",
    words: Annotated[str, typer.Option(help="Words in a document; 20-400 for any number between.")] = "100",
    rounds: Annotated[int, typer.Option(help="Rounds of each case.", min=1)] = 5,
    seconds: Annotated[float, typer.Option(help="End after so long with what there is.", min=1)] = 300,
    seed: Annotated[int, typer.Option(help="Of the texts; the same seed sends the same requests.")] = 1,
    as_json: Json = False,
    config_file: Config = None,
) -> None:
    """Measure how fast a model is served: pairs a second, and how long a request takes.

    A pair is one document scored against the query. The service is started for this and asked over HTTP
    as a client asks it, by documents in a request and by clients at a time; no text comes twice, so that no
    cache answers. With --against or
    --compare-engines all servers get the same requests in turn (A B, A B), and the ratios are told: on a busy
    machine they hold where the times do not. Ctrl-C prints what has been measured so far.

    rerankd bench --against http://localhost:8080      compare with a llama-server that runs there
    """
    from rerankd.benchmark import engines, load, report

    if url and (model or compare_engines):
        raise ConfigError("--url measures a server that runs; leave out MODEL and --compare-engines with it.")
    settings = config.from_machine({"model": (model,) if model else None}, config_file)
    if compare_engines:
        path = config_file or config.find(os.environ)
        in_file = config.load(text_files.read(path) if path else "", {}, {})  # what the file alone says
        for name, variable in engines.programs().items():
            if getattr(in_file, name) is not None:
                raise ConfigError(
                    f"The settings file names an engine's program ({name}), so that no other can be started "
                    f"beside it. Leave it out there, and set {variable} for this command."
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
    """Start what has to be started, drive all of it, and stop it again. `arguments` are those of the services
    to start, None for none."""
    from rerankd.benchmark import drive, engines, hardware, service
    from rerankd.benchmark.report import Benchmark
    from rerankd.remote_client import Remote
    from rerankd.serving import backend_offers
    from rerankd.serving.prepare_model import prepare

    with step(tell, "measuring the machine"):
        here = await asyncio.to_thread(hardware.read)
    starts = arguments is not None
    prepared = await asyncio.to_thread(prepare, settings, None, tell) if starts else None
    chosen: list[EngineRow] = []
    if prepared is not None and compare:
        said = await asyncio.to_thread(
            backend_offers.all_offers, prepared.spec, prepared.wanted, settings.home
        )
        chosen = engines.all_of(said, prepared.wanted, settings.home)
    elif prepared is not None:
        chosen = [engines.as_set(prepared.engine)]
    if compare and len(chosen) == 1:
        named = " or ".join(engines.programs().values())
        say(f"There is one engine here: {chosen[0].name}. {named} names another to compare with.")
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
        model=prepared.name if prepared else targets[0].server.served or name or "not told",
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

    # Into a file or a pipe the table is not cut to the width of a terminal that isn't there.
    console = Console(width=None if os.isatty(1) else 200, highlight=False)
    console.print(*report.before(found), sep="\n", markup=False)
    head, rows = report.table(found)
    table = Table(box=None, pad_edge=False)
    for at, title in enumerate(head):
        table.add_column(title, justify="left" if at == 0 else "right")
    for row in rows:
        table.add_row(*map(escape, row))
    console.print("", table, "", sep="\n")
    console.print(*report.after(found), sep="\n", markup=False)
