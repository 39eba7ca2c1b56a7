"""Options of the commands that score files of pairs, and how they tell what they did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rerankd.cli import completion

if TYPE_CHECKING:
    from rerankd.bulk.job import Report

Model = Annotated[
    str | None,
    typer.Option(
        help="Model to score with.",
        show_default="the configured model",
        autocompletion=completion.models_here,
    ),
]
QueryColumn = Annotated[str, typer.Option(help="Column with the query.")]
DocumentColumn = Annotated[str, typer.Option(help="Column with the document.")]
InstructionColumn = Annotated[str, typer.Option(help="Column with the instruction.", show_default="none")]
ScoreColumn = Annotated[str, typer.Option(help="Column to add for the score.")]
ErrorColumn = Annotated[str, typer.Option(help="Column to add for the reason why a row has no score.")]
Instruction = Annotated[
    str | None, typer.Option(help="Instruction that replaces the model's own, for rows without one.")
]
RawScores = Annotated[bool, typer.Option(help="Write the model's raw scores instead of scores from 0 to 1.")]
Delimiter = Annotated[
    str | None, typer.Option(help="Character between values.", show_default="comma, for .tsv a tab")
]
Restart = Annotated[bool, typer.Option(help="Begin again, without the rows that an earlier run has scored.")]


def summary(report: Report, target: str) -> str:
    """Say what a job did."""
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
