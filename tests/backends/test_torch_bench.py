"""bench/gpu.py, with tiny models on the CPU: all of its parts give results, and they are right.

Needs PyTorch: `make test-torch`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="no PyTorch here: make test-torch")
pytest.importorskip("transformers", reason="make test-torch")

from support import ROOT, environment

ARGUMENTS = (
    "--tiny", "--engine", "torch", "--shapes", "ettin-reranker-32m-v1", "Qwen3-Reranker-0.6B",
    "--seconds", "1", "--minutes", "0.1", "--clients", "4",
)  # fmt: skip


@pytest.mark.timeout(600)
def test_the_gpu_benchmark_measures_everything(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench" / "gpu.py"), *ARGUMENTS, "--out", str(out)],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    found = json.loads(out.read_text())
    assert {row["model"] for row in found["correct"]} >= {"bert", "xlm-roberta", "distilbert", "modernbert"}
    for row in found["correct"]:
        # The service computes in float32 here.
        assert row["max"] < 1e-4 < row["reference_max"], row
    throughput = [row for row in found["http"] if "load" not in row]
    assert [row["model"] for row in throughput] == ["ettin-reranker-32m-v1", "Qwen3-Reranker-0.6B"]
    assert all(row["engine"].startswith("PyTorch") and row["pairs_per_s"] > 0 for row in throughput)
    assert any("open loop" in row.get("load", "") for row in found["http"])
    (mixed,) = found["mixed"]
    assert (mixed["kills"], mixed["failed"], mixed["restarted"]) == (2, 0, True)
    assert "Qwen3-Reranker-0.6B" in done.stdout.splitlines()[-1] or "mixed:" in done.stdout
