"""The results of bench/gpu.py as a table in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Column of the table: the row's key.
_HTTP = {
    "model": "model",
    "load": "load",
    "offered items/s": "items_per_s",
    "pairs/s": "pairs_per_s",
    "of peak": "of_peak",
    "p50 ms": "p50_ms",
    "p99 ms": "p99_ms",
    "service CPU s per 1,000": "service_cpu_s_per_1000",
    "worker CPU s per 1,000": "worker_cpu_s_per_1000",
    "GPU busy": "gpu_busy",
    "W": "gpu_watts",
    "code": "compiled",
    "ready s": "ready_s",
    "failed": "failed",
    "error": "error",
}
_CORRECT = {
    "model": "model",
    "pairs": "pairs",
    "spread": "spread",
    "rerankd mean": "mean",
    "bf16 mean": "reference_mean",
    "rerankd max": "max",
    "bf16 max": "reference_max",
    "mean ratio": "mean_ratio",
    "max ratio": "max_ratio",
    "error": "error",
}
_MIXED = {
    "minutes": "minutes",
    "requests": "requests",
    "pairs/s": "pairs_per_s",
    "p99 ms": "p99_ms",
    "slowest ms": "slowest_ms",
    "kills": "kills",
    "failed": "failed",
    "largest change of a score": "largest_change",
    "service MiB": "service_mib",
    "worker MiB": "worker_mib",
    "GPU MiB": "gpu_mib",
    "error": "error",
}


def table(results: Mapping[str, Any]) -> str:
    """Render the rows of each part."""
    about = results["machine"]
    lines = [
        f"{about['device']}, {about['cores']} cores, PyTorch {about['torch']}, bf16 product "
        f"{about['gemm_bf16_tflops']} TFLOP/s, {results['took_s']} s"
    ]
    for name, columns in (("correct", _CORRECT), ("http", _HTTP), ("mixed", _MIXED)):
        rows = results.get(name, [])
        # An error has its own column only where there is one.
        shown = {title: key for title, key in columns.items() if any(key in row for row in rows)}
        if rows:
            lines += ["", f"{name}:", _line(shown), _line(["---"] * len(shown))]
            lines += [_line(_cell(row.get(key, "")) for key in shown.values()) for row in rows]
    return "\n".join(lines)


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(value: Any) -> str:
    text = f"{value:,g}" if isinstance(value, float) and abs(value) < 1 else str(value)
    return " ".join(text.split())[:160]
