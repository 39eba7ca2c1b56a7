"""The service against its own openapi.json: no 5xx, and every response matches its description."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import venvs
from live import Server

_CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def _generate(server: Server, folder: Path, phases: str, examples: int) -> tuple[int, Counter[str]]:
    """Return the number of requests, and the number of each status."""
    report, log = folder / "report.json", folder / "log.ndjson"
    done = subprocess.run(
        [
            str(venvs.python("schemathesis").with_name("st")),
            *("run", f"{server.url}/openapi.json"),
            *("--checks", _CHECKS, "--phases", phases, "--max-examples", str(examples), "--seed", "1"),
            *("--request-timeout", "60", "--suppress-health-check", "all"),
            *("--report", "json,ndjson", "--report-json-path", str(report)),
            *("--report-ndjson-path", str(log)),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    statuses = Counter(re.findall(r'"status_code":\s*(\d+)', log.read_text(encoding="utf-8")))
    return json.loads(report.read_text(encoding="utf-8"))["test_cases"]["generated"], statuses


def test_a_few_requests_of_each_kind(server: Server, tmp_path: Path) -> None:
    generated, statuses = _generate(server, tmp_path, "examples,fuzzing", 20)
    # Both, or the reference describes something else than what is taken.
    assert generated >= 100 and statuses["200"] >= 20 and statuses["400"] >= 20, statuses


@pytest.mark.wide
@pytest.mark.timeout(1000)
def test_two_thousand_requests(server: Server, tmp_path: Path) -> None:
    generated, statuses = _generate(server, tmp_path, "examples,coverage,fuzzing", 350)
    print(f"{generated} requests: {dict(statuses)}")
    assert generated >= 2000 and statuses["200"] >= 500 and statuses["400"] >= 500, statuses
