"""`rerankd eval --calibrate`: fit scores to probabilities of relevance, and write them to the settings."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from rerankd import config, text_files
from rerankd.cli.output import print_json, say
from rerankd.cli.progress_bar import progress
from rerankd.errors import ConfigError, OutputFailed
from rerankd.files import write_whole
from rerankd.progress import Progress, step

if TYPE_CHECKING:
    from rerankd.evaluation.calibrate import Pairs
    from rerankd.evaluation.collection import Collection, Ranking
    from rerankd.serving.prepare_model import Model


@dataclass(frozen=True, slots=True)
class Options:
    """The command's options. `config_file` is the one that the user named."""

    relevant_grade: int
    unjudged_irrelevant: bool
    precision: float
    plot: Path | None
    write: bool
    seed: int
    as_json: bool
    config_file: Path | None


def check(settings: config.Settings, url: str | None) -> None:
    """Raise ConfigError for what has no calibration: a server, and a cascade."""
    if url is not None:
        raise ConfigError(
            "--calibrate needs the model's file, which its calibration is stored with. Name the model with "
            "--model instead of --url."
        )
    if (cascade := settings.first_cascade) is not None:
        raise ConfigError(
            f"{cascade.name} is a cascade. Calibrate the models of its stages one by one: rerankd eval "
            f"--calibrate --model {cascade.stages[-1].model}"
        )


def run(
    settings: config.Settings, collection: Collection, candidates: Ranking | None, options: Options
) -> None:
    """Fit a calibration of the first model, in an engine of its own, and print the report. `candidates` are
    those whose unjudged documents count as not relevant."""
    from rerankd.evaluation import calibrate, calibration_quality, calibration_report, reliability_plot
    from rerankd.recipes import calibrations
    from rerankd.serving.prepare_model import prepare

    with progress() as tell:
        prepared = prepare(settings, None, tell)
        documents = calibrate.judged(collection, candidates)
        pairs = asyncio.run(_scored(settings, prepared, collection, documents, options.relevant_grade, tell))
    found = calibrate.fit(pairs, prepared.recipe.normalization, options.seed)
    calibration = found.calibration(
        model=calibrations.model_digest(prepared.metadata, prepared.recipe),
        collection=collection.name,
        fitted=datetime.date.today().isoformat(),
        relevant_grade=options.relevant_grade,
        unjudged_irrelevant=candidates is not None,
    )
    name, lines = section_to_write(settings, prepared)
    section = calibrations.section(name, calibration)
    report = calibration_report.Report(
        model=prepared.name,
        scoring=prepared.recipe.method,
        fit=found,
        calibration=calibration,
        precision=options.precision,
        threshold=calibration_quality.threshold(found.held_out, pairs.relevant, options.precision),
        lines="\n\n".join((*([lines] if name not in settings.models else []), section)),
    )
    if options.as_json:
        print_json(calibration_report.as_json(report))
    else:
        typer.echo(calibration_report.text(report))
    if not options.write:
        say("To write the section to the settings file, add --write. Then: rerankd reload")
    elif not found.is_better:
        say("Nothing was written: the model's own scores are better probabilities already.")
    else:
        _write_section(options.config_file, name, lines, section)
    if options.plot is not None:
        title = f"{prepared.name} on {collection.name}"
        _write_text(options.plot, reliability_plot.svg(title, found.before.bins, found.after.bins))
        say(f"The reliability plot was written to {options.plot}.")


async def _scored(
    settings: config.Settings,
    prepared: Model,
    collection: Collection,
    documents: Ranking,
    relevant_grade: int,
    report: Progress,
) -> Pairs:
    from rerankd.evaluation import calibrate
    from rerankd.service import Reranker

    async def ask(query: str, texts: Sequence[str]) -> list[float | None]:
        result = await reranker.rerank(query, texts, budget_ms=0, raw_scores=True)
        without = {*result.blank, *result.unscored, *(one.index for one in result.errors)}
        raw = {one.index: one.score / result.divisor for one in result.results}
        return [None if at in without else raw[at] for at in range(len(texts))]

    async with contextlib.AsyncExitStack() as stack:
        with step(report, f"loading {prepared.path.name}"):
            reranker = await stack.enter_async_context(Reranker(settings, prepared=[prepared]))
        return await calibrate.score_pairs(collection, documents, relevant_grade, ask, report)


def section_to_write(settings: config.Settings, prepared: Model) -> tuple[str, str]:
    """The name of the model's section, and the lines that begin it if the settings file has none."""
    ref = prepared.wanted.ref
    return prepared.resolution.name(ref), "\n".join(prepared.resolution.header(ref))


def _write_section(config_file: Path | None, name: str, lines: str, section: str) -> None:
    from rerankd.config import sections

    path = config_file or config.find(os.environ) or Path(config.FILE_NAME)
    by_hand = f"Add the section to {path} by hand: it is printed above."
    try:
        old = text_files.read(path) if path.exists() else ""
        new = sections.with_section(old, ("models", name, "calibration"), section, {name: lines})
        target = path.resolve()  # a link to the file stays a link
        write_whole(target, new.encode(), target.stat().st_mode & 0o777 if target.exists() else 0o644)
    except (OSError, ValueError, ConfigError) as error:
        raise OutputFailed(f"{path} was not changed: {error}. {by_hand}") from error
    say(f"The calibration was written to {path}, section [models.{name}.calibration]. Then: rerankd reload")


def _write_text(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputFailed(f"{path} can't be written: {error.strerror}.") from error
