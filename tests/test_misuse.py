"""Misuse of the library, and unsupported process models: an error message, never a hang."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from rerankd import Reranker, SyncReranker
from rerankd.domain import RerankRequest
from rerankd.errors import InvalidRequest, Misuse, Stopping
from support import GOLDEN, environment, golden_settings

DOCUMENTS = ["a bear of China", "a kind of bread"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"top_n": -1}, "top_n is -1, but must be a whole number"),
        ({"top_n": "2"}, "top_n is '2'"),
        ({"top_n": True}, "top_n is True"),
        ({"max_tokens_per_doc": -3}, "max_tokens_per_doc is -3"),
        ({"max_chunks_per_doc": 1.5}, "max_chunks_per_doc is 1.5"),
        ({"overlap_tokens": -1}, "overlap_tokens is -1"),
        ({"score_threshold": float("nan")}, "score_threshold is nan"),
        ({"score_threshold": "x"}, "score_threshold is 'x'"),
        ({"instruction": 5}, "instruction is 5"),
        ({"query": None}, "The query is None"),
        ({"documents": ["a", None]}, "Document 1 is None"),
        ({"documents": [{"text": "a"}]}, "Document 0 is {'text': 'a'}"),
        ({"documents": "abc"}, "documents is a str"),
        ({"documents": {"a": "b"}}, "documents is a dict"),
    ],
    ids=str,
)
async def test_an_option_of_the_wrong_type_is_an_error(options: dict[str, Any], says: str) -> None:
    """top_n = -1 left out the last document, a negative bound gave each document 0, and a string was its
    letters."""
    with pytest.raises(InvalidRequest) as caught:
        await Reranker(model=str(GOLDEN / "xlmr-head.gguf")).rerank(
            **{"query": "panda?", "documents": DOCUMENTS, **options}
        )
    assert says in caught.value.message


def test_zero_means_no_limit() -> None:
    zeros = dict.fromkeys(("top_n", "max_tokens_per_doc", "max_chunks_per_doc", "max_tokens_per_query"), 0)
    assert RerankRequest("q", ("a",), **zeros).top_n == 0


def test_a_sync_reranker_before_start_after_close_and_started_twice(tmp_path: Path) -> None:
    settings = golden_settings("xlmr-head", tmp_path)
    reranker = SyncReranker(settings)
    with pytest.raises(
        Misuse, match=r"has not been started. Use `with SyncReranker\(\) as reranker:`, or call"
    ):
        reranker.rerank("panda?", DOCUMENTS)
    with pytest.raises(TypeError, match="Start one in each"):
        pickle.dumps(reranker)
    reranker.start()
    assert len(reranker.rerank("panda?", DOCUMENTS).results) == 2
    with pytest.raises(Misuse, match="already started"), reranker:
        pass
    assert len(reranker.rerank("panda?", DOCUMENTS).results) == 2
    reranker.close()
    reranker.close()
    with pytest.raises(Misuse, match="Use it inside its block"):
        reranker.rerank("panda?", DOCUMENTS)
    with pytest.raises(Misuse, match="Create a new one"), reranker:
        pass
    never = SyncReranker(settings)
    never.close()
    with pytest.raises(Misuse, match="closed"):
        never.start()


async def test_a_reranker_before_start_after_close_and_started_twice(tmp_path: Path) -> None:
    reranker = Reranker(golden_settings("xlmr-head", tmp_path))
    with pytest.raises(Misuse, match="has not been started"):
        await reranker.rerank("panda?", DOCUMENTS)
    with pytest.raises(Misuse, match="has not been started"):
        _ = reranker.model
    await reranker.start()
    with pytest.raises(Misuse, match="already started"):
        async with reranker:
            pass
    assert len((await reranker.rerank("panda?", DOCUMENTS)).results) == 2
    await reranker.close()
    await reranker.close()
    with pytest.raises(Stopping, match="closed"):
        await reranker.rerank("panda?", DOCUMENTS)
    with pytest.raises(Misuse, match="Create a new one"):
        await reranker.start()


def test_a_reranker_on_another_event_loop(tmp_path: Path) -> None:
    """It waited for ever."""
    reranker = Reranker(golden_settings("xlmr-head", tmp_path))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(reranker.start(), loop).result(60)
        for call in (lambda: reranker.rerank("panda?", DOCUMENTS), reranker.close):
            with pytest.raises(Misuse, match="another event loop"):
                asyncio.run(asyncio.wait_for(call(), 10))
        there = asyncio.run_coroutine_threadsafe(reranker.rerank("panda?", DOCUMENTS), loop)
        assert len(there.result(60).results) == 2
    finally:
        asyncio.run_coroutine_threadsafe(reranker.close(), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


FORKS = """
import multiprocessing, os, sys
from rerankd import SyncReranker
from rerankd.errors import Misuse

DOCUMENTS = ["a bear of China", "a kind of bread"]

def ask(query):
    try:
        return len(inherited.rerank(query, DOCUMENTS).results)
    except Misuse as error:
        return str(error)

def start_own():
    global own
    own = SyncReranker(model=sys.argv[1])
    own.start()

def ask_own(query):
    return len(own.rerank(query, DOCUMENTS).results)

with SyncReranker(model=sys.argv[1]) as inherited:
    print("parent", ask("panda?"), flush=True)
    if os.fork() == 0:
        print("child", ask("panda?"), flush=True)
        inherited.__exit__(None, None, None)
        os._exit(0)
    os.wait()
    context = multiprocessing.get_context("fork")
    with context.Pool(1) as pool:
        print("pool", pool.map_async(ask, ["panda?"]).get(30)[0], flush=True)
    with context.Pool(1, initializer=start_own) as pool:
        print("own", pool.map_async(ask_own, ["panda?"]).get(60)[0], flush=True)
    print("again", ask("pandas?"), flush=True)
"""


def test_a_forked_process_gets_an_error_and_keeps_the_engines_running(tmp_path: Path) -> None:
    """As under `gunicorn --preload` and in multiprocessing.Pool: all of them waited for ever."""
    program = tmp_path / "forks.py"
    program.write_text(FORKS)
    ended = subprocess.run(
        [sys.executable, str(program), str(GOLDEN / "xlmr-head.gguf")],
        env=environment(tmp_path / "home"),
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    said = dict(line.split(" ", 1) for line in ended.stdout.splitlines())
    assert (said["parent"], said["own"], said["again"]) == ("2", "2", "2")
    for name in ("child", "pool"):
        assert "was started in process" in said[name]
        assert "gunicorn: in post_fork" in said[name]
