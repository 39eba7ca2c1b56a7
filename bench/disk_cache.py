"""What scores and vectors on disk cost and spare, over HTTP (docs/operations.md).

    python bench/disk_cache.py              scores: hits, misses with and without it, a start with 1M rows
    python bench/disk_cache.py --vectors    late interaction: 1,000 known documents after a restart

Scores: 100 documents for the built-in model, whose score cache in memory is off, so that each hit
is read from disk. The two sides of a comparison take turns. Prints medians.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
from late_interaction import made, text

from rerankd import cache_database
from rerankd.cache_file import CacheFile
from rerankd.disk_cache import DiskCache

DOCUMENTS = 100
ROWS = 1_000_000


@contextlib.contextmanager
def served(home: Path, **settings: object) -> Iterator[httpx.Client]:
    """rerankd with these settings, ready to answer."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RERANKD_")}
    environment |= {"RERANKD_HOME": str(home), "RERANKD_PORT": "0"}
    environment |= {f"RERANKD_{name.upper()}": str(value) for name, value in settings.items()}
    process = subprocess.Popen(
        [sys.executable, "-m", "rerankd", "serve"], env=environment, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if "API endpoint URL" in line:
                with httpx.Client(base_url=line.split()[-1].removesuffix("/v1"), timeout=600) as client:
                    while client.get("/ready").status_code != 200:
                        time.sleep(0.01)
                    yield client
                break
        else:
            raise SystemExit(f"rerankd has ended with {process.wait()}")
    finally:
        process.terminate()
        process.wait()
        process.stderr.close()


def took_ms(client: httpx.Client, query: str, documents: list[str]) -> float:
    started = time.perf_counter()
    client.post("/v1/rerank", json={"query": query, "documents": documents}).raise_for_status()
    return (time.perf_counter() - started) * 1000


def looked_up_ms(path: Path, source: random.Random) -> float:
    """What a request waits for the disk if it has none of its scores, in the service's way."""
    disk = DiskCache(path, 256 * 2**20, 0, 0.001)
    disk.start()

    async def look_up() -> list[float]:
        times = []
        for _ in range(200):
            keys = [source.randbytes(16) for _ in range(DOCUMENTS)]
            started = time.perf_counter()
            await asyncio.wrap_future(disk.find(keys))
            times.append((time.perf_counter() - started) * 1000)
        return times

    try:
        return statistics.median(asyncio.run(look_up()))
    finally:
        disk.close()


def scores(folder: Path, words: int, rounds: int) -> None:
    source = random.Random(1)
    home = folder / "home"
    common = {"model": "builtin:e5", "cache_entries": 0}
    path = folder / "full" / "scores.sqlite"
    cache_database.prepare(path)
    full = CacheFile(path, 256 * 2**20, 0)
    for _ in range(ROWS // 10_000):
        full.write({source.randbytes(16): source.randbytes(13) for _ in range(10_000)})
    full.close()
    print(f"a look-up of {DOCUMENTS} scores that are not in the file: {looked_up_ms(path, source):.2f} ms")
    known = [text(words, source) for _ in range(DOCUMENTS)]
    with served(home, **common) as without, served(home, **common, cache_path=path.parent) as with_disk:
        took_ms(with_disk, "known", known)
        time.sleep(1)  # until it is written
        took_ms(without, "known", known)
        off, on, hits = [], [], []
        sides = [(without, off), (with_disk, on)]
        for _ in range(rounds):
            new = [text(words, source) for _ in range(DOCUMENTS)]
            sides.reverse()
            for client, times in sides:
                times.append(took_ms(client, text(6, source), new))
            hits.append(took_ms(with_disk, "known", known))
        status = with_disk.get("/v1/status").json()
    p50 = {name: statistics.median(times) for name, times in (("off", off), ("on", on), ("hit", hits))}
    print(f"{DOCUMENTS} documents, all on disk: {p50['hit']:.1f} ms")
    extra = statistics.median(one - other for one, other in zip(on, off, strict=True))
    print(
        f"all new: {p50['on']:.1f} ms with the disk, {p50['off']:.1f} ms without; "
        f"median of the differences {extra:+.1f} ms"
    )
    print(f"the file: {ROWS:,} rows, {status['disk_cache']['scores']['size_bytes'] / 2**20:.0f} MiB")
    starts: dict[str, list[float]] = {"without": [], "with the file": []}
    for _ in range(5):
        for name, settings in (("without", {}), ("with the file", {"cache_path": path.parent})):
            started = time.perf_counter()
            with served(home, **common, **settings):
                starts[name].append(time.perf_counter() - started)
    for name, times in starts.items():
        print(f"start until ready {name}: {statistics.median(times):.2f} s")


def vectors(folder: Path, words: int) -> None:
    source = random.Random(1)
    model = made("bert", folder / "bert")
    documents = [text(words, source) for _ in range(1000)]
    settings = {"model": model, "cache_path": folder / "cache", "request_timeout_s": 600}
    for what in ("not known", "after a restart"):
        with served(folder / "home", **settings) as client:
            first = took_ms(client, text(6, source), documents)
            print(f"1,000 documents of {words} words, {what}: {first:,.0f} ms")
            again = statistics.median(took_ms(client, text(6, source), documents) for _ in range(3))
            print(f"  then, from memory, another query: {again:,.0f} ms")
            time.sleep(1)
            print(f"  {client.get('/v1/status').json()['models'][0]['engine']['document_vectors']}")
    print(f"on disk: {(folder / 'cache' / 'vectors.sqlite').stat().st_size / 2**20:.0f} MiB")


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--vectors", action="store_true")
    flags.add_argument("--rounds", type=int, default=30)
    flags.add_argument("--words", type=int, default=50, help="words of a document")
    options = flags.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.vectors:
            vectors(Path(folder), options.words)
        else:
            scores(Path(folder), options.words, options.rounds)


if __name__ == "__main__":
    main()
