"""The worker protocol, passes, scorer, HTTP server and client, with a model that adds up token ids."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerankd.backends.base import Batch
from rerankd.backends.worker import prefixes, protocol
from rerankd.backends.worker.client import WorkerEngine
from rerankd.backends.worker.compute_lock import ComputeLock
from rerankd.backends.worker.methods import Cosines, Logits
from rerankd.backends.worker.passes import Padding, Pause, Pending, Reading, Vectors, never, padded, split
from rerankd.backends.worker.protocol import InvalidBatch
from rerankd.backends.worker.scorer import Scorer
from rerankd.backends.worker.server import Server
from rerankd.errors import EngineError, EngineUnavailable, InputTooLong
from rerankd.scoring.engine_input import Frame, Ids, Input, Question

FAILS, WAITS, ROWS, MAX_LENGTH = 666, 77, 1000, 16
# A worker whose device is lost at the first pass.
LOST = """
import sys
from rerankd.backends.worker.methods import Logits
from rerankd.backends.worker.protocol import DeviceLost
from rerankd.backends.worker.scorer import Scorer
from rerankd.backends.worker.server import Server

class Lost:
    about, rows, passes_ahead = "", 1000, 1

    def passes(self, readings):
        return [[*range(len(readings))]]

    def start(self, readings, pause):
        raise DeviceLost("the device failed: CUDA error: an illegal memory access")

with Server(sys.argv[1], Scorer(Lost(), 16, Logits())) as server:
    print("listening", flush=True)
    server.serve_forever()
"""


class Sum(Padding):
    """A model whose logit is the sum of the ids; ids of the second type count twice. The id WAITS makes it
    wait for the test, and the id FAILS makes it fail."""

    about = "a sum"
    rows = ROWS
    tokens_a_pass = 32

    def __init__(self) -> None:
        self.gate = threading.Semaphore(0)
        self.at_gate = threading.Semaphore(0)
        self.calls: list[int] = []

    def whole(self, count: int, longest: int) -> int:
        return count

    def forward(self, ids: Any, lengths: Any, seconds: Any) -> Any:
        self.calls.append(len(ids))
        assert (ids[np.arange(ids.shape[1]) >= lengths[:, None]] == 0).all()
        if (ids == WAITS).any():
            self.at_gate.release()
            assert self.gate.acquire(timeout=20)
        if (ids == FAILS).any():
            raise ValueError("Check failed at brgemm.cpp:1")
        twice = np.arange(ids.shape[1]) >= seconds[:, None]
        return (ids * (1 + twice)).sum(axis=1, keepdims=True).astype(np.float32)


class Lengths(Sum):
    """A model whose vector is the number of even and of odd ids."""

    def forward(self, ids: Any, lengths: Any, seconds: Any) -> Any:
        self.calls.append(len(ids))
        read = np.arange(ids.shape[1]) < lengths[:, None]
        counts = [(read & (ids % 2 == odd)).sum(axis=1) for odd in (0, 1)]
        return np.stack(counts, axis=1).astype(np.float32)


def ids(*values: int) -> Ids:
    return np.array(values, np.int32)


def asked(*values: int, second: int | None = None) -> Question:
    """A question with ids before the document, and the id 3 after it."""
    return Question("", before=ids(*values), after=ids(3), second=second)


def inputs(question: Question, *documents: Sequence[int]) -> tuple[Input, ...]:
    return tuple(Input(question, "", ids(*one), 0) for one in documents)


def batch(question: Question, *documents: Sequence[int]) -> Batch:
    return Batch(inputs(question, *documents))


numbers = st.lists(st.integers(-(2**31), 2**31 - 1), max_size=6).map(lambda values: ids(*values))
questions = st.builds(
    Question,
    st.just(""),
    before=numbers,
    after=numbers,
    ids=numbers,
    head=numbers,
    second=st.none() | st.integers(0, 9),
)


@st.composite
def batches(draw: st.DrawFn) -> list[Input]:
    pool = draw(st.lists(questions, min_size=1, max_size=4))
    rows = draw(st.lists(st.tuples(st.sampled_from(pool), numbers), max_size=12))
    return [Input(question, "", own, 0) for question, own in rows]


@given(batches())
def test_a_batch_survives_a_round_trip(made: list[Input]) -> None:
    read = protocol.parse(protocol.render(made))
    assert len(read) == len(made)
    for one, other in zip(read, made, strict=True):
        assert one.question.key == other.question.key
        assert (one.ids.tolist(), one.tokens) == (other.ids.tolist(), len(other.whole))
    assert len({id(one.question) for one in read}) == len({one.question.key for one in made})


@given(batches(), st.data())
def test_a_damaged_body_is_rejected_or_still_valid(made: list[Input], data: st.DataObject) -> None:
    body = bytearray(protocol.render(made))
    at = data.draw(st.integers(0, len(body) - 1))
    length = data.draw(st.integers(0, 4))
    body[at : at + length] = data.draw(st.binary(max_size=4))
    with contextlib.suppress(InvalidBatch):
        protocol.parse(bytes(body))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "first line can't be read"),
        (b"[" * 100_000, "first line can't be read"),
        (b"[]\n", "first line can't be read"),
        (b'{"questions": []}\n', "first line can't be read"),
        (b'{"questions": [[1, 2, 3, 4]], "inputs": []}\n', "first line can't be read"),
        (b'{"questions": [], "inputs": [[0, 0]]}\n', "refers to question 0 of 0"),
        (b'{"questions": [[0, 0, 0, 0, null]], "inputs": [[-1, 0]]}\n', "neither a length"),
        (b'{"questions": [[0, 0, 0, 0, null]], "inputs": [[0, -1]]}\nabcd', "neither a length"),
        (b'{"questions": [[0, 0, 0, 0, -1]], "inputs": [[0, 1]]}\nabcd', "neither a length"),
        (b'{"questions": [[0, true, 0, 0, null]], "inputs": []}\nabcd', "neither a length"),
        (b'{"questions": [[0, 0.0, 0, 0, null]], "inputs": []}\n', "neither a length"),
        (b'{"questions": [[0, 0, 0, 0, null]], "inputs": [[0, 2]]}\nabcd', "2 ids, but 4 bytes follow"),
        (b'{"questions": [[0, 0, 0, 0, null]], "inputs": [[0, 1]]}\nabcdefg', "1 ids, but 7 bytes follow"),
        (b'{"questions": [[%d, 0, 0, 0, null]], "inputs": []}\n' % 10**30, "0 bytes follow"),
    ],
)
def test_an_invalid_body_is_explained(body: bytes, says: str) -> None:
    with pytest.raises(InvalidBatch, match=says):
        protocol.parse(body)


lengths = st.lists(st.integers(1, 1500), min_size=1, max_size=80)


@given(lengths, st.integers(64, 1024))
def test_each_input_is_in_one_pass_and_no_pass_is_too_large(tokens: list[int], most: int) -> None:
    seen = []
    for places in split(tokens, most, lambda count, longest: (count + 1) // 2):
        longest = max(tokens[at] for at in places)
        assert len(places) == 1 or len(places) * longest <= most
        assert all(tokens[at] >= 0.75 * longest for at in places)
        seen += places
    assert sorted(seen) == list(range(len(tokens)))


def test_inputs_of_similar_length_share_a_pass_the_longest_first() -> None:
    assert split([10, 50, 11, 49, 12], 100, lambda count, longest: count) == [[3, 1], [0, 2, 4]]
    assert split([], 100, lambda count, longest: count) == []


def test_what_an_input_shares_is_where_it_first_differs_from_its_question() -> None:
    asked = Question("", before=ids(1, 2), head=ids(3, 4, 5))
    shared = [
        one.shared
        for one in prefixes.readings(
            [Input(asked, "", own, 0) for own in (ids(3, 4, 6), ids(3, 9), ids(7), ids(3), ids(3, 4))]
        )
    ]
    assert shared == [4, 3, 2, 2, 3], "at least one id is left to compute"


def test_padding_keeps_inputs_complete() -> None:
    made = padded([Reading(ids(1, 2), 1), Reading(ids(3), 1), Reading(ids(4, 5, 6), 3)])
    assert [one.tolist() for one in made] == [[[1, 2, 0], [3, 0, 0], [4, 5, 6]], [2, 1, 3], [1, 1, 3]]


def test_scores_are_in_the_order_of_the_inputs() -> None:
    model = Sum()
    scorer = Scorer(model, MAX_LENGTH, Logits())
    plain, typed = asked(1), asked(1, 2, second=2)
    long, short = [10] * 12, [5]
    mixed = [*inputs(plain, long, short), *inputs(typed, long, short), *inputs(plain, [])]
    assert scorer.score(mixed) == [124, 9, 249, 19, 4]
    assert sorted(model.calls) == [1, 2, 2]
    assert scorer.score([]) == []


def test_the_query_vector_is_computed_once_and_cached() -> None:
    model = Lengths()
    scorer = Scorer(model, MAX_LENGTH, Cosines())
    even, odd = (Question("", before=ids(2), after=ids(1), ids=own) for own in (ids(4, 4, 6), ids(7)))
    mixed = [*inputs(even, [2, 2], []), *inputs(odd, [2, 2])]
    wanted = [3 / 10**0.5, 0.5**0.5, 1 / 10**0.5]
    assert scorer.score(mixed) == pytest.approx(wanted)
    assert sum(model.calls) == 5
    assert scorer.score(mixed) == pytest.approx(wanted)
    assert sum(model.calls) == 8


@pytest.mark.parametrize("bad", [ROWS, -1, -(2**31), 2**31 - 1])
def test_ids_outside_the_vocabulary_are_rejected(bad: int) -> None:
    head, vectors = (
        Scorer(Sum(), MAX_LENGTH, Logits()),
        Scorer(Lengths(), MAX_LENGTH, Cosines()),
    )
    own = Question("", ids=ids(bad))
    for scorer, made in ((head, inputs(asked(1), [ROWS - 1], [bad])), (vectors, inputs(own, [1]))):
        with pytest.raises(InvalidBatch, match="outside the model's vocabulary of 1000"):
            scorer.score(made)
    with pytest.raises(InvalidBatch, match="no tokens"):
        vectors.score(inputs(asked(1), [1]))


@pytest.fixture
def model() -> Sum:
    return Sum()


@pytest.fixture
def scorer(model: Sum) -> Scorer:
    return Scorer(model, MAX_LENGTH, Logits())


@pytest.fixture
def socket(model: Sum, scorer: Scorer, tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "w.sock"
    with Server(str(path), scorer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield path
        model.gate.release(100)
        server.shutdown()
        thread.join()


async def test_a_batch_of_two_questions_is_scored(socket: Path) -> None:
    engine = WorkerEngine(socket)
    assert await engine.is_ready()
    await engine.prepare()
    assert engine.about == "a sum"
    answer = await engine.score(Batch((*inputs(asked(1), [2], [500]), *inputs(asked(9), [2]))))
    assert (answer.values, answer.errors) == ([6, 504, 14], {})
    assert (await engine.score(Batch(()))).values == []
    assert engine.frame == Frame()
    for found in (await engine.encode(["a", "b"]), await engine.ends(["a", "b"])):
        assert [len(one) for one in found] == [0, 0]
    await engine.close()


async def test_an_input_that_can_not_be_scored_is_an_engine_error(socket: Path) -> None:
    engine = WorkerEngine(socket)
    with pytest.raises(InputTooLong, match="17 tokens, and max_length is 16"):
        await engine.score(batch(asked(1), [2], [4] * 15))
    with pytest.raises(EngineError, match=r"Check failed at brgemm\.cpp"):
        await engine.score(batch(asked(1), [FAILS]))
    with pytest.raises(EngineError, match=r"the batch is invalid: a token id is outside"):
        await engine.score(batch(asked(1), [ROWS]))
    with pytest.raises(EngineError, match=r"the batch is invalid: its first line can't be read"):
        await engine.post("/score", b"{}\n")
    assert (await engine.score(batch(asked(1), [2]))).values == [6]
    await engine.close()
    with pytest.raises(EngineUnavailable):
        await engine.score(batch(asked(1), [2]))


async def test_concurrent_calls_are_computed_one_after_the_other(socket: Path, model: Sum) -> None:
    engine = WorkerEngine(socket)
    calls = [asyncio.create_task(engine.score(batch(asked(at), [WAITS], [1]))) for at in (1, 2, 3)]
    for _ in calls:
        assert await asyncio.to_thread(model.at_gate.acquire, timeout=10)
        assert not model.at_gate.acquire(timeout=0.05)
        model.gate.release()
    assert [(await call).values for call in calls] == [[81, 5], [82, 6], [83, 7]]
    await engine.close()


async def test_a_call_that_disconnects_while_it_waits_is_not_computed(socket: Path, model: Sum) -> None:
    engine = WorkerEngine(socket)
    under_way = asyncio.create_task(engine.score(batch(asked(1), [WAITS])))
    assert await asyncio.to_thread(model.at_gate.acquire, timeout=10)
    dropped = asyncio.create_task(engine.score(batch(asked(2), *[[5] * 9] * 50)))
    async with asyncio.timeout(10):
        while len(engine._http._open) < 2:
            await asyncio.sleep(0)
    dropped.cancel()
    await asyncio.wait([dropped])
    model.gate.release()
    assert (await under_way).values == [81]
    assert (await engine.score(batch(asked(1), [2]))).values == [6]
    assert model.calls == [1, 1]
    await engine.close()


async def test_a_disconnect_stops_the_computation_after_the_current_pass(socket: Path, model: Sum) -> None:
    engine = WorkerEngine(socket)
    large = asyncio.create_task(engine.score(batch(asked(1), *[[WAITS] * 12] * 30)))
    assert await asyncio.to_thread(model.at_gate.acquire, timeout=10)
    large.cancel()
    await asyncio.wait([large])
    model.gate.release()
    assert (await engine.score(batch(asked(1), [2]))).values == [6]
    assert model.calls == [2, 1]
    await engine.close()


async def test_a_hanging_worker_shows_no_work_but_answers_health_polls(socket: Path, model: Sum) -> None:
    engine = WorkerEngine(socket)
    assert await engine.shows_work(5)
    hung = asyncio.create_task(engine.score(batch(asked(1), [WAITS])))
    assert await asyncio.to_thread(model.at_gate.acquire, timeout=10)
    assert await engine.is_ready()
    assert not await engine.shows_work(0.2)
    model.gate.release()
    assert await engine.shows_work(5)
    await hung
    await engine.close()


class OnDevice(Sum):
    """A model on a device: a pass is started, and its rows are there when the test opens the gate."""

    passes_ahead = 1

    def start(self, readings: Sequence[Reading], pause: Pause = never) -> Pending:
        wait = super().start(readings)
        self.at_gate.release()

        def rows() -> Vectors:
            assert self.gate.acquire(timeout=20)
            return wait()

        return rows


def test_the_next_batch_starts_while_a_device_computes() -> None:
    model = OnDevice()
    scorer = Scorer(model, MAX_LENGTH, Logits())
    with ThreadPoolExecutor() as callers:
        first, second = (callers.submit(scorer.score, inputs(asked(at), [2])) for at in (1, 2))
        for _ in range(2):
            assert model.at_gate.acquire(timeout=20)
        assert scorer.lock.steps(0, 0.01) == 0 and not first.done()
        model.gate.release(2)
        assert (first.result(20), second.result(20)) == ([6], [7])
    assert scorer.lock.steps(9, 10) == 2


def test_a_batch_starts_at_most_one_pass_before_the_last_one_is_read() -> None:
    model = OnDevice()
    scorer = Scorer(model, MAX_LENGTH, Logits())
    with ThreadPoolExecutor() as callers:
        found = callers.submit(scorer.score, inputs(asked(1), *[[at] * 12 for at in (4, 5, 6, 7, 8)]))
        for _ in range(2):
            assert model.at_gate.acquire(timeout=20)
        assert not model.at_gate.acquire(timeout=0.05)
        model.gate.release(10)
        assert found.result(20) == [52, 64, 76, 88, 100]
    assert model.calls == [2, 2, 1]


def test_a_process_whose_device_is_lost_ends(tmp_path: Path) -> None:
    path = tmp_path / "w.sock"
    worker = subprocess.Popen(
        [sys.executable, "-c", LOST, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert worker.stdout is not None and worker.stdout.readline() == "listening\n"
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://worker") as client:
        sent = protocol.render(inputs(asked(1), [2]))
        with pytest.raises(httpx.RemoteProtocolError):
            client.post("/score", content=sent)
    _, said = worker.communicate(timeout=20)
    assert worker.returncode == 1
    assert said == "error: the device failed: CUDA error: an illegal memory access\n"


def test_steps_returns_after_a_pass_or_when_nothing_is_computed() -> None:
    lock = ComputeLock()
    assert lock.steps(7, 10) == 0
    with lock.working(), ThreadPoolExecutor() as others:
        assert lock.steps(0, 0.01) == 0
        told = others.submit(lock.steps, 0, 10)
        lock.step()
        assert told.result() == 1
    assert lock.steps(1, 10) == 1


def test_an_error_releases_the_lock() -> None:
    lock = ComputeLock()
    with pytest.raises(ValueError, match="one"), lock.held():
        raise ValueError("one")
    with lock.held():
        assert lock.steps(0, 0) == 0


async def test_a_stopped_worker_is_not_ready(tmp_path: Path) -> None:
    engine = WorkerEngine(tmp_path / "nobody.sock")
    assert not await engine.is_ready()
    assert await engine.shows_work(1)  # the supervisor detects the exit
    with pytest.raises(EngineUnavailable):
        await engine.score(batch(asked(1), [2]))
    await engine.close()
