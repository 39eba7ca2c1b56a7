"""The service process loads no engine libraries; only the engine processes do."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent / "faults"))

from served import service

_COMPUTES = re.compile(r"openvino|torch", re.IGNORECASE)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells in /proc what a process has mapped")
def test_a_running_service_maps_no_engine_library(tmp_path: Path) -> None:
    with service(tmp_path, real=True, engine="openvino", precision="f32", threads=1) as it:
        assert it.rerank(["a panda", "bread"]).status_code == 200
        (engine,) = it.engines()
        assert _libraries(engine)  # otherwise the test looks for the wrong names
        assert _libraries(it.process.pid) == set()


def _libraries(pid: int) -> set[str]:
    """Return the engine libraries that a process has mapped."""
    lines = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    files = {line.split(maxsplit=5)[5] for line in lines if line.count(" ") > 4 and "/" in line}
    return {name for name in files if _COMPUTES.search(Path(name).name) or "site-packages/torch/" in name}
