"""Folders that are removed while the service runs: by a logout, by a cleaner of /tmp, by a mistaken rm."""

from __future__ import annotations

import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from served import raw_scores, right, service

from support import until


@pytest.mark.parametrize("whole", [False, True], ids=["its own folder", "the login's folder"])
@pytest.mark.parametrize("replicas", [1, 2])
def test_every_request_is_answered_after_the_sockets_are_deleted(
    tmp_path: Path, whole: bool, replicas: int
) -> None:
    with service(tmp_path, replicas=replicas, cache_entries=0) as it, ThreadPoolExecutor(16) as pool:
        (own,) = it.runtime.iterdir()
        shutil.rmtree(it.runtime if whole else own)
        many = [[f"document {number} of {client}" for number in range(5)] for client in range(32)]
        answers = list(pool.map(it.rerank, many))
        assert [answer.status_code for answer in answers] == [200] * len(many)
        assert [raw_scores(answer) for answer in answers] == [right(documents) for documents in many]
        assert "was removed by another program" in it.output
        # An engine that exits now is restarted as usual.
        before = it.metric("rerankd_engine_starts")
        told = it.get("/v1/status").json()["models"][0]["engine"]
        os.kill(told["pids"][0], signal.SIGKILL)
        until(lambda: it.metric("rerankd_engine_starts") == before + 1)
        until(lambda: it.get("/ready").status_code == 200)
        assert raw_scores(it.rerank(["a"])) == right(["a"])


def test_an_idle_engine_without_its_socket_is_replaced(tmp_path: Path) -> None:
    with service(tmp_path, health_poll_s=0.1) as it:
        (own,) = it.runtime.iterdir()
        shutil.rmtree(own)
        until(lambda: it.get("/health").json()["engine"]["starts"] == 2)
        until(lambda: it.get("/ready").status_code == 200)
        assert it.metric("rerankd_engine_lost") == 0


@pytest.mark.parametrize("how", ["removed", "rotated"])
def test_a_removed_or_rotated_log_is_created_again(tmp_path: Path, how: str) -> None:
    with service(tmp_path, "--chatter") as it:
        found = (tmp_path / "home" / "logs").glob("*.log")
        (log,) = (path for path in found if not path.name.startswith("server"))
        if how == "removed":
            shutil.rmtree(log.parent)
        else:
            log.rename(log.with_suffix(".old"))
        until(lambda: log.exists() and log.stat().st_size > 0)
        assert raw_scores(it.rerank(["a"])) == right(["a"])
