"""The passages of a folder's text files, and the first stage over them: BM25.

Building it is a generator of steps, so that a caller can report progress and stop between two steps.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from rerankd.evaluation import bm25
from rerankd.mcp_server import folder
from rerankd.mcp_server.folder import FoundFile, Skipped, Unusable
from rerankd.mcp_server.passages import Passage, cut

_STEP_FOLDERS = 50
_STEP_FILES = 100
_STEP_BYTES = 2**19


class Located(NamedTuple):
    """A passage of a file."""

    path: str
    passage: Passage


class Step(NamedTuple):
    """What has been done: `read` of `files` files. `result` is set in the last step."""

    read: int
    files: int
    result: SearchIndex | None = None


@dataclass(frozen=True, slots=True)
class SearchIndex:
    """The passages of `files`, and BM25 over them; None if there is no passage. `skipped` was not read,
    `unread` could not be."""

    start: tuple[str, ...]
    files: tuple[FoundFile, ...]
    passages: tuple[Located, ...]
    skipped: Skipped
    unread: Skipped
    ranking: bm25.Index | None

    def best(self, query: str, depth: int) -> list[Located]:
        """Return at most `depth` passages: all of them if there are no more, else the best by BM25."""
        if self.ranking is None or len(self.passages) <= depth:
            return list(self.passages)
        return [self.passages[at] for at in self.ranking.best(query, depth)]


def build(root: Path, start: tuple[str, ...], last: SearchIndex | None) -> Generator[Step]:
    """Read the files below `start` in steps. If none has changed since `last` was built, it is the result.
    Raises InvalidRequest."""
    skipped = Skipped()
    files: list[FoundFile] = []
    scanned = 0
    for found in folder.scan(root, start, skipped):
        if found is not None:
            files.append(found)
            continue
        scanned += 1
        if scanned % _STEP_FOLDERS == 0:
            yield Step(0, len(files))
    if last is not None and (last.start, last.files) == (start, tuple(files)):
        yield Step(len(files), len(files), replace(last, skipped=skipped))
        return
    unread = Skipped()
    passages: list[Located] = []
    tokens: list[list[str]] = []
    step_files = step_bytes = text_bytes = 0
    for number, file in enumerate(files, 1):
        text_bytes += file.size_bytes
        try:
            if text_bytes > folder.MOST_TEXT_BYTES:
                raise Unusable(f"after the first {folder.MOST_TEXT_BYTES // 2**20} MiB of text")
            for passage in cut(folder.read(root, file.path)):
                passages.append(Located(folder.shown_path(file.path), passage))
                tokens.append(bm25.tokens(passage.text))
        except Unusable as error:
            unread.add(str(error), file.path)
        step_files, step_bytes = step_files + 1, step_bytes + file.size_bytes
        if step_files >= _STEP_FILES or step_bytes >= _STEP_BYTES:
            step_files = step_bytes = 0
            yield Step(number, len(files))
    ranking = bm25.Index(tokens) if any(tokens) else None
    index = SearchIndex(start, tuple(files), tuple(passages), skipped, unread, ranking)
    yield Step(len(files), len(files), index)
