"""`rerankd score`: score all pairs of a file."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rerankd import config
from rerankd.cli import pair_options
from rerankd.cli.output import Config, Json, print_json, say
from rerankd.cli.progress_bar import progress
from rerankd.cli.setting_options import takes
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
    model: pair_options.Model = None,
    query_column: pair_options.QueryColumn = "query",
    document_column: pair_options.DocumentColumn = "document",
    instruction_column: pair_options.InstructionColumn = "",
    score_column: pair_options.ScoreColumn = "score",
    error_column: pair_options.ErrorColumn = "error",
    instruction: pair_options.Instruction = None,
    raw_scores: pair_options.RawScores = False,
    delimiter: pair_options.Delimiter = None,
    restart: pair_options.Restart = False,
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
    from rerankd.bulk.job import Job, settings_for_pairs
    from rerankd.bulk.parts import Parts
    from rerankd.bulk.row_scorer import Kind
    from rerankd.bulk.rows import Columns

    given = {**flags, "model": (model,) if model else None}
    settings = settings_for_pairs(config.from_machine(given, config_file))
    columns = Columns(query_column, document_column, instruction_column, score_column, error_column)
    found = format_of(source, target, delimiter)
    job = Job(source, found, columns, Kind(raw_scores, instruction))
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
        typer.echo(pair_options.summary(report, str(target)))
    if report.has_no_score:
        raise typer.Exit(1)


async def _run(job: Job, parts: Parts, settings: Settings, restart: bool, tell: Progress) -> Report:
    from rerankd.bulk.job import check_input, finish, identity, run
    from rerankd.service import Reranker
    from rerankd.serving.prepare_model import prepare

    # Before a model is downloaded for it.
    parts.check_new()
    await asyncio.to_thread(check_input, job)
    prepared = await asyncio.to_thread(prepare, settings, None, tell)
    with parts.held(identity(job, prepared), restart=restart):
        if parts.rows:
            say(f"{parts.rows:,} rows are scored already; going on after them.")
        async with Reranker(settings, prepared=[prepared]) as reranker:
            report = await run(job, reranker, parts, tell)
        with step(tell, f"writing {parts.target.name}"):
            await finish(parts)
    return report
