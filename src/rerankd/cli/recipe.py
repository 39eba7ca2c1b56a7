"""`rerankd recipe`: print a model's recipe as TOML, write one to fill in, and test one on known scores."""

from __future__ import annotations

import asyncio
import contextlib
import tomllib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rerankd import config
from rerankd.cli import cascades, completion
from rerankd.cli.help import App
from rerankd.cli.output import Config, Json, print_json, say
from rerankd.cli.progress_bar import progress
from rerankd.cli.tables import print_rows
from rerankd.errors import ConfigError, OutputFailed
from rerankd.progress import Progress, step

if TYPE_CHECKING:
    from rerankd.evaluation.known_pairs import Compared, Pair
    from rerankd.serving.prepare_model import Model

app = App(help="Print, write and test recipes: how a model is scored.", no_args_is_help=True)

_Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A GGUF file, a safetensors folder, a name from `rerankd list` or `rerankd list --catalog`, or "
        "hf:ORG/REPO.",
        autocompletion=completion.models_known,
    ),
]
_WIDEST = 40  # characters of a query or document in the table


@app.command()
def show(model: _Model, as_json: Json = False, config_file: Config = None) -> None:
    """Print a model's recipe as TOML, with the source of each part; of a cascade, its stages.

    The output is a section of rerankd.toml with the whole recipe. Edit it to score the model differently;
    unedited, it does not change the scores. Exit code 3 if the model is refused.
    """
    from rerankd.cli.reading import read
    from rerankd.recipes.recipe_section import section

    settings = config.from_machine({}, config_file)
    sources: dict[str, str] = {}
    if (cascade := settings.cascade(model)) is not None:
        text = cascades.section(cascade)
    else:
        wanted = settings.of(model)
        with progress() as report:
            found = read(settings, model, report)
        recipe = found.resolved.require(wanted.ref)
        _check_name(wanted.ref)
        text, sources = (
            section(found.resolved, recipe, wanted.ref, wanted.scoring.pooling),
            {**recipe.sources},
        )
    if as_json:
        print_json({**tomllib.loads(text), "sources": sources, "text": text})
    else:
        typer.echo(text)


@app.command()
def new(
    model: _Model,
    output: Annotated[
        Path | None, typer.Option(help="File to write.", show_default="the model's name and .toml")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    config_file: Config = None,
) -> None:
    """Write a recipe to fill in, for a model that is refused.

    For a model whose files do not declare its whole recipe, such as its prompt. The output is a section of
    rerankd.toml, with explanations and examples; what the files declare is filled in. Exit code 3 if no
    recipe would help.
    """
    from rerankd.cli.reading import read
    from rerankd.recipes import causal_layout, recipe_section
    from rerankd.recipes.resolution import section_name

    settings = config.from_machine({}, config_file)
    ref = cascades.of_model(settings, model).ref
    _check_name(ref)
    with progress() as report:
        found = read(settings, model, report)
    if found.resolved.recipe is not None:
        raise ConfigError(
            f"rerankd can score {ref} without further settings. To print its recipe: rerankd recipe show "
            f"{model}"
        )
    path = output or Path(f"{section_name(ref)}.toml")
    declared = causal_layout.causal_recipe(found.metadata)
    lines = declared.settings if isinstance(declared, causal_layout.CausalRecipe) else ""
    text = recipe_section.to_fill_in(found.resolved, ref, str(path), lines)
    if not text:
        found.resolved.require(ref)
    if path.exists() and not force:
        raise ConfigError(
            f"{path} exists and was not changed. Choose another file with --output, or replace it with "
            "--force."
        )
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputFailed(f"{path} can't be written: {error.strerror}.") from error
    say(
        f"{path} was written. Fill it in from the model card, then: rerankd recipe test {path} --pairs "
        "PAIRS.jsonl"
    )


def _check_name(ref: str) -> None:
    """Raise ConfigError for a path that a settings file, which is UTF-8, can't name."""
    try:
        ref.encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"The path {ref} has bytes that are not UTF-8, so a settings file can't name it. Rename the file."
        ) from None


@app.command()
def test(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A settings file with the recipe in a [models.NAME] section."),
    ],
    pairs: Annotated[
        Path,
        typer.Option(
            help="Pairs with known scores, one JSON object per line: query, document, and either raw (the "
            "raw score) or score (from 0 to 1); optionally instruction and tolerance."
        ),
    ],
    model: Annotated[
        str | None, typer.Option("--model", help="The section to test, if the file has more than one.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare the scores of a recipe with known scores.

    Starts an engine once, and scores each pair by the recipe in FILE. Take the known scores from the model
    card, or compute them with the reference implementation. The default tolerance is 0.05 for a raw score and
    0.0125 for a score. Exit code 1 if a pair is outside its tolerance.
    """
    from rerankd.evaluation import known_pairs
    from rerankd.serving.prepare_model import prepare

    settings = config.from_machine({}, file)
    name = _section(settings, file, model)
    known = known_pairs.read(pairs)
    wanted = cascades.of_model(settings, name).model_copy(update={"replicas": 1, "preload": True})
    with progress() as report:
        prepared = prepare(settings, wanted, report)
        compared = asyncio.run(_scored(settings, prepared, known, report))
    passed = all(one.passed for one in compared)
    entry = _catalog_table(prepared) if passed else ""
    if as_json:
        print_json(_as_json(name, compared, entry))
    else:
        _print(compared, entry)
    if not passed:
        raise typer.Exit(1)


def _section(settings: config.Settings, file: Path, wanted: str | None) -> str:
    """The name of the section to test."""
    names = ", ".join(settings.models)
    if wanted is not None and wanted not in settings.models:
        raise ConfigError(f"{file} has no section [models.{wanted}]. Its sections: {names or 'none'}.")
    if not settings.models:
        raise ConfigError(
            f"{file} has no [models.NAME] section. To write one: rerankd recipe show MODEL, or, for a "
            "refused model, rerankd recipe new MODEL"
        )
    if wanted is None and len(settings.models) > 1:
        raise ConfigError(f"{file} has several sections: {names}. Name one with --model.")
    return wanted or names


async def _scored(
    settings: config.Settings, prepared: Model, known: Sequence[Pair], report: Progress
) -> list[Compared]:
    """Start the model's engine, and score each pair in a request of its own."""
    from rerankd.evaluation import known_pairs
    from rerankd.service import Reranker

    compared = []
    async with contextlib.AsyncExitStack() as stack:
        with step(report, f"loading {prepared.path.name}"):
            reranker = await stack.enter_async_context(Reranker(settings, prepared=[prepared]))
        for at, pair in enumerate(known):
            report("scoring the pairs", at, len(known))
            result = await reranker.rerank(
                pair.query, [pair.document], instruction=pair.instruction, raw_scores=pair.is_raw, budget_ms=0
            )
            problem = "the document was truncated to max_length" if result.truncated else ""
            problem = "the document is blank" if result.blank else problem
            problem = result.errors[0].reason if result.errors else problem
            got = None if result.blank or result.unscored or result.errors else result.results[0].score
            compared.append(known_pairs.Compared(pair, got, problem))
        report("scoring the pairs", len(known), len(known))
    return compared


def _catalog_table(model: Model) -> str:
    """The lines that add this recipe to the catalog, "" if the catalog has the model."""
    from rerankd.recipes.recipe_section import catalog_table

    entry = model.resolution.entry
    return "" if entry is not None and not entry.refused else catalog_table(model.recipe, model.metadata)


def _print(compared: Sequence[Compared], entry: str) -> None:
    rows = [
        (
            _short(one.pair.query),
            _short(one.pair.document),
            f"{one.pair.expected:.4f}",
            "-" if one.got is None else f"{one.got:.4f}",
            "-" if one.got is None else f"{one.difference:.2g}",
            f"{one.pair.tolerance:g}",
            "ok" if one.passed else "outside",
        )
        for one in compared
    ]
    print_rows([("query", "document", "expected", "got", "difference", "tolerance", "result"), *rows])
    for at, one in enumerate(compared, 1):
        if one.problem:
            say(f"note: pair {at}: {one.problem}")
    count = sum(one.passed for one in compared)
    largest = max((one.difference for one in compared if one.got is not None), default=None)
    size = f"; the largest difference is {largest:.2g}" if largest is not None else ""
    say(f"{count} of {len(compared)} pairs are within their tolerance{size}.")
    if entry:
        say(
            "\nTo propose this recipe for rerankd's catalog, complete these lines and send them in a pull "
            "request for src/rerankd/recipes/catalog.toml, with the pairs and the source of their scores:\n\n"
            f"{entry}"
        )


def _short(text: str) -> str:
    """A text on one line, shortened."""
    line = " ".join(text.split())
    return line if len(line) <= _WIDEST else line[: _WIDEST - 1] + "…"


def _as_json(name: str, compared: Sequence[Compared], entry: str) -> dict[str, Any]:
    scored = [one for one in compared if one.got is not None]
    return {
        "model": name,
        "passed": all(one.passed for one in compared),
        "largest_difference": max((one.difference for one in scored), default=None),
        "pairs": [
            {
                **asdict(one.pair),
                "got": one.got,
                "difference": one.difference if one.got is not None else None,
                "passed": one.passed,
                "problem": one.problem or None,
            }
            for one in compared
        ],
        "catalog_entry": entry or None,
    }
