"""Read the metadata of a safetensors checkpoint: from a folder, or from a repository before the download."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache, lru_cache, partial
from pathlib import Path

from rerankd import text_files
from rerankd.formats import checkpoint_files, safetensors, tokenizer_file, vision_class
from rerankd.formats.checkpoint_vocabulary import with_vocabulary
from rerankd.formats.gguf_header import Source
from rerankd.formats.metadata import ModelMetadata
from rerankd.formats.metadata_keys import metadata_of, refuse


def read(folder: Path) -> ModelMetadata:
    """The metadata of the model in a folder. Raises ModelFileError if it is damaged or incomplete."""
    try:
        found, held = safetensors.read(folder, partial(refuse, folder))
        size = sum(path.stat().st_size for path in held)
        tokenizer = folder / checkpoint_files.TOKENIZER
        status = tokenizer.stat()
    except OSError as error:
        refuse(folder, f"it can't be read: {error}")
    embedding = found.header.tensors.get("token_embd.weight")
    if (found.refusal is None or found.library) and embedding is not None:
        _check_tokenizer(tokenizer, embedding.rows, status.st_mtime_ns, status.st_size)
    metadata = _metadata(folder, found, size, held)
    if not needs_vocabulary(metadata):
        return metadata
    return _with_tokens(metadata, tokenizer, status.st_mtime_ns, status.st_size)


# Cached, because a vocabulary of 250,000 pieces takes a second, and the same file is read several times.
@cache
def _check_tokenizer(path: Path, rows: int, changed_ns: int, size_bytes: int) -> None:
    """Raise ModelFileError if the tokenizer can't be read. `changed_ns` and `size_bytes` are part of the
    cache key."""
    try:
        tokenizer_file.read(path, rows)
    except (OSError, ValueError, KeyError, TypeError) as error:
        refuse(path, f"its tokenizer can't be read: {error}")


@lru_cache(maxsize=4)
def _content(path: Path, changed_ns: int, size_bytes: int) -> str:
    return text_files.read(path)


def needs_vocabulary(metadata: ModelMetadata) -> bool:
    """Whether the recipe of the model refers to tokens: labels, markers, words of a skiplist."""
    layout = metadata.layout
    return metadata.is_causal or (layout is not None and layout.interaction is not None)


def _with_tokens(metadata: ModelMetadata, tokenizer: Path, changed_ns: int, size_bytes: int) -> ModelMetadata:
    try:
        return with_tokens(metadata, _content(tokenizer, changed_ns, size_bytes))
    except (OSError, ValueError) as error:
        refuse(tokenizer, f"its tokenizer can't be read: {error}")


def with_tokens(metadata: ModelMetadata, tokenizer: str) -> ModelMetadata:
    """Add what the recipe of such a model needs of its tokenizer.json: the vocabulary, and the texts of the
    labels that its files declare. Raises ValueError if it is damaged or has no such token."""
    ids = metadata.layout.label_ids if metadata.layout is not None else ()
    if ids:
        metadata = replace(metadata, output_labels=tokenizer_file.token_texts(tokenizer, ids))
    if metadata.refusal is not None and not metadata.library:
        return metadata
    found = with_vocabulary(metadata, tokenizer)
    if found.score_token is not None:
        controls = {**found.control_tokens, vision_class.SCORE_TOKEN: found.score_token}
        found = replace(found, control_tokens=controls)
    if ids and found.token_ids(found.output_labels) != ids:
        raise ValueError(f"the texts of its labels {ids} are not tokens of their own")
    return found


def read_streams(
    where: Path, described: Mapping[str, bytes], parts: Iterable[tuple[Source, int, Path]]
) -> ModelMetadata:
    """Like `read`, from the contents of the files that describe the model and the streams of its weight
    files: (stream, size in bytes, path in the folder). `where` is the model's path in error messages."""
    fail = partial(refuse, where)
    tensors, size, held = {}, 0, []
    for stream, size_bytes, path in parts:
        tensors[path.as_posix()] = safetensors.parse(stream, size_bytes, fail)
        size += size_bytes
        held.append(path)
    return _metadata(where, safetensors.translate(where.name, described, tensors, fail), size, tuple(held))


def _metadata(
    path: Path, found: safetensors.Checkpoint, size_bytes: int, held: tuple[Path, ...]
) -> ModelMetadata:
    header = found.header
    known = metadata_of(
        path,
        header,
        header.tensors,
        size_bytes,
        held,
        format="safetensors",
        refusal=found.refusal,
        layout=found.layout,
        library=found.library,
    )
    return replace(known, image_processor=found.image_processor)
