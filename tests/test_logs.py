"""Log lines: request ids, JSON, and the limit of repeated lines."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

from rerankd import logs

sys.path.append(str(Path(__file__).parent / "faults"))
from served import service


def record(message: str, line: int = 1) -> logging.LogRecord:
    return logging.LogRecord("rerankd.test", logging.WARNING, "file.py", line, message, (), None)


def test_repeated_lines_are_suppressed_and_counted() -> None:
    now = [0.0]
    said: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    logger = logging.getLogger("rerankd.test")
    keep = Keep()
    logger.addHandler(keep)
    try:
        alike = logs.RepeatLimit(lambda: now[0])
        passed = [alike.filter(record(f"number {number}")) for number in range(1000)]
        assert sum(passed) == 20 and all(passed[:20])
        assert alike.filter(record("another place", line=2))
        now[0] = 11.0
        assert alike.filter(record("again"))
        assert said == ["980 more log lines like these were suppressed."]
    finally:
        logger.removeHandler(keep)


def test_every_line_is_json_and_names_its_request(tmp_path: Path) -> None:
    flags = ("--bad-scores", "garbage")
    with service(tmp_path, *flags, wait=False, log_format="json", log_level="debug", api_key="k") as it:
        while "serves" not in it.output:
            assert it.process.poll() is None
        port = json.loads(next(line for line in it.lines if "serves" in line))["message"]
        it.url = port.split(" at ")[1].splitlines()[0].replace("localhost", "127.0.0.1")
        headers = {"x-request-id": "my-request", "authorization": "Bearer k"}
        assert it.rerank(["a"], **headers).status_code == 502
        it.process.terminate()
        it.ended()
        lines = [json.loads(line) for line in it.lines]
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
    mine = [line for line in lines if line.get("request_id") == "my-request"]
    assert mine and all(line["key"] == "default" for line in mine)
    assert any("POST /v1/rerank" in line["message"] and "502" in line["message"] for line in mine)


def test_lines_of_text_name_their_request(tmp_path: Path) -> None:
    with service(tmp_path, log_level="debug") as it:
        it.rerank(["a"], **{"x-request-id": "my-request"})
        it.process.terminate()
        it.ended()
        assert any("POST /v1/rerank" in line and line.endswith("[my-request]\n") for line in it.lines)


def test_no_text_of_a_request_is_in_a_log(tmp_path: Path) -> None:
    for flags in ((), ("--bad-scores", "garbage"), ("--crash-on", "SECRET")):
        folder = tmp_path / str(len(flags) and flags[0])
        folder.mkdir()
        with service(folder, *flags, log_level="debug") as it:
            it.rerank(["SECRET document"], "SECRET query")
            it.process.terminate()
            it.ended()
            assert "POST /v1/rerank" in it.output
            logs_of_engine = "".join(path.read_text() for path in (folder / "home" / "logs").iterdir())
            assert "SECRET" not in it.output + logs_of_engine.replace("--crash-on SECRET", "")


def test_a_request_id_adds_no_lines_to_a_log(tmp_path: Path) -> None:
    with service(tmp_path, log_level="debug") as it:
        it.rerank(["a"], **{"x-request-id": "evil 2026-01-01 INFO forged"})
        it.get("/nothing%0A2026-01-01%20INFO%20forged")
        it.process.terminate()
        it.ended()
        assert "INFO forged" not in it.output
