"""The files of the cache on disk, in the folder `cache_path`; all models share them."""

from __future__ import annotations

from rerankd.backends.token_vectors import VECTOR_SPARES_S, VectorFile
from rerankd.config import Settings
from rerankd.disk_cache import DiskCache, DiskStatus

# What a pair of a small model takes on a CPU, at least.
_SCORE_SPARES_S = 0.001
_SCORES, _VECTORS = "scores.sqlite", "vectors.sqlite"


class DiskCaches:
    """Raw scores, and vectors. The service reads and writes scores and embeddings; the engines of
    late-interaction models do so with the vectors of documents, in the file `engine_vectors`, so that these
    are not copied between processes. All are None if `cache_path` is not set."""

    def __init__(self, settings: Settings) -> None:
        self.scores: DiskCache | None = None
        self.vectors: DiskCache | None = None
        self.engine_vectors: VectorFile | None = None
        if settings.cache_path is None:
            return
        folder, ttl_s = settings.cache_path.absolute(), settings.cache_ttl_s
        self.scores = DiskCache(folder / _SCORES, settings.cache_disk_mb * 2**20, ttl_s, _SCORE_SPARES_S)
        if settings.vectors_disk_mb:
            path, most_bytes = folder / _VECTORS, settings.vectors_disk_mb * 2**20
            self.engine_vectors = VectorFile(str(path), most_bytes, ttl_s)
            self.vectors = DiskCache(path, most_bytes, ttl_s, VECTOR_SPARES_S)

    @property
    def status(self) -> dict[str, DiskStatus]:
        """The status of the files in use, by the kind of their values: "scores" and "vectors"."""
        both = {"scores": self.scores, "vectors": self.vectors}
        return {name: one.status() for name, one in both.items() if one is not None}

    def start(self) -> None:
        """Open the files, in other threads."""
        for one in (self.scores, self.vectors):
            if one is not None:
                one.start()

    def close(self) -> None:
        """Write what waits, and close the files. Blocks for some seconds at most."""
        for one in (self.scores, self.vectors):
            if one is not None:
                one.close()
