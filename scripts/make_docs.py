"""Generate the parts of docs/ that repeat the code: `make docs`.

The settings of docs/configuration.md come from their descriptions, docs/cli.md from the commands' help, the
tables of docs/models.md from the catalog and from the tests' kinds of files, the memory in docs/gpu.md from
the estimate that chooses an engine, and the options and paths of docs/api.md from the tables that the service
reads. The alert rules for the Prometheus operator are those of deploy/prometheus/.
tests/test_documentation.py fails if a page is out of date.
"""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from typer.main import get_command

from rerankd import config, memory
from rerankd.api.dialects import options, table
from rerankd.backends.torch import placement
from rerankd.backends.torch.devices import Arithmetic
from rerankd.cli import app, setting_options
from rerankd.deprecated_names import RENAMED
from rerankd.formats.metadata import ModelMetadata
from rerankd.hub import listing

DOCS = Path(__file__).parents[1] / "docs"
DEPLOY = Path(__file__).parents[1] / "deploy"
sys.path.append(str(DOCS.parent / "tests"))  # for family_table


def settings() -> str:
    """The table of all settings except the sections."""
    fields = config.Settings.model_fields
    # The settings that a model can have of its own, and those of backends, come last.
    of_models = (config.RequestDefaults, config.ServingSettings, config.RaySettings)
    last = [*(name for group in of_models for name in group.model_fields), *setting_options.of_backends()]
    rows = [
        f"| `{name}` | {_default(name, field)} | {field.description} | {config.needs(name)} |"
        for name, field in sorted(fields.items(), key=lambda row: row[0] in last and last.index(row[0]) + 1)
        if name not in ("models", "scoring", "upstreams")
    ]
    return "\n".join(["| setting | default | meaning | on SIGHUP |", "|---|---|---|---|", *rows])


_SCORING = config.ScoringSettings.model_fields


def of_a_model() -> str:
    """The settings of a [models.NAME] section. Only those that are not settings of all models get a row."""
    fields = config.ModelSettings.model_fields
    own = {name: fields[name] for name in fields if name not in config.Settings.model_fields | _SCORING}
    shared = ", ".join(f"`{name}`" for name in fields if name in config.Settings.model_fields)
    return f"{_meanings(own)}\n\nAlso: {shared}."


def of_an_upstream() -> str:
    """The settings of an [upstreams.NAME] section."""
    return _meanings(config.UpstreamSettings.model_fields)


def scoring() -> str:
    """The settings of [scoring]."""
    return _meanings(_SCORING)


def _meanings(fields: Mapping[str, FieldInfo]) -> str:
    rows = [f"| `{name}` | {field.description} |" for name, field in fields.items()]
    return "\n".join(["| setting | meaning |", "|---|---|", *rows])


def _default(name: str, field: FieldInfo) -> str:
    if name == "home":  # depends on the system
        return "the user's data folder, on Linux `~/.local/share/rerankd`"
    value = field.default
    if value in (None, "", ()):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def commands() -> str:
    """The sections of all commands, with their arguments and options."""
    return "\n".join(_commands((), get_command(app))).rstrip()


def _commands(words: tuple[str, ...], command: Any) -> Iterator[str]:
    inner = getattr(command, "commands", {})
    if words and (not inner or command.invoke_without_command):
        yield _command(words, command)
    for name in inner:
        yield from _commands((*words, name), inner[name])


def _command(words: tuple[str, ...], command: Any) -> str:
    # The page explains these once, for all commands.
    common = {"--help", "--config", "--json"}
    shown = [parameter for parameter in command.params if not common & {*parameter.opts}]
    settings = [one for one in shown if _is_setting(one)]
    rows = [f"- {_name(one)}: {one.help or ''}{_shown_default(one)}" for one in shown if one not in settings]
    if settings:
        names = ", ".join(map(_name, settings))
        rows.append(f"- Settings of the same name ([configuration.md](configuration.md)): {names}")
    listed = [*rows, ""] if rows else []
    arguments = [f"[{one.name.upper()}]" for one in shown if one.param_type_name == "argument"]
    required = [one.name.upper() for one in shown if one.param_type_name == "argument" and one.required]
    usage = " ".join(word if word[1:-1] not in required else word[1:-1] for word in arguments)
    about = inspect.cleandoc(command.help or "")
    return "\n".join([f"## `{' '.join(('rerankd', *words, usage)).strip()}`\n", about, "", *listed])


def _is_setting(parameter: Any) -> bool:
    """Whether an option has a setting's name and meaning: `--api-key` of `rerankd eval` has only its name."""
    field = config.Settings.model_fields.get(parameter.name)
    return field is not None and str(parameter.help).rstrip(".").lower() == str(field.description).lower()


def _name(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.name.upper()}`"
    return ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))


def _shown_default(parameter: Any) -> str:
    shown = parameter.show_default
    return f" Default: {shown}." if isinstance(shown, str) else ""


def catalog() -> str:
    """The table of models that can be pulled by name."""
    head, *rows = listing.columns(listing.pullable(), catalog=True)
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows])


def families() -> str:
    """The table of model families, formats and backends, from the kinds of files that the tests resolve."""
    import family_table

    return family_table.table()


# Models of the catalog: the numbers in their weights, those in the matrices of their layers, and the width of
# their states.
_SHAPES = {
    "ettin-reranker-150m, gte-reranker-modernbert": (0.15e9, 0.11e9, 768),
    "bge-reranker-v2-m3": (0.57e9, 0.30e9, 1024),
    "Qwen3-Reranker-0.6B": (0.6e9, 0.44e9, 1024),
    "mxbai-rerank-large-v2": (1.54e9, 1.31e9, 1536),
    "Qwen3-Reranker-4B": (4.0e9, 3.63e9, 2560),
    "Qwen3-Reranker-8B": (8.2e9, 6.95e9, 4096),
}
_CARDS_GIB = (4, 6, 8, 12, 16, 24, 32, 48, 80)


def cards() -> str:
    """The table of models and the smallest card that holds one replica of each."""
    kinds = {
        "half precision": Arithmetic("bf16", ""),
        "matrices in 8 bits": Arithmetic("bf16", "", "int8"),
        "float32": Arithmetic("f32", ""),
    }
    heading = "".join(f" {kind} | smallest card |" for kind in kinds)
    rows = [f"| model |{heading}", "|---|" + "---|---|" * len(kinds)]
    for name, (parameters, block_weights, width) in _SHAPES.items():
        shape = ModelMetadata(
            Path(),
            "",
            parameters=int(parameters),
            block_weights=int(block_weights),
            embedding_length=width,
        )
        cells = []
        for arithmetic in kinds.values():
            size = placement.card_bytes(shape, arithmetic)
            fitting = (card for card in _CARDS_GIB if memory.for_engines(card * 2**30) >= size)
            cells += [f"{size / 2**30:.1f} GiB", f"{next(fitting)} GiB"]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def request_options() -> str:
    """The table of request options, with all their names."""
    rows = []
    for option in options.OPTIONS:
        names = ", ".join(f"`{spelling.name}`" for spelling in option.spellings)
        if option.header:
            names += f", header `{option.header}`"
        rows.append(f"| {names} | {option.meaning} | {'; '.join(_honoured(option))} |")
    return "\n".join(["| names | meaning | dialects |", "|---|---|---|", *rows])


def _honoured(option: options.Option) -> Iterator[str]:
    if option.unused:
        yield "none: a warning"
        return
    yield "all"
    for said, of in (("refused by", "refused"), ("a warning from", "unused")):
        names = [one.title for one in table.shown() if option.name in getattr(one.rules, of)]
        if names:
            yield f"{said} {', '.join(names)}"


def rerank_paths() -> str:
    """The table of paths for rerank requests, with the services and dialects that use them."""
    rows = [(path, whose, "by body") for path, whose in table.SHARED.items()]
    for dialect in table.shown():
        rows += [(path, whose, dialect.title) for path, whose in dialect.paths.items()]
    for dialect in table.shown():
        rows += [(path, "programs with an ambiguous body", dialect.title) for path in dialect.named_paths]
    paths: dict[tuple[str, str], list[str]] = {}
    for path, whose, title in rows:
        paths.setdefault((whose, title), []).append(f"`{path}`")
    lines = [f"| {', '.join(same)} | {whose} | {title} |" for (whose, title), same in paths.items()]
    return "\n".join(["| path | used by | dialect |", "|---|---|---|", *lines])


def renamed() -> str:
    """The table of names that changed since 0.1."""
    rows = [f"| {one.kind} in `{one.of}` | `{one.old}` | `{one.new}` |" for one in RENAMED]
    return "\n".join(["| what | in 0.1 | now |", "|---|---|---|", *rows])


MADE = {
    "settings": ("configuration.md", settings),
    "of-a-model": ("configuration.md", of_a_model),
    "scoring": ("configuration.md", scoring),
    "upstreams": ("configuration.md", of_an_upstream),
    "renamed": ("upgrading.md", renamed),
    "commands": ("cli.md", commands),
    "catalog": ("models.md", catalog),
    "families": ("models.md", families),
    "cards": ("gpu.md", cards),
    "options": ("api.md", request_options),
    "paths": ("api.md", rerank_paths),
}
"""Each generated part: its name, its page, and the function that makes it."""


_RULE = """\
# Made from deploy/prometheus/rerankd.rules.yaml by `make docs`.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: rerankd
  labels: {app.kubernetes.io/name: rerankd}
spec:
"""


def prometheus_rule() -> str:
    """The alert rules as a manifest for the Prometheus operator."""
    text = (DEPLOY / "prometheus" / "rerankd.rules.yaml").read_text(encoding="utf-8")
    return _RULE + textwrap.indent(text[text.index("\ngroups:") + 1 :], "  ")


def written() -> dict[Path, str]:
    """Each page with generated parts, and its current text. Raises ValueError for a missing marker."""
    rule = DEPLOY / "kubernetes" / "components" / "monitoring" / "prometheus-rule.yaml"
    pages = {rule: prometheus_rule()}
    for name, (file, make) in MADE.items():
        path = DOCS / file
        page = pages.get(path) or path.read_text(encoding="utf-8")
        start, end = f"<!-- made: {name} -->", f"<!-- end: {name} -->"
        before, found, rest = page.partition(start)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise ValueError(f"{path} lacks the markers of {name}: write {start} and {end} where it belongs.")
        pages[path] = f"{before}{start}\n{make()}\n{end}{after}"
    return pages


if __name__ == "__main__":
    for path, text in written().items():
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(DOCS.parent), file=sys.stderr)
