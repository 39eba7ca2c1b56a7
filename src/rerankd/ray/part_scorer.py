"""The work of a job's actors: copy a slice of the input, score it, and write it as a part of the output."""

from __future__ import annotations

import pickle
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rerankd.bulk.job import identity_of_scores, settings_for_pairs
from rerankd.bulk.parts import disk_errors
from rerankd.bulk.row_scorer import Counts, Kind, RowScorer
from rerankd.bulk.rows import Chunk, Columns, Scored
from rerankd.config import Settings
from rerankd.errors import BulkError, RerankdError
from rerankd.ray import storage
from rerankd.ray.actor_engine import ActorEngine
from rerankd.ray.serve_plan import Values
from rerankd.ray.slices import Slice, Source
from rerankd.serving import content_identity
from rerankd.serving.prepare_model import Model, prepare
from rerankd.state import StateStore


@dataclass(frozen=True, slots=True)
class Work:
    """What all actors of a job do. `output` is the folder of the parts; `identity` is what their scores must
    depend on; `settings` are those that travel (see serve_plan.carried_values)."""

    source: Source
    columns: Columns
    kind: Kind
    output: str
    settings: Values
    identity: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Written:
    """A part that was written: its number, the number of its rows, and the counts of their outcomes."""

    number: int
    rows: int
    counts: Counts


def identity(work: Work) -> Mapping[str, str] | RerankdError:
    """Return what scores of this node depend on, or why it has none."""
    try:
        settings = _settings(work)
        return _identity(work, settings, prepare(settings))
    except RerankdError as error:
        return error


def _settings(work: Work) -> Settings:
    return settings_for_pairs(Settings.model_validate(work.settings))


def _identity(work: Work, settings: Settings, model: Model) -> dict[str, str]:
    """The content of the model's files counts, not their paths and times, which each node has of its own."""
    stamps = content_identity.stamps(content_identity.files(model.path, model.metadata))
    content = content_identity.digest(stamps, StateStore(settings.home))
    return identity_of_scores(work.kind, model) | {"model": f"{model.name}, {content[:16]}"}


def part_name(number: int, rows: int, suffix: str) -> str:
    return f"part-{number:06}-{rows:06}{suffix}"


class PartScorer:
    """An actor with an engine of its own. It returns errors as values, because Ray would wrap them."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._failure: RerankdError | None = None
        try:
            settings = _settings(work)
            self._engine = ActorEngine(settings, work.kind)
            self._check(_identity(work, settings, self._engine.model))
        except RerankdError as error:
            self._failure = error

    def _check(self, own: Mapping[str, str]) -> None:
        differs = [name for name, value in own.items() if self._work.identity.get(name) != value]
        if differs:
            raise BulkError(
                f"The node {socket.gethostname()} would compute other scores than the nodes before it; these "
                f"differ: {', '.join(differs)}. All nodes of a job need the same files, versions and devices."
            )

    def __call__(self, row: Mapping[str, Any]) -> dict[str, bytes]:
        """Score the slice of this row: `number` is that of its part, `slice` the pickled Slice. Returns the
        pickled Written or RerankdError."""
        return {"outcome": pickle.dumps(self._failure or self._outcome(row))}

    def _outcome(self, row: Mapping[str, Any]) -> Written | RerankdError:
        try:
            return self._write(int(row["number"]), pickle.loads(row["slice"]))
        except RerankdError as error:
            return error

    def _write(self, number: int, one: Slice) -> Written:
        work, counts = self._work, Counts()
        form, suffix = work.source.format, work.source.format.suffixes[0]
        with tempfile.TemporaryDirectory(prefix="rerankd-") as name, disk_errors(Path(name)):
            source, target = Path(name, f"in{suffix}"), Path(name, f"out{suffix}")
            work.source.copy(one, source)
            if not storage.is_unchanged(one.file):
                raise BulkError(
                    f"{one.file.url} has changed since the job began. Leave it as it is while it is scored, "
                    "and begin again with --restart."
                )

            async def scored(rows: RowScorer) -> list[tuple[Chunk, list[Scored]]]:
                chunks = form.chunks(source, work.columns, 0)
                return [found async for found in rows.in_order(chunks, counts)]

            part = self._engine.run(scored)
            rows = sum(len(outcomes) for _, outcomes in part)
            if rows:
                form.write(target, work.columns, part)
                storage.put(target, storage.inside(work.output, part_name(number, rows, suffix)))
        return Written(number, rows, counts)
