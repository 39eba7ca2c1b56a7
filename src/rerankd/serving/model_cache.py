"""The caches of one model: raw scores and vectors in memory, and on disk if `cache_path` is set.

With a cache on disk, a model is identified by the content of its files. So entries survive a restart, and a
file that was replaced never answers with the scores of the old one.
"""

from __future__ import annotations

import asyncio
import logging
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rerankd import machine
from rerankd.config import Settings
from rerankd.disk_cache import DiskCache, Values
from rerankd.errors import EngineStartFailed
from rerankd.scoring.cache import CachedScore, CachedVector, ScoreCache
from rerankd.serving import content_identity
from rerankd.serving.content_identity import Stamps
from rerankd.serving.disk_caches import DiskCaches
from rerankd.serving.prepare_model import Model
from rerankd.state import StateStore

_log = logging.getLogger("rerankd")

# Raw score, tokens, whether truncated.
_SCORE = struct.Struct("<dI?")
# Tokens, whether truncated; then the numbers of the vector, as float32.
_VECTOR = struct.Struct("<I?")


@dataclass(frozen=True, slots=True)
class CacheUse:
    """The number of texts of rerank requests whose score was in memory, was on disk, or was in neither."""

    memory_hits: int = 0
    disk_hits: int = 0
    misses: int = 0


class ModelCache(ScoreCache):
    """The ScoreCache of a model, and its entries on disk. Keys are the same in both."""

    def __init__(self, model: Model, settings: Settings, disk: DiskCaches, learned: StateStore) -> None:
        self._by_path = f"{model.fingerprint} {model.recipe!r}"
        super().__init__(settings.cache_entries, self._by_path, settings.embedding_cache_bytes)
        self._served, self._disk, self._learned = model, disk, learned
        self._stamps: Stamps = ()
        self._by_content = ""
        self._is_on_disk = False
        self.use = CacheUse()

    @property
    def is_enabled(self) -> bool:
        return bool(self.max_entries) or (self._is_on_disk and self._disk.scores is not None)

    @property
    def engine_environment(self) -> Mapping[str, str]:
        """The environment in which an engine finds its vectors on disk."""
        file = self._disk.engine_vectors
        if file is None or not self._is_on_disk:
            return {}
        return replace(file, identity=self._model.hexdigest()).environment

    async def identify(self) -> None:
        """Identify the model by content, if there is a cache on disk. The first time, this reads the files
        completely."""
        if self._disk.scores is not None:
            try:
                await asyncio.to_thread(self._identify)
            except OSError as error:
                _log.warning("%s: the cache on disk is not used: %s", self._served.name, error)

    def _identify(self) -> None:
        model = self._served
        self._stamps = content_identity.stamps(content_identity.files(model.path, model.metadata))
        files = content_identity.digest(self._stamps, self._learned)
        gpus = [] if model.engine.on_cpu else [gpu.name for gpu in machine.gpus()]
        self._by_content = f"{files} {content_identity.surroundings(model.recipe, gpus)}"

    async def check_unchanged(self) -> None:
        """Raise EngineStartFailed if the files were changed while an engine loaded them."""
        if not await asyncio.to_thread(self._is_current):
            raise EngineStartFailed(f"{self._served.path} has changed while it was loaded.")

    def _is_current(self) -> bool:
        """Whether the files are still those that `identify` has read. True if it has read none."""
        try:
            return self._stamps == content_identity.stamps(name for name, *_ in self._stamps)
        except OSError:
            return False

    def set_engine(self, engine: str) -> None:
        """See ScoreCache. The disk is used only while the files are those that were identified."""
        self._is_on_disk = bool(self._by_content) and self._is_current()
        self.set_model(self._by_content if self._is_on_disk else self._by_path)
        super().set_engine(engine)

    async def find(self, keys: Sequence[bytes], within_s: float = math.inf) -> dict[int, CachedScore]:
        """The known scores, by the index of the key. Waits for the disk for at most `within_s`."""
        found = {at: score for at, key in enumerate(keys) if (score := self.get(key)) is not None}
        in_memory = len(found)
        missing = [at for at in range(len(keys)) if at not in found]
        if missing and self._is_on_disk and self._disk.scores is not None:
            values = await _found(self._disk.scores, [keys[at] for at in missing], within_s)
            for at in missing if values else ():
                if (value := values.get(keys[at])) is not None and len(value) == _SCORE.size:
                    found[at] = CachedScore(*_SCORE.unpack(value))
                    super().put(keys[at], found[at])
        use = self.use
        self.use = CacheUse(
            use.memory_hits + in_memory,
            use.disk_hits + len(found) - in_memory,
            use.misses + len(keys) - len(found),
        )
        return found

    def put(self, key: bytes, known: CachedScore) -> None:
        super().put(key, known)
        if self._is_on_disk and self._disk.scores is not None:
            self._disk.scores.put(key, _SCORE.pack(*known))

    async def find_vectors(self, keys: Sequence[bytes]) -> dict[int, CachedVector]:
        """The known vectors, by the index of the key."""
        found = {at: one for at, key in enumerate(keys) if (one := self.vectors.get(key)) is not None}
        missing = [at for at in range(len(keys)) if at not in found]
        if missing and self._is_on_disk and self._disk.vectors is not None:
            values = await _found(self._disk.vectors, [keys[at] for at in missing])
            for at in missing if values else ():
                if (value := values.get(keys[at])) is not None:
                    tokens, is_truncated = _VECTOR.unpack_from(value)
                    vector = np.frombuffer(value, np.float32, offset=_VECTOR.size)
                    found[at] = self.vectors.put(keys[at], vector, tokens, is_truncated=is_truncated)
        return found

    def put_vector(self, key: bytes, vector: Any, tokens: int, *, is_truncated: bool) -> CachedVector:
        """Keep a vector of float32, and return it."""
        if self._is_on_disk and self._disk.vectors is not None:
            self._disk.vectors.put(key, _VECTOR.pack(tokens, is_truncated) + vector.tobytes())
        return self.vectors.put(key, vector, tokens, is_truncated=is_truncated)


async def _found(disk: DiskCache, keys: Sequence[bytes], within_s: float = math.inf) -> Values:
    """What the disk has of the keys, or nothing if it does not answer in time."""
    found = disk.find(keys)
    if found.done():
        return found.result()
    try:
        async with asyncio.timeout(min(within_s, disk.wait_s(len(keys)))):
            return await asyncio.wrap_future(found)
    except TimeoutError:
        return {}
