"""`rerankd score`: score all pairs of a file."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rerankd import config
from rerankd.cli import completion
from rerankd.cli.output import Config, Json, print_json, say
from rerankd.cli.progress_bar import progress
from rerankd.cli.setting_options import takes
from rerankd.config.model_settings import DAY_S
from rerankd.errors import ConfigError
from rerankd.progress import Progress, step

if TYPE_CHECKING:
    from rerankd.bulk.job import Job, Report
    from rerankd.bulk.parts import Parts
    from rerankd.config import Settings


@takes("replicas", "threads", "engine")
def score(
    source: Annotated[
        Path,
        typer.Argument(metavar="IN", help="File with one pair per row: .jsonl, .csv, .tsv or .parquet."),
    ],
    target: Annotated[
        Path, typer.Argument(metavar="OUT", help="File to write, of the same format: IN with the scores.")
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help="Model to score with.",
            show_default="the configured model",
            autocompletion=completion.models_here,
        ),
    ] = None,
    query_column: Annotated[str, typer.Option(help="Column with the query.")] = "query",
    document_column: Annotated[str, typer.Option(help="Column with the document.")] = "document",
    instruction_column: Annotated[
        str, typer.Option(help="Column with the instruction.", show_default="none")
    ] = "",
    score_column: Annotated[str, typer.Option(help="Column to add for the score.")] = "score",
    error_column: Annotated[
        str, typer.Option(help="Column to add for the reason why a row has no score.")
    ] = "error",
    instruction: Annotated[
        str | None, typer.Option(help="Instruction that replaces the model's own, for rows without one.")
    ] = None,
    raw_scores: Annotated[
        bool, typer.Option(help="Write the model's raw scores instead of scores from 0 to 1.")
    ] = False,
    delimiter: Annotated[
        str | None,
        typer.Option(help="Character between values.", show_default="comma, for .tsv a tab"),
    ] = None,
    restart: Annotated[
        bool, typer.Option(help="Begin again, without the rows that an earlier run has scored.")
    ] = False,
    as_json: Json = False,
    config_file: Config = None,
    **flags: Any,
) -> None:
    """Score the pairs of query and document in a file, for jobs of any size.

    OUT gets the rows of IN in their order, with the score of each; a row that can't be scored gets the
    reason. Memory does not grow with the file. If the command is stopped, in whatever way, the scored rows
    are kept in the folder OUT.parts, and the same command goes on after them. Exit code 1 if no row has a
    score.

    Starts its own engines. For several cores or GPUs set --replicas. Rows with the same query are scored
    faster if they follow each other.
    """
    from rerankd.bulk.formats import format_of
    from rerankd.bulk.job import Job
    from rerankd.bulk.parts import Parts
    from rerankd.bulk.rows import Columns

    given = {**flags, "model": (model,) if model else None}
    settings = config.from_machine(given, config_file)
    if (cascade := settings.first_cascade) is not None:
        raise ConfigError(
            f"{cascade.name} is a cascade, which ranks all documents of a query; the score of a pair is that "
            f"of one model. Name it, for example --model {cascade.stages[-1].model}"
        )
    columns = Columns(query_column, document_column, instruction_column, score_column, error_column)
    found = format_of(source, target, delimiter)
    job = Job(source, found, columns, raw_scores, instruction)
    parts = Parts(target, found, columns)
    with progress(rows="scoring ") as tell:
        try:
            report = asyncio.run(_run(job, parts, settings, restart, tell))
        except KeyboardInterrupt:
            if parts.is_finished:
                say(f"\n{target} is complete.")
            elif parts.rows:
                say(f"\n{parts.rows:,} rows are kept in {parts.folder}. Run the same command again to go on.")
            raise
    if as_json:
        print_json({**asdict(report), "output": str(target)})
    else:
        typer.echo(_text(report, target))
    if report.has_no_score:
        raise typer.Exit(1)


async def _run(job: Job, parts: Parts, settings: Settings, restart: bool, tell: Progress) -> Report:
    from rerankd.bulk.job import check_input, finish, identity, run
    from rerankd.service import Reranker
    from rerankd.serving.prepare_model import prepare

    # Before a model is downloaded for it.
    parts.check_new()
    await asyncio.to_thread(check_input, job)
    # A row waits for as long as its engine needs.
    settings = config.override(settings, {"request_timeout_s": DAY_S})
    prepared = await asyncio.to_thread(prepare, settings, None, tell)
    with parts.held(identity(job, prepared), restart=restart):
        if parts.rows:
            say(f"{parts.rows:,} rows are scored already; going on after them.")
        async with Reranker(settings, prepared=[prepared]) as reranker:
            report = await run(job, reranker, parts, tell)
        with step(tell, f"writing {parts.target.name}"):
            await finish(parts)
    return report


def _text(report: Report, target: Path) -> str:
    new = report.rows - report.earlier
    speed = f"{new:,} in {report.seconds:,.1f} s ({report.rows_per_s:,.3g} rows/s)"
    lines = [f"{target}: {report.rows:,} rows" + (f", {speed}" if report.seconds else "")]
    if report.truncated:
        lines.append(f"{report.truncated:,} documents were truncated to the model's length")
    if report.has_no_score:
        lines.append(f"No row has a score. The first error: {report.examples[0]}")
    elif report.failed:
        lines.append(f"{report.failed:,} rows have no score, such as: {report.examples[0]}")
    return "\n".join(lines)
