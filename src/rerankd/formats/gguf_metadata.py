"""Read the metadata of a GGUF file (`ModelMetadata`) from its header, and from that of a head beside it.

`read(path)` accepts a file, or any part of a split one (`…-00001-of-00003.gguf`); the keys of a split file
are in its first part, the tensors in all of them. `read` does not read weights, but checks that they are
complete.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NoReturn

from rerankd.formats import checkpoint_files, head_file
from rerankd.formats.gguf_header import Header, Source, parse
from rerankd.formats.metadata import ModelMetadata
from rerankd.formats.metadata_keys import metadata_of, output_matrix, refuse, typed

_KEEP = (
    "tokenizer.ggml.tokens",
    "tokenizer.ggml.token_type",
    ".classifier.output_labels",
    "general.tags",
)
_SPLIT_NAME = re.compile(rf"^(?P<stem>.*){checkpoint_files.PART}\.gguf$", re.DOTALL)


def read(path: str | os.PathLike[str]) -> ModelMetadata:
    """The metadata of the model file at `path`.

    Raises ModelFileError, with a message for the user, if the file is missing, unreadable, not GGUF, damaged
    or truncated, or if a part of a split file is missing.
    """
    path = Path(path)
    return _joined(headers_of(path, _KEEP), path)


def headers_of(path: Path, keep: Collection[str]) -> list[tuple[Header, int, Path]]:
    """The header, size and path of each part of the model at `path`, which may be one file; see `header_of`.
    The last part may be a head (see head_file.py). Raises ModelFileError like `read`."""
    header, size = header_of(path, keep)
    count = typed(header.values, "split.count", 1, path)
    found = [(header, size, path)]
    if count > 1:
        found = [(*header_of(part, keep), part) for part in _parts(path, count)]
    if (place := head_file.beside(path)) is not None:
        with _reading(place), place.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if head := head_file.header(stream, size, found[0][0].values, partial(refuse, place)):
                found.append((head, size, place))
    return found


def read_streams(parts: Iterable[tuple[Source, int, Path]]) -> ModelMetadata:
    """The metadata of a file from the streams of its parts, in order, a head last: (stream, size in bytes,
    path).

    For headers that are downloaded: little more than the headers is read, so only the length of the weights
    is checked. The paths are used in error messages.
    """
    found: list[tuple[Header, int, Path]] = []
    for stream, size, path in parts:
        if not head_file.is_head(path.name):
            found.append((_parse(stream, size, path, _KEEP), size, path))
        elif head := head_file.header(stream, size, found[0][0].values, partial(refuse, path)):
            found.append((head, size, path))
    return _joined(found)


def _joined(parts: Iterable[tuple[Header, int, Path]], path: Path | None = None) -> ModelMetadata:
    """The metadata of a model from the header, size and path of each part. `path` is the path that the user
    gave; the default is that of the first part."""
    headers, sizes, paths = zip(*parts, strict=True)
    tensors = {name: tensor for header in headers for name, tensor in header.tensors.items()}
    metadata = metadata_of(path or paths[0], headers[0], tensors, sum(sizes), paths)
    return replace(metadata, output_matrix=output_matrix(headers))


def header_of(path: Path, keep: Collection[str]) -> tuple[Header, int]:
    """The header of one file, with the arrays whose names end with one of `keep`, and the file's size in
    bytes.

    Raises ModelFileError like `read`.
    """
    with _reading(path):
        if path.is_dir():
            why = checkpoint_files.missing(checkpoint_files.paths_in(path))
            refuse(path, f"this is a folder without a {checkpoint_files.CONFIG}: {why}")
        if path.exists() and not path.is_file():
            refuse(path, "this is not a regular file: give the path of a .gguf file")
        with open(path, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            return _parse(stream, size, path, keep), size


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise ModelFileError if the block can't read the file."""
    try:
        yield
    except FileNotFoundError:
        refuse(path, "the file does not exist: check the path, or pull the model again")
    except PermissionError:
        refuse(path, "permission denied: allow this user to read the file and to enter its folders")
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL in it
        refuse(path, f"it can't be read: {error}")


def _parse(stream: Source, size: int, path: Path, keep: Collection[str]) -> Header:
    def fail(what: str) -> NoReturn:
        refuse(path, what)

    start = stream.read(64)
    if start[:4] != b"GGUF":
        fail(_looks_like(start))
    header = parse(stream, size, keep, fail, start)
    missing = header.end_of_data - size
    if missing > 0:
        fail(
            f"it is truncated: {missing:,} of {header.end_of_data:,} bytes are missing; download it again "
            "(or wait for its download to finish)"
        )
    return header


def _looks_like(start: bytes) -> str:
    text = start.lstrip().lower()
    signs = (
        (not start, "it is empty because its download failed; download it again"),
        (text.startswith((b"<!doctype", b"<html", b"<?xml")), "it is a web page: download the file itself"),
        (
            text.startswith(b"version https://git-lfs"),
            "it is a git-LFS pointer: run `git lfs pull` in its folder",
        ),
        (
            start[8:9] == b"{",
            "it is a safetensors file: give the path of its folder, which must contain config.json and "
            "tokenizer.json",
        ),
        (start.startswith((b"PK\x03\x04", b"\x80\x02")), "it is a PyTorch or zip file: use a GGUF file"),
        (
            start.startswith((b"tjgg", b"lmgg", b"fmgg")),
            "it has a format older than GGUF: download a current conversion",
        ),
        (text.startswith((b"{", b"[")), "it is JSON, possibly a server's error: download the file itself"),
        (not start.strip(b"\0"), "it begins with zeros: its download has failed or has not finished"),
    )
    for matches, explanation in signs:
        if matches:
            return f"not a GGUF file: {explanation}"
    return "not a GGUF file: it does not begin with the letters GGUF"


def _parts(path: Path, count: int) -> tuple[Path, ...]:
    match = _SPLIT_NAME.match(path.name)
    if match is None or int(match["count"]) != count:
        refuse(
            path,
            f"it is one of {count} parts of a model, but its name does not say which: rename the parts to "
            f"NAME-00001-of-{count:05}.gguf, NAME-00002-of-{count:05}.gguf, …",
        )
    parts = tuple(path.with_name(f"{match['stem']}-{n:05}-of-{count:05}.gguf") for n in range(1, count + 1))
    missing = [part.name for part in parts if not part.exists()]
    if missing:
        more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
        refuse(
            path,
            f"the model is split into {count} files, and these are missing: {', '.join(missing[:8])}{more}. "
            "Download them into the same folder",
        )
    return parts
