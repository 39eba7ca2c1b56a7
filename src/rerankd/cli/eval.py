"""`rerankd eval`: measure the ranking quality of a model on a collection."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rerankd import config
from rerankd.cli import calibrate as calibration
from rerankd.cli import completion
from rerankd.cli.output import Config, Json, print_json, say
from rerankd.cli.progress_bar import progress
from rerankd.errors import ConfigError, RemoteError
from rerankd.progress import Progress, step

if TYPE_CHECKING:
    from rerankd.evaluation.collection import Ranking
    from rerankd.evaluation.second_stage import Ask
    from rerankd.remote_client import Remote


def evaluate(
    collection: Annotated[
        Path | None,
        typer.Argument(
            help="A folder in BEIR's layout: corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv.",
            show_default="a small collection included in rerankd",
        ),
    ] = None,
    model: completion.OwnModel = None,
    url: Annotated[
        str | None,
        typer.Option(help="URL of the server to use: rerankd, llama-server, TEI, Infinity, Cohere's API …"),
    ] = None,
    remote_model: Annotated[
        str | None, typer.Option(help="Model name to send in requests to --url, if it requires one.")
    ] = None,
    api_key: Annotated[str | None, typer.Option(help="API key for the server of --url.")] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            help="Results of the first stage, as a TREC run (query Q0 document rank score tag).",
            show_default="BM25 over the documents",
        ),
    ] = None,
    candidates: Annotated[
        int, typer.Option(help="Number of first-stage documents to rerank per query.", min=1, max=10**6)
    ] = 50,
    split: Annotated[str, typer.Option(help="Name of the judgements file: qrels/SPLIT.tsv.")] = "test",
    measures: Annotated[
        list[str] | None,
        typer.Option(
            "--measure",
            help="Measure, named as in ir-measures; may be repeated.",
            show_default="nDCG@10, RR@10, R@10",
        ),
    ] = None,
    shown: Annotated[
        int,
        typer.Option("--show", help="Number of queries to show that lost most, and that gained most.", min=0),
    ] = 3,
    save_run: Annotated[
        Path | None, typer.Option(help="Write the reranked order to this file, as a TREC run.")
    ] = None,
    lenient: Annotated[bool, typer.Option(help="Skip and report invalid lines instead of exiting.")] = False,
    seed: Annotated[
        int, typer.Option(help="Random seed of the significance test; the same seed gives the same p-value.")
    ] = 1,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="Fit the model's scores to probabilities of relevance, instead of comparing two orders.",
        ),
    ] = False,
    precision: Annotated[
        float,
        typer.Option(
            help="With --calibrate: propose a score_threshold that keeps this share of relevant documents.",
            min=0.01,
            max=1,
        ),
    ] = 0.9,
    relevant_grade: Annotated[
        int, typer.Option(help="With --calibrate: the lowest grade that counts as relevant.", min=1)
    ] = 1,
    unjudged_irrelevant: Annotated[
        bool,
        typer.Option(
            "--unjudged-irrelevant",
            help="With --calibrate: first-stage candidates without a judgement count as not relevant.",
        ),
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(help="With --calibrate: write a reliability plot to this file, as SVG.")
    ] = None,
    write: Annotated[
        bool,
        typer.Option("--write", help="With --calibrate: write the calibration to the settings file."),
    ] = False,
    as_json: Json = False,
    config_file: Config = None,
) -> None:
    """Measure how much a reranker improves the order of search results.

    A collection contains queries, documents, and judgements of which documents answer which query. A first
    stage finds candidates for each query, the model reranks them, and both orders are compared with the
    judgements: nDCG@10 (are the best documents on top?), RR@10 (how high is the first good document? Its mean
    is MRR), R@10 (what share of the good documents is in the top ten?). All are between 0 and 1.

    With --calibrate, the command starts an engine, fits a function from the model's raw scores to the
    probability that a document is relevant, and prints it as a section of rerankd.toml.

    Without --model and --url, the command uses the server running on this machine; if none is running, it
    starts an engine with the configured model. To try it, run rerankd eval.
    """
    from rerankd import evaluation
    from rerankd.evaluation import bm25, measure, report, second_stage
    from rerankd.evaluation.collection import EVERYDAY, Faults, read, read_run
    from rerankd.remote_client import Remote

    evaluation.check_installed()
    settings = config.from_machine({"model": (model,) if model else None}, config_file)
    names = measures or measure.MEASURES
    measure.parse(names)  # before minutes of work, not after
    for option, file in (("--save-run", save_run), ("--plot", plot)):
        if file is not None and not file.parent.is_dir():
            raise ConfigError(f"{option}: the folder {file.parent} does not exist.")
        if file is not None and file.is_dir():
            raise ConfigError(f"{option}: {file} is a folder; name a file.")
    faults = Faults(lenient=lenient)
    if calibrate:
        calibration.check(settings, url)
    elif write or plot is not None:
        raise ConfigError(f"{'--write' if write else '--plot'} belongs to --calibrate. Add --calibrate.")
    judged = read(collection or EVERYDAY, split, faults)

    server = Remote(url, api_key=api_key, model=remote_model) if url else None
    if server is None and not model:
        server = Remote(settings.local_url, api_key=settings.api_key)

    async def reranked(found: Ranking, report: Progress) -> tuple[str, second_stage.Reranked]:
        async with _asked(settings, server, not url, report) as (name, ask):
            return name, await second_stage.rerank(judged, found, ask, report)

    def first_stage(tell: Progress) -> Ranking:
        return read_run(run, judged, candidates, faults) if run else bm25.rank(judged, candidates, tell)

    if calibrate:
        with progress() as tell:
            unjudged = first_stage(tell) if unjudged_irrelevant else None
        calibration.run(
            settings,
            judged,
            unjudged,
            calibration.Options(
                relevant_grade, unjudged_irrelevant, precision, plot, write, seed, as_json, config_file
            ),
        )
        return
    with progress() as tell:
        first = first_stage(tell)
        name, after = asyncio.run(reranked(first, tell))
    found = report.Evaluation(
        collection=judged,
        model=name,
        first_stage=f"the run {run}" if run else "BM25",
        depth=candidates,
        candidates=first,
        reranked=after,
        comparisons=measure.compare(judged.judgements, first, after.ranking, names, seed),
        skipped=faults.skipped,
    )
    if save_run is not None:
        save_run.write_text("\n".join(report.run_lines(after.ranking, name)) + "\n", encoding="utf-8")
        say(f"The reranked order was written to {save_run}.")
    if as_json:
        print_json(report.as_json(found))
    else:
        typer.echo(report.text(found, shown))


@contextlib.asynccontextmanager
async def _asked(
    settings: config.Settings, server: Remote | None, may_be_down: bool, report: Progress
) -> AsyncIterator[tuple[str, Ask]]:
    """Yield the name of the reranker and a function that ranks documents: the server's if one is running,
    else that of an engine started for this command."""
    from rerankd.service import Reranker
    from rerankd.serving.prepare_model import prepare_first

    async with contextlib.AsyncExitStack() as stack:
        if server is not None:
            try:
                await stack.enter_async_context(server)
            except RemoteError:
                if not may_be_down:
                    raise
            else:
                yield f"{server.served or server.model or 'the model'} at {server.url}", _order_of(server)
                return
        name, models = await asyncio.to_thread(prepare_first, settings, report)
        with step(report, f"loading {name}"):
            reranker = await stack.enter_async_context(Reranker(settings, prepared=models))

        async def ask(query: str, documents: Sequence[str]) -> Sequence[int]:
            result = await reranker.rerank(query, documents, budget_ms=0)
            return [scored.index for scored in result.results]

        yield name, ask


def _order_of(server: Remote) -> Ask:
    async def ask(query: str, documents: Sequence[str]) -> Sequence[int]:
        return (await server.rerank(query, documents)).order()

    return ask
