"""(pure) Add the gauges of the replicas to the ingress's page for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable


def joined(own: bytes, pages: Iterable[tuple[str, bytes]]) -> bytes:
    """The page `own`, and the gauges by model of each replica's page with a label `replica`. The ingress
    counts requests, documents and tokens itself, so the replicas' counters would count them twice."""
    families: dict[str, list[str]] = {}
    described: dict[str, list[str]] = {}
    for replica, page in pages:
        comments: list[str] = []
        for line in page.decode().splitlines():
            if line.startswith("#"):
                # HELP comes before TYPE, and both before the samples.
                comments = [line] if line.startswith("# HELP") else [*comments, line]
                continue
            name, brace, rest = line.partition("{")
            if brace and rest.startswith("model=") and comments and comments[-1].endswith(" gauge"):
                described.setdefault(name, comments)
                families.setdefault(name, []).append(f'{name}{{replica="{replica}",{rest}')
    lines: list[str] = []
    for line in own.decode().splitlines():
        lines.append(line)
        # Samples of a family must stand together.
        if line.startswith("# TYPE ") and (samples := families.pop(line.split()[2], None)):
            lines += samples
    for name, samples in families.items():
        lines += [*described[name], *samples]
    return ("\n".join(lines) + "\n").encode()
