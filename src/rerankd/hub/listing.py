"""What `rerankd list` and `rerankd show` tell: rows of JSON values, and the same for people."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rerankd.errors import ModelFileError
from rerankd.formats import modelfile
from rerankd.formats.metadata import ModelMetadata
from rerankd.hub import builtin
from rerankd.hub.inspect import describe as describe_file
from rerankd.hub.inspect import describe_json
from rerankd.hub.ref import parse
from rerankd.hub.store import Store
from rerankd.progress import silent, size_words
from rerankd.recipes import catalog
from rerankd.recipes.resolve import CAUSAL_WINDOW, Verdict

# The verdict on a model's facts, and what the user calls it.
Judge = Callable[[ModelMetadata, str], Verdict]
Row = dict[str, Any]


def present(store: Store, judge: Judge) -> list[Row]:
    """The models on this machine; those that were pulled, and the built-in one where it was fetched."""
    rows: list[Row] = [
        {
            "name": record.name,
            "path": str(store.path(record)),
            "size_bytes": record.size_bytes,
            "source": record.source or None,
            "revision": record.revision or None,
            "sha256": list(record.sha256),
            "pulled_at": datetime.fromtimestamp(record.pulled_at, UTC).isoformat(timespec="seconds"),
        }
        for record in store.records()
    ]
    path = builtin.path_in(store.models)
    if path.is_file():
        size = path.stat().st_size
        rows.append({"name": builtin.NAME, "path": str(path), "size_bytes": size, "source": "builtin"})
    served = store.default()
    return [{**row, **_scored(row, judge), "default": row["name"] == served} for row in rows]


def pullable() -> list[Row]:
    """What the catalog can name a place for, in its order."""
    return [_entry_row(entry) for entry in catalog.known().entries if any(map(_is_remote, entry.refs))]


def describe(store: Store, model: str, judge: Judge) -> Row:
    """All that is known of one model, with `text` for people. Raises UnknownModel and ModelFileError."""
    entry = catalog.known().find(parse(model).name)
    record = store.find(model)
    if entry is not None and builtin.NAME in entry.refs and builtin.path_in(store.models).is_file():
        model, entry = builtin.NAME, None
    if record is None and entry is not None and not modelfile.exists(Path(model)):
        row = _entry_row(entry)
        return {**row, "text": _entry_text(row)}
    path = store.locate(model, silent)
    facts = modelfile.read(path)
    decided = judge(facts, model)
    text = describe_file(facts, decided, model)
    kept = next((row for row in present(store, judge) if row["path"] == str(path)), {})
    if kept.get("source"):
        text += f"\nfrom: {kept['source']}" + (f", pulled {kept['pulled_at']}" if "pulled_at" in kept else "")
    return {**kept, **describe_json(facts, decided, model), "text": text}


def columns(rows: Sequence[Mapping[str, Any]], *, catalog: bool) -> list[list[str]]:
    """Rows for a table, the head first."""
    if catalog:
        head = ["name", "size", "languages", "licence", "window", "scored as"]
        return [head] + [
            [
                row["name"],
                f"{row['size_mb']} MB" if row["size_mb"] else "?",
                " ".join(row["languages"]),
                row["licence"],
                f"{row['window']}" if row["window"] else "?",
                row["scored_as"],
            ]
            for row in rows
        ]
    return [["name", "size", "window", "scored as", "from", "served by default"]] + [
        [
            row["name"],
            size_words(row["size_bytes"]),
            f"{row['window']}" if row["window"] else "",
            row["scored_as"] or f"refused: {row['reason']}",
            row["source"] or "",
            "yes" if row["default"] else "",
        ]
        for row in rows
    ]


def _scored(row: Row, judge: Judge) -> Row:
    try:
        decided = judge(modelfile.read(row["path"]), row["name"])
    except ModelFileError as error:
        return {"scored_as": None, "window": None, "reason": error.message}
    scoring = decided.scoring
    return {
        "scored_as": scoring.method if scoring is not None else None,
        "window": scoring.max_length if scoring is not None else None,
        "reason": decided.reason,
    }


def _is_remote(text: str) -> bool:
    return parse(text).kind in ("hf", "ms")


def _entry_row(entry: catalog.Entry) -> Row:
    max_length = entry.max_length or entry.context_length
    return {
        "name": entry.name.lower(),
        "size_mb": entry.size_mb or None,
        "quant": entry.quant or None,
        "languages": list(entry.languages),
        "licence": entry.licence,
        "window": (min(max_length, CAUSAL_WINDOW) if entry.method == "causal_lm" else max_length) or None,
        "scored_as": entry.method,
        "refused": entry.refused or None,
        "refs": list(entry.refs),
        "aliases": list(entry.aliases),
    }


def _entry_text(row: Row) -> str:
    if row["refused"]:
        return f"{row['name']} can't be scored right: {row['refused']}."
    places = "  ".join(row["refs"]) or "no place is known; if you know one: rerankd pull hf:ORG/REPO"
    called = builtin.NAME if builtin.NAME in row["refs"] else row["name"]
    lines = [
        f"{row['name']}: not on this machine" + (f"; rerankd pull {called}" if row["refs"] else ""),
        f"scored as {row['scored_as']}, window {row['window'] or '?'} tokens, licence {row['licence']}, "
        f"languages {' '.join(row['languages'])}",
        f"from: {places}",
    ]
    if row["size_mb"]:
        lines.append(f"size: {row['size_mb']} MB as {row['quant']}")
    return "\n".join(lines)
