"""Rows of `rerankd list` and `rerankd show`: local models and the catalog, as JSON values and as text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rerankd.deprecated_names import old_value
from rerankd.domain import Method, Refusal
from rerankd.errors import ModelFileError
from rerankd.formats import model_files
from rerankd.formats.metadata import ModelMetadata
from rerankd.hub import builtin, patched_copies
from rerankd.hub.inspect import describe as describe_file
from rerankd.hub.inspect import describe_json
from rerankd.hub.model_ref import parse
from rerankd.hub.store import Store
from rerankd.progress import silent, size_words
from rerankd.recipes import catalog
from rerankd.recipes.recipe_sources import CAUSAL_MAX_LENGTH
from rerankd.recipes.resolution import Resolution

# Resolves how a model is scored from its metadata and the user's name for it.
Resolve = Callable[[ModelMetadata, str], Resolution]
Row = dict[str, Any]


def present(store: Store, resolve: Resolve) -> list[Row]:
    """Return the models on this machine: those that were pulled, and the built-in one if it was
    downloaded."""
    rows: list[Row] = [
        {
            "name": record.name,
            "path": str(store.path(record)),
            "size_bytes": record.size_bytes,
            "patched_bytes": sum(map(patched_copies.size_bytes, store.copies_of(record))),
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
        rows.append(
            {
                "name": builtin.NAME,
                "path": str(path),
                "size_bytes": size,
                "patched_bytes": 0,
                "source": "builtin",
            }
        )
    served = store.default()
    return [{**row, **_scored(row, resolve), "default": row["name"] == served} for row in rows]


def pullable() -> list[Row]:
    """Return the models of the catalog that can be pulled, in its order."""
    return [_entry_row(entry) for entry in catalog.known().entries if any(map(_is_remote, entry.refs))]


def describe(store: Store, model: str, resolve: Resolve) -> Row:
    """Return the details of one model, and the same as `text`. Raises UnknownModel and ModelFileError."""
    entry = catalog.known().find(parse(model).name)
    record = store.find(model)
    if entry is not None and builtin.NAME in entry.refs and builtin.path_in(store.models).is_file():
        model, entry = builtin.NAME, None
    if record is None and entry is not None and not model_files.exists(Path(model)):
        row = _entry_row(entry)
        return {**row, "text": _entry_text(row)}
    path = store.locate(model, silent)
    metadata = model_files.read(path)
    resolved = resolve(metadata, model)
    text = describe_file(metadata, resolved, model)
    kept = next((row for row in present(store, resolve) if row["path"] == str(path)), {})
    if kept.get("source"):
        text += f"\nfrom: {kept['source']}" + (f", pulled {kept['pulled_at']}" if "pulled_at" in kept else "")
    return {**kept, **describe_json(metadata, resolved, model), "text": text}


def columns(rows: Sequence[Mapping[str, Any]], *, catalog: bool) -> list[list[str]]:
    """Return the rows as table cells, header first."""
    if catalog:
        head = ["name", "size", "languages", "licence", "max_length", "method"]
        return [head] + [
            [
                row["name"],
                f"{row['size_mb']} MB" if row["size_mb"] else "?",
                " ".join(row["languages"]),
                row["licence"],
                f"{row['max_length']}" if row["max_length"] else "?",
                row["method"],
            ]
            for row in rows
        ]
    return [["name", "size", "max_length", "method", "from", "served by default"]] + [
        [
            row["name"],
            _size(row),
            f"{row['max_length']}" if row["max_length"] else "",
            row["method"] or f"refused: {row['reason']}",
            row["source"] or "",
            "yes" if row["default"] else "",
        ]
        for row in rows
    ]


def outside(store: Store) -> list[str]:
    """Return a sentence for each patched copy of a file outside the store."""
    known = {folder for record in store.records() for folder in store.copies_of(record)}
    return [
        f"A patched copy of {source or 'a file that no longer exists, or an unfinished one,'} takes "
        f"{size_words(patched_copies.size_bytes(folder))} in {folder}. To delete it: rerankd remove "
        f"{source or folder}"
        for folder, source in store.copies.sources().items()
        if folder not in known
    ]


def _size(row: Mapping[str, Any]) -> str:
    """Return the size of a model, and of its patched copies if it has any."""
    copied = f" + {size_words(row['patched_bytes'])} patched copy" if row["patched_bytes"] else ""
    return size_words(row["size_bytes"]) + copied


def _scored(row: Row, resolve: Resolve) -> Row:
    try:
        resolved = resolve(model_files.read(row["path"]), row["name"])
    except ModelFileError as error:
        return {**_scored_by(None, None), "reason": error.message}
    if isinstance(resolved.outcome, Refusal):
        return {**_scored_by(None, None), "reason": resolved.outcome.reason}
    return {**_scored_by(resolved.outcome.method, resolved.outcome.max_length), "reason": ""}


def _scored_by(method: Method | None, max_length: int | None) -> Row:
    """Return the fields about scoring; `scored_as` and `window` are the names of 0.1."""
    old = old_value("method", method) if method is not None else None
    return {"method": method, "max_length": max_length, "scored_as": old, "window": max_length}


def _is_remote(text: str) -> bool:
    return parse(text).kind in ("hf", "ms")


def _entry_row(entry: catalog.Entry) -> Row:
    max_length = entry.max_length or entry.context_length
    if entry.method == "causal_lm":
        max_length = min(max_length, CAUSAL_MAX_LENGTH)
    return {
        "name": entry.name.lower(),
        "size_mb": entry.size_mb or None,
        "quant": entry.quant or None,
        "languages": list(entry.languages),
        "licence": entry.licence,
        **_scored_by(entry.method, max_length or None),
        "refused": entry.refused or None,
        "refs": list(entry.refs),
        "aliases": list(entry.aliases),
        "ndcg10": entry.ndcg10 or None,
    }


def _entry_text(row: Row) -> str:
    if row["refused"]:
        return f"{row['name']} can't be scored correctly: {row['refused']}."
    sources = "  ".join(row["refs"]) or "no repository is known; if you know one: rerankd pull hf:ORG/REPO"
    called = builtin.NAME if builtin.NAME in row["refs"] else row["name"]
    lines = [
        f"{row['name']}: not on this machine"
        + (f"; to get it: rerankd pull {called}" if row["refs"] else ""),
        f"scored as {row['method']}, max_length {row['max_length'] or '?'} tokens, licence {row['licence']}, "
        f"languages {' '.join(row['languages'])}",
        f"from: {sources}",
    ]
    if row["size_mb"]:
        lines.append(f"size: {row['size_mb']} MB as {row['quant']}")
    return "\n".join(lines)
