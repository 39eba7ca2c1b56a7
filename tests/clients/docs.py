"""Generate docs/clients.md and the page's Connect part from table.toml: `python tests/clients/docs.py`."""

from __future__ import annotations

import json
from typing import Any

from venvs import HERE, TABLE

from rerankd.api.dialects import table

PAGE = HERE.parent.parent / "docs" / "clients.md"
CONNECT = HERE.parent.parent / "src" / "rerankd" / "api" / "static" / "clients.json"

_INTRO = """\
# Clients

<!-- Made by tests/clients/docs.py from tests/clients/table.toml; change those. -->

What to type into each program so that it uses rerankd. Replace `HOST` with the machine that runs rerankd; in
a container, `localhost` is the container. For other machines, start it with a key:

```sh
rerankd serve --host 0.0.0.0 --api-key choose-one
```

- **Behind llama-swap**: `cmd: rerankd serve MODEL --port ${PORT}`, with `checkEndpoint: /ready`.
- **Model name**: any, while one model is served. With `strict_model_names`, other names are an error.
- **`KEY`** is the server's `api_key`. Without one, leave the field empty, or type any word if it is required.
- **Scores** are from 0 to 1 and never stretched to fill that range. Older versions of Dify's provider (its
  SDK's own class) stretch them: the best document has 1, the worst 0.
- **Short timeouts**: with `budget_ms = 4500` a model answers programs that wait 5 s, with the documents
  scored by then ([api.md](api.md#priority-and-time-budget)).
- **Paths** may have doubled and trailing slashes. Behind a proxy that keeps a prefix, set `--api-prefix`.
- **Tested with** names the version that the tests run. *its request*: they send what the program sends.
"""

_OUTRO = """\
## Dialects

rerankd recognises a dialect by a field that only it sends; where bodies are the same, by the path.
[api.md](api.md#paths) lists all paths, and the options that every dialect accepts.

| dialect | recognised by | paths | answers with |
|---|---|---|---|
{dialects}

A document is a string, `{"text": …}`, `{"page_content": …}` (LangChain), `{"content": …}` with a string or
text parts, or any other object, whose fields (all, or those in `rank_fields`) are read as `key: value` lines.
Errors have the dialect of the request.

Answers have these headers:

| header | meaning |
|---|---|
| `x-request-id` | the one sent, or a new one; also the answer's `id` |
| `x-rerankd-model` | the model that answered, whatever name was sent |
| `x-rerankd-total-ms` | milliseconds from the parsed request to the scores |
| `x-rerankd-engine-ms` | of these, milliseconds with the engine |
| `x-rerankd-warnings` | the warnings, if any, as a JSON list |
| `retry-after` | with 429 and 503: seconds to wait |
"""


def page() -> str:
    """The page's text."""
    parts = [_INTRO]
    for section in dict.fromkeys(row["section"] for row in TABLE["clients"]):
        rows = [row for row in TABLE["clients"] if row["section"] == section]
        parts.append(f"## {section}\n\n| client | type this | tested with |\n|---|---|---|\n" + _lines(rows))
    elsewhere = "\n".join(f"- {name}: {why}." for name, why in TABLE["elsewhere"].items())
    parts.append(f"## Programs that can't use rerankd\n\n{elsewhere}\n")
    return "\n".join([*parts, _OUTRO.replace("{dialects}", _dialects())])


def _dialects() -> str:
    usual = " ".join(f"`{path}`" for path in list(table.SHARED)[:3])
    rows = []
    for one in table.shown():
        paths = [f"`{path}`" for path in one.paths] or [
            f"{usual} …",
            *(f"`/{part}/…`" for part in one.prefixes),
        ]
        rows.append(f"| {one.title} | {one.recognised_by} | {' '.join(paths)} | {one.answers_with} |")
    return "\n".join(rows)


def _lines(rows: list[dict[str, Any]]) -> str:
    return "".join(f"| {row['name']} | {_fields(row)} | {_proof(row)} |\n" for row in rows)


def _fields(row: dict[str, Any]) -> str:
    words = {
        "{url}": f"`http://HOST:11440{row['url']}`",
        "{key}": "`KEY`",
        "{any_key}": "`KEY` (required)",
    }
    said = [f"{name}: {words.get(value, value)}" for name, value in row["fields"]]
    return "<br>".join([*said, row["note"]] if "note" in row else said)


def _proof(row: dict[str, Any]) -> str:
    if "program" not in row:
        return "its request"
    return ", ".join(f"{package} {version(row['environment'], package)}" for package in row["packages"])


def version(environment: str, package: str) -> str:
    """The version of a package that an environment pins. Raises StopIteration where it pins none."""
    if environment == "npm":
        pins = json.loads((HERE / "package.json").read_text(encoding="utf-8"))["dependencies"]
        return str(pins[package])
    requires = TABLE["environments"][environment]["requires"]
    return str(next(pin.split("==")[1] for pin in requires if pin.startswith(f"{package}==")))


def connect() -> str:
    """The JSON of the page's part Connect: a list of programs."""
    clients = {row["name"]: row for row in TABLE["clients"]}
    return json.dumps(
        [_connect(row, clients.get(row.get("client", ""), {})) for row in TABLE["page"]],
        ensure_ascii=False,
        indent=1,
    )


def _connect(row: dict[str, Any], client: dict[str, Any]) -> dict[str, Any]:
    words = {"any": "{model}", "{url}": "{address}" + client.get("url", "")}
    said: dict[str, Any] = {
        name: row[name].strip() for name in ("id", "name", "where", "code") if name in row
    }
    if "note" in client:
        said["note"] = client["note"]
    return {
        **said,
        "fields": [[name, words.get(value, value)] for name, value in client.get("fields", [])],
        "request": {"path": row["path"], "body": json.loads(row["body"])},
    }


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
    CONNECT.write_text(connect(), encoding="utf-8")
