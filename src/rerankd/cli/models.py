"""`rerankd inspect`, `pull`, `list`, `show` and `remove`: the commands for model files."""

from __future__ import annotations

import contextlib
import re
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from rerankd import config
from rerankd.cli import cascades, completion, running_server
from rerankd.cli.output import Config, Json, print_json, say
from rerankd.cli.progress_bar import progress
from rerankd.cli.tables import print_rows
from rerankd.errors import ConfigError, RerankdError, UnknownModel
from rerankd.progress import size_words, step


def inspect(
    model: Annotated[
        str,
        typer.Argument(
            help="A GGUF file, a safetensors folder, a name from `rerankd list` or `rerankd list --catalog`, "
            "or hf:ORG/REPO.",
            autocompletion=completion.models_known,
        ),
    ],
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Run the self-test: score a few pairs; compare with a second engine if possible."
        ),
    ] = False,
    as_json: Json = False,
    config_file: Config = None,
) -> None:
    """Show what a model file contains, how it is scored and by which engine, or why it is refused.

    Of a repository that was not pulled, it reads the start of each file only.

    Exit code 0 if the model can be scored, 3 if it is refused.
    """
    from rerankd.backends import select
    from rerankd.cli.reading import is_remote, read
    from rerankd.hub import inspect as descriptions
    from rerankd.hub import patched_copies, store
    from rerankd.serving import backend_offers, run_self_test
    from rerankd.serving.prepare_model import fingerprint
    from rerankd.state import StateStore

    settings = config.from_machine({}, config_file)
    if (cascade := settings.cascade(model)) is not None:
        if check:
            raise ConfigError(f"{cascade.name} is a cascade: run --check with the model of each stage.")
        return print_json(cascades.as_json(cascade)) if as_json else typer.echo(cascades.text(cascade))
    wanted = settings.of(model)
    if check and is_remote(settings, wanted):
        raise UnknownModel(f"--check needs the model on this machine. Run `rerankd pull {model}`.")
    with progress() as report:
        found = read(settings, model, report)
    metadata, resolved, path = found.metadata, found.resolved, found.metadata.path
    checks: tuple[str, ...] = ()
    engines: list[dict[str, Any]] = []
    copy: dict[str, Any] | None = None
    if resolved.recipe is not None:  # earlier results of a refused model are of another recipe
        made = fingerprint(path)
        spec = backend_offers.spec(wanted.ref, path, metadata, resolved, wanted, made)
        offers = backend_offers.all_offers(spec, wanted, settings.home)
        engines = select.describe(wanted.engine, offers)
        used = select.used(wanted.engine, offers)
        if used is not None and used.patch is not None:
            copies = store.Store(settings.home).copies
            copy = patched_copies.describe(copies, metadata.parts, used.patch)
        earlier = run_self_test.stored_of_file(StateStore(settings.home), path, made)
        checks = tuple(f"self-test: {one.words}" for one in earlier)
        if check:
            from rerankd import pulling

            checks = tuple(pulling.check(settings, wanted))
    if found.remote is not None and resolved.recipe is not None:
        size = size_words(found.remote.choice.size_bytes)
        checks = (f"not on this machine: rerankd pull {model} downloads {size}",)
    if as_json:
        print_json(
            {
                **descriptions.describe_json(metadata, resolved, wanted.ref),
                "path": None if found.remote is not None else str(path),
                "source": found.place if found.remote is not None else None,
                "engines": engines,
                "patched_copy": copy,
                "checks": list(checks),
            }
        )
    else:
        lines = [descriptions.describe(metadata, resolved, wanted.ref, place=found.place)]
        lines += map(select.line, engines)
        lines += [patched_copies.line(copy), *checks] if copy is not None else checks
        typer.echo("\n".join(lines))
        if resolved.settings():
            say(f"\nTo write this section to a file, with explanations: rerankd recipe new {model}")
    if resolved.recipe is None:
        raise typer.Exit(3)


def pull(
    model: Annotated[
        str,
        typer.Argument(
            help="A name from `rerankd list --catalog`, optionally with :QUANT, or hf:ORG/REPO.",
            autocompletion=completion.models_to_pull,
        ),
    ],
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Start an engine once to check the model's scores.")
    ] = True,
    config_file: Config = None,
) -> None:
    """Download a model from Hugging Face (hf:) or ModelScope (ms:), and check it.

    rerankd reads the file's header first: a model that it can't score is not downloaded. An interrupted
    download resumes.
    """
    from rerankd.hub import builtin, store

    settings = config.from_machine({}, config_file)
    scoring = cascades.of_model(settings, model).scoring
    folders = store.Store(settings.home)
    folders.check_writable()
    with progress() as report:
        if model == builtin.NAME:
            folders.locate(model, report, settings.builtin_wheel)
            say(f"{model} is ready. To serve it: rerankd serve {model}")
            return
        from rerankd import pulling

        def start(path: Path) -> None:
            with step(report, "starting the engine to check it"):
                pulling.start_once(settings, path, scoring, report)

        record = pulling.pull(
            settings, model, say=say, progress=report, check=start if check else lambda path: None
        )
    say(f"{record.name} is ready. To serve it: rerankd serve {record.name}")


def list_models(
    catalog: Annotated[bool, typer.Option("--catalog", help="List the models of the catalog.")] = False,
    recommend: Annotated[
        bool,
        typer.Option(
            "--recommend",
            help="Only the models of the catalog that suit this machine best, each with the reason.",
        ),
    ] = False,
    language: Annotated[
        str,
        typer.Option(
            help="With --recommend: the language of the texts, such as zh.", show_default="many languages"
        ),
    ] = "",
    commercial: Annotated[
        bool, typer.Option("--commercial", help="With --recommend: only licences for commercial use.")
    ] = False,
    as_json: Json = False,
    config_file: Config = None,
) -> None:
    """List the models on this machine, or with --catalog those that can be pulled by name."""
    from rerankd.hub import listing, store
    from rerankd.serving.prepare_model import resolve_model

    if (language or commercial) and not recommend:
        raise ConfigError("--language and --commercial are for --recommend. Add it: rerankd list --recommend")
    settings = config.from_machine({}, config_file)
    if recommend:
        _recommend(settings, language, commercial=commercial, as_json=as_json)
        return
    folders = store.Store(settings.home)
    rows = listing.pullable() if catalog else listing.present(folders, partial(resolve_model, settings))
    if as_json:
        print_json(rows)
    elif rows:
        print_rows(listing.columns(rows, catalog=catalog))
    else:
        say("No models on this machine yet. To see what can be pulled: rerankd list --catalog")
    if not catalog:
        for sentence in listing.outside(folders):
            say(sentence)


def _recommend(settings: config.Settings, language: str, *, commercial: bool, as_json: bool) -> None:
    """Print the models of the catalog that suit this machine."""
    from rerankd.hub import recommendation
    from rerankd.serving import backend_offers

    code = re.split("[-_]", language.strip().lower())[0]
    if language and not re.fullmatch("[a-z]{2,3}", code):
        raise ConfigError(
            f"--language is {language!r}, but must be a code of two or three letters, such as zh."
        )
    wish, has_unknown_gpu = backend_offers.wish_of(settings, code, commercial=commercial)
    found = recommendation.describe(wish, has_unknown_gpu=has_unknown_gpu)
    if as_json:
        print_json(found)
    else:
        typer.echo(recommendation.text(found))


def show(
    model: Annotated[
        str,
        typer.Argument(
            help="A name from `rerankd list` or `rerankd list --catalog`.",
            autocompletion=completion.models_known,
        ),
    ],
    as_json: Json = False,
    config_file: Config = None,
) -> None:
    """Show a model's file and how it is scored, or where it can be pulled from; of a cascade, its stages."""
    from rerankd.hub import listing, store
    from rerankd.serving.prepare_model import resolve_model

    settings = config.from_machine({}, config_file)
    if (cascade := settings.cascade(model)) is not None:
        description = cascades.as_json(cascade)
    else:
        # Several sections may have one file: the settings are those of the section that was named.
        description = listing.describe(
            store.Store(settings.home),
            settings.of(model).ref,
            lambda metadata, _: resolve_model(settings, metadata, model),
        )
    if as_json:
        print_json(description)
    else:
        typer.echo(description["text"])


def remove(
    model: Annotated[
        str, typer.Argument(help="A name from `rerankd list`.", autocompletion=completion.models_pulled)
    ],
    config_file: Config = None,
) -> None:
    """Delete a pulled model from this machine, or the patched copy that was made of a file."""
    from rerankd.hub import store

    settings = config.from_machine({}, config_file)
    folders = store.Store(settings.home)
    record = folders.find(model)
    if record is None:
        path = Path(model).expanduser()
        if found := [
            *folders.copies.of_source(path),
            *(one for one in folders.copies.sources() if one == path),
        ]:
            freed_bytes = folders.copies.remove(found)
            say(f"The patched copy of {path.name} was deleted ({size_words(freed_bytes)}).")
            return
        names = ", ".join(record.name for record in folders.records()) or "none"
        raise UnknownModel(f"{model!r} is not a pulled model. Pulled models: {names}.")
    freed_bytes = folders.remove(record)
    say(f"{record.name} was deleted ({size_words(freed_bytes)}).")
    if _is_served(settings, record.name):
        say(
            f"note: the server at {settings.local_url} still serves {record.name} from memory, until it is "
            f"restarted or unloads the model. To pull it again: rerankd pull {record.name}"
        )


def _is_served(settings: config.Settings, name: str) -> bool:
    """Whether the running server serves a model of this name."""
    with contextlib.suppress(RerankdError):
        answer = running_server.request(settings, "GET", "/v1/status", status=200, has="models", timeout_s=2)
        return any(one.get("id") == name for one in answer["models"])
    return False
