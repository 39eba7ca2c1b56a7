"""(pure) The report of a benchmark, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rerankd.benchmark import flops
from rerankd.benchmark.drive import Driven
from rerankd.benchmark.figures import Series, ratio
from rerankd.benchmark.hardware import Hardware
from rerankd.formats.metadata import ModelMetadata

# Minimum number of rounds for a median; the report warns below it.
ENOUGH_ROUNDS = 5
_BUSY = 0.3


@dataclass(frozen=True, slots=True)
class Benchmark:
    """The results of a benchmark. `first` is the server that the others are compared with. `known` are the
    servers that run the model of `metadata`; a server named by its URL may run any model."""

    hardware: Hardware
    model: str
    metadata: ModelMetadata | None
    causal: bool
    known: frozenset[str]
    start_s: dict[str, float]
    driven: Driven
    seed: int

    @property
    def first(self) -> str:
        return self.driven.series[0].target

    def share(self, series: Series) -> float | None:
        """Return the share of the measured peak FLOPS; None: the server's model is unknown."""
        tokens = series.tokens_per_pair
        if self.metadata is None or tokens is None or series.target not in self.known:
            return None
        return flops.share(
            self.metadata,
            causal=self.causal,
            pairs_per_s=series.pairs_per_s,
            tokens_per_pair=tokens,
            peak_flops=self.hardware.peak_flops,
        )

    def pairs(self) -> list[tuple[Series, Series]]:
        """Return the first server's series paired with each other server's series of the same case."""
        first = {one.case: one for one in self.driven.series if one.target == self.first}
        return [(first[one.case], one) for one in self.driven.series if one.target != self.first]


def table(benchmark: Benchmark) -> tuple[list[str], list[list[str]]]:
    """Return the header, and a row for each case and server with at least one round. Empty columns are
    omitted."""
    measured = [one for one in benchmark.driven.series if one.rounds]
    columns = {title: [cell(benchmark, one) for one in measured] for title, cell in _COLUMNS.items()}
    kept = {title: cells for title, cells in columns.items() if any(cells)}
    return list(kept), [list(row) for row in zip(*kept.values(), strict=True)]


def before(benchmark: Benchmark) -> list[str]:
    """Return the lines above the table: machine, versions, model, and the start of each server."""
    here = benchmark.hardware
    memory = f", {here.memory_bytes / 2**30:.0f} GiB" if here.memory_bytes else ""
    lines = [
        f"machine   {here.processor}, {here.cores} cores{memory}",
        f"          {' '.join(here.flags) or 'no features known'}; {here.system}",
        f"versions  {', '.join(f'{name} {number}' for name, number in here.versions.items())}",
        f"peak      {here.peak_flops / 1e9:.0f} GFLOPS, f32 matrix product with numpy",
    ]
    if here.load is not None and here.load > _BUSY * here.cores:
        lines.append(
            f"          The machine was busy (load {here.load:.1f}): trust the ratios, not absolute values."
        )
    lines.append(f"model     {benchmark.model}")
    for name, cold_s in benchmark.driven.cold_s.items():
        start = benchmark.start_s.get(name)
        again = benchmark.driven.again_s.get(name)
        lines.append(
            f"cold      {name}: {'' if start is None else f'ready after {start:.1f} s; '}first request "
            f"{_ms(cold_s)}" + ("" if again is None else f", same request again {_ms(again)}")
        )
    return lines


def after(benchmark: Benchmark) -> list[str]:
    """Return the lines below the table: the meaning of the columns, and warnings."""
    lines = [
        "pairs/s: median of the rounds. p50, p95: latency over all requests. No text was sent twice.",
    ]
    if any(benchmark.share(one) for one in benchmark.driven.series if one.rounds):
        lines.append("of peak: share of the f32 peak above; bf16 and int8 can exceed 100 %.")
    if benchmark.pairs():
        lines.append(
            f"times as fast: throughput of {benchmark.first} divided by this server's, median of the rounds "
            "(minimum to maximum)."
        )
    fewest = min((len(one.rounds) for one in benchmark.driven.series), default=0)
    if not benchmark.driven.complete:
        lines.append("The benchmark ended before all rounds were done: these are the results so far.")
    if fewest < ENOUGH_ROUNDS:
        lines.append(
            f"Some cases have fewer than {ENOUGH_ROUNDS} rounds: raise --seconds, or measure fewer documents."
        )
    return lines


def as_json(benchmark: Benchmark) -> dict[str, Any]:
    """Return all results, with every round."""
    metadata = benchmark.metadata
    return {
        "machine": asdict(benchmark.hardware),
        "model": benchmark.model,
        "weights_in_blocks": metadata.block_weights if metadata is not None else None,
        "seed": benchmark.seed,
        "complete": benchmark.driven.complete,
        "servers": {
            name: {
                "start_s": benchmark.start_s.get(name),
                "cold_s": cold_s,
                "again_s": benchmark.driven.again_s.get(name),
            }
            for name, cold_s in benchmark.driven.cold_s.items()
        },
        "cases": [_series_json(benchmark, one) for one in benchmark.driven.series if one.rounds],
        "ratios": [
            {
                "of": one.target,
                "to": other.target,
                "documents": one.case.documents,
                "concurrency": one.case.concurrency,
                **asdict(found),
            }
            for one, other in benchmark.pairs()
            if (found := ratio(one, other)) is not None
        ],
    }


def _series_json(benchmark: Benchmark, one: Series) -> dict[str, Any]:
    return {
        "server": one.target,
        "documents": one.case.documents,
        "concurrency": one.case.concurrency,
        "words": one.case.words,
        "pairs_per_s": one.pairs_per_s,
        "p50_s": one.latency_s(0.5),
        "p95_s": one.latency_s(0.95),
        "tokens_per_pair": one.tokens_per_pair,
        "share_of_peak": benchmark.share(one),
        "rounds": [asdict(each) for each in one.rounds],
    }


def _times(benchmark: Benchmark, one: Series) -> str:
    found = [ratio(first, other) for first, other in benchmark.pairs() if other is one]
    if not found or found[0] is None:
        return ""
    return f"{found[0].median:.2f} ({found[0].least:.2f} to {found[0].most:.2f})"


def _ms(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"


def _share(benchmark: Benchmark, one: Series) -> str:
    share = benchmark.share(one)
    return "" if share is None else f"{share:.0%}"


_COLUMNS: Mapping[str, Callable[[Benchmark, Series], str]] = {
    "server": lambda _, one: one.target,
    "documents": lambda _, one: str(one.case.documents),
    "words": lambda _, one: one.case.words,
    "clients": lambda _, one: str(one.case.concurrency),
    "pairs/s": lambda _, one: f"{one.pairs_per_s:.3g}",
    "p50": lambda _, one: _ms(one.latency_s(0.5)),
    "p95": lambda _, one: _ms(one.latency_s(0.95)),
    "of peak": _share,
    "rounds": lambda _, one: str(len(one.rounds)),
    "times as fast": _times,
}
