"""`rerankd tune`: fine-tune a small cross-encoder on the user's own queries and documents."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rerankd import config
from rerankd.cli import completion
from rerankd.cli.cascades import of_model
from rerankd.cli.output import Config, Json, print_json, say
from rerankd.cli.progress_bar import progress
from rerankd.cli.training_bar import TrainingBar

_STOPPED = 130


def tune(
    collection: Annotated[
        Path,
        typer.Argument(
            help="A folder in BEIR's layout: corpus.jsonl, queries.jsonl, and qrels/SPLIT.tsv if there are "
            "judgements."
        ),
    ],
    base: Annotated[
        str,
        typer.Option(
            help="The model to tune, from safetensors: a small cross-encoder, or an encoder without a head.",
            autocompletion=completion.models_here,
        ),
    ],
    output: Annotated[Path, typer.Option(help="Write the tuned model to this new folder.")],
    teacher: Annotated[
        str | None,
        typer.Option(
            help="The model whose scores are learned: any model that rerankd serves.",
            show_default="none: the judgements are learned",
            autocompletion=completion.models_here,
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Name of the judgements file: qrels/SPLIT.tsv.")] = "train",
    candidates: Annotated[
        int, typer.Option(help="Number of BM25 documents to learn and to rerank per query.", min=2, max=1000)
    ] = 30,
    epochs: Annotated[
        int, typer.Option(help="Number of passes over the pairs, at most.", min=1, max=1000)
    ] = 3,
    batch_size: Annotated[int, typer.Option(help="Number of pairs per training step.", min=1, max=4096)] = 32,
    max_length: Annotated[
        int | None,
        typer.Option(
            help="Maximum tokens of a pair, in training and of the tuned model.",
            show_default="the base model's, at most 512",
            min=16,
        ),
    ] = None,
    learning_rate: Annotated[
        float,
        typer.Option(help="The highest learning rate, reached after a tenth of the steps.", min=1e-8, max=1),
    ] = 2e-5,
    patience: Annotated[
        int,
        typer.Option(
            help="Stop after this many validations in a row without an improvement.", min=1, max=1000
        ),
    ] = 3,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with an unfinished tuning of this output, if there is one."),
    ] = False,
    lenient: Annotated[bool, typer.Option(help="Skip invalid lines instead of exiting.")] = False,
    as_json: Json = False,
    config_file: Config = None,
) -> None:
    """Fine-tune a small cross-encoder on your own queries and documents.

    With --teacher, the model learns the scores of a larger model for the documents that BM25 finds for each
    query; most queries then need no judgements. Without it, the model learns the judgements. A part of the
    queries is held out; at the end, the base model, the tuned model and the teacher are compared on it.

    The result is a folder that rerankd serve takes. Checkpoints are in OUTPUT.tuning until then. Needs
    rerankd[tune] and rerankd[eval], and at least 200 queries; see docs/tuning.md.
    """
    from rerankd.evaluation.collection import Faults
    from rerankd.tuning import report
    from rerankd.tuning.run import Stopped, Wanted
    from rerankd.tuning.run import tune as run

    settings = config.from_machine({}, config_file)
    for model in filter(None, (base, teacher)):
        of_model(settings, model)
    wanted = Wanted(
        collection=collection,
        base=base,
        output=output,
        teacher=teacher,
        split=split,
        candidates=candidates,
        epochs=epochs,
        batch_size=batch_size,
        max_length=max_length,
        learning_rate=learning_rate,
        patience=patience,
        resume=resume,
    )
    faults = Faults(lenient=lenient)
    try:
        result = run(settings, wanted, faults, _View())
    except Stopped as stopped:
        say(str(stopped))
        raise typer.Exit(_STOPPED) from None
    if faults.skipped:
        say(f"Invalid lines that were skipped (--lenient): {len(faults.skipped)}")
    if as_json:
        print_json(report.as_json(result))
    else:
        typer.echo(report.text(result))


class _View:
    """Shows a tuning on standard error (see tuning/run.py)."""

    progress = staticmethod(progress)
    training = staticmethod(TrainingBar)
    say = staticmethod(say)
