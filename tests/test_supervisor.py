"""The supervisor with a real child that fails as it is told (see fake_engine.py), and its policy as data."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import fake_engine
from rerankd.domain import Scoring, Transform
from rerankd.engine import process, rundir
from rerankd.engine.base import Engine, EngineSpec
from rerankd.engine.restart import End, GiveUp, Restart, decide
from rerankd.engine.supervisor import State, Supervisor, Watch
from rerankd.errors import EngineError, EngineStartFailed, EngineUnavailable

LONG, SHORT = End(61.0), End(3.0)


@pytest.mark.parametrize(
    ("ends", "decision"),
    [
        ([SHORT], Restart(0.2)),
        ([SHORT] * 2, Restart(0.4)),
        ([SHORT] * 3, Restart(0.8)),
        ([SHORT] * 4, Restart(1.6)),
        ([SHORT] * 5, GiveUp()),
        ([End(0.0)] * 5, GiveUp()),
        ([LONG], Restart(0.2)),
        ([SHORT] * 4 + [LONG], Restart(0.2)),
        ([SHORT] * 4 + [LONG, SHORT], Restart(0.2)),
        ([SHORT] * 4 + [LONG] + [SHORT] * 4, Restart(1.6)),
        ([SHORT] * 4 + [LONG] + [SHORT] * 5, GiveUp()),
        ([End(59.9)] * 5, GiveUp()),
    ],
)
def test_what_follows_a_history_of_ends(ends: list[End], decision: Restart | GiveUp) -> None:
    assert decide(ends) == decision


class Clock:
    """Time that passes only in waits before a restart, and in lives as long as the test says."""

    def __init__(self) -> None:
        self.time = 0.0
        self.waits: list[float] = []

    def now(self) -> float:
        return self.time

    async def pause(self, seconds: float) -> None:
        self.waits.append(round(seconds, 3))
        self.time += seconds


class Bench:
    """One supervisor over the fake engine."""

    def __init__(self, folder: Path, clock: Clock, supervisor: Supervisor) -> None:
        self.folder, self.clock, self.supervisor = folder, clock, supervisor

    async def until(self, true: Callable[[State], bool]) -> State:
        async with asyncio.timeout(20):
            while not true(self.supervisor.state):
                await asyncio.sleep(0.005)
        return self.supervisor.state

    async def score(self, engine: Engine | None = None) -> list[float]:
        engine = engine or await self.supervisor.ensure_ready()
        return (await engine.score("q", ["a", "b"])).values


def spec(tmp_path: Path) -> EngineSpec:
    scoring = Scoring(way="head", window=256, transform=Transform("sigmoid"), pooling="rank")
    return EngineSpec("fake", tmp_path / "fake.gguf", scoring, {"</s>": 2})


@asynccontextmanager
async def bench(tmp_path: Path, *flags: str, **options: Any) -> AsyncIterator[Bench]:
    program = fake_engine.install(tmp_path, *flags)
    clock = Clock()
    short = tempfile.mkdtemp(prefix="rd-", dir="/tmp")  # a socket's path may have 107 bytes
    run_dir = rundir.make(Path(short))
    made = Supervisor(
        spec(tmp_path),
        lambda path: [str(program), "--host", str(path)],
        run_dir=run_dir,
        log=tmp_path / "engine.log",
        start_timeout_s=options.pop("start_timeout_s", 10.0),
        stop_timeout_s=options.pop("stop_timeout_s", 10.0),
        now=clock.now,
        pause=clock.pause,
        watch=options.pop("watch", Watch()),
        **options,
    )
    made.start()
    try:
        yield Bench(tmp_path, clock, made)
    finally:
        await made.stop()
        assert list(run_dir.make().iterdir()) == []
        run_dir.remove()
        os.rmdir(short)


RIGHT = [fake_engine.raw("q", "a"), fake_engine.raw("q", "b")]


def test_an_engine_that_dies_is_started_again_and_the_waits_grow(tmp_path: Path) -> None:
    async def story() -> None:
        async with bench(tmp_path) as it:
            engines = []
            for life in range(1, 5):
                state = await it.until(lambda state: state.engine is not None)
                assert state.starts == life
                assert await it.score(state.engine) == RIGHT
                engines.append(state.engine)
                it.clock.time += 1  # a short life
                assert state.pid is not None
                os.kill(state.pid, signal.SIGKILL)
                await it.until(lambda state: state.engine is None)
            assert await it.supervisor.ensure_ready() not in engines
            assert it.clock.waits == [0.2, 0.4, 0.8, 1.6]
            assert it.supervisor.state.lost == 4
            it.clock.time += 61  # a long one: the count starts over
            os.kill(it.supervisor.state.pid or 0, signal.SIGKILL)
            await it.until(lambda state: state.starts == 6 and state.engine is not None)
            assert it.clock.waits[-1] == 0.2

    asyncio.run(story())


def test_after_five_quick_deaths_it_is_failed_until_a_reload(tmp_path: Path) -> None:
    async def story() -> None:
        async with bench(tmp_path, "--crash-after", "1") as it:
            for _ in range(5):
                engine = await it.supervisor.ensure_ready()
                with pytest.raises(EngineUnavailable):
                    await it.score(engine)
                await it.until(lambda state: state.engine is None)
            state = await it.until(lambda state: state.phase == "failed")
            assert isinstance(state.error, EngineStartFailed)
            assert "about to crash, as asked" in state.error.message
            assert "SIGHUP" in state.error.message
            with pytest.raises(EngineStartFailed) as caught:
                await it.supervisor.ensure_ready()
            assert caught.value is not state.error
            assert it.clock.waits == [0.2, 0.4, 0.8, 1.6]
            it.supervisor.reload()
            state = await it.until(lambda state: state.engine is not None)
            assert state.starts == 6

    asyncio.run(story())


def test_an_engine_that_never_loads_is_given_up_at_its_deadline(tmp_path: Path) -> None:
    async def story() -> None:
        async with bench(tmp_path, "--slow-load", "60", start_timeout_s=0.5) as it:
            with pytest.raises(EngineStartFailed, match=r"within 0\.5 s.*\n(.*\n)*.*fake engine: loading"):
                await it.supervisor.ensure_ready()
            assert it.supervisor.state.phase == "failed"

    asyncio.run(story())


def test_an_engine_that_dies_at_its_first_start_is_not_tried_again(tmp_path: Path) -> None:
    async def story() -> None:
        async with bench(tmp_path, "--die-at-start") as it:
            with pytest.raises(EngineStartFailed, match=r"exit code 7[^|]*\| .*[^|]*\| .*no such tensor"):
                await it.supervisor.ensure_ready()
            assert it.supervisor.state.starts == 1
            assert it.clock.waits == []

    asyncio.run(story())


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    async def story() -> None:
        async with bench(tmp_path) as it:
            state = await it.until(lambda state: state.engine is not None)
            (tmp_path / "fake-llama-server").unlink()
            os.kill(state.pid or 0, signal.SIGKILL)
            state = await it.until(lambda state: state.phase == "failed")
            assert "fake-llama-server is not a program" in str(state.error)

    asyncio.run(story())


def stop(pid: int) -> None:
    """SIGSTOP, and wait until it has: for a moment after the call a process can still answer."""
    os.kill(pid, signal.SIGSTOP)
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        os.sched_yield()


@pytest.mark.parametrize("sign", [signal.SIGSTOP, "hang"])
def test_an_engine_that_hangs_is_killed_and_replaced(tmp_path: Path, sign: signal.Signals | str) -> None:
    async def story() -> None:
        flags = ["--hang-after", "1", "--only-first", str(tmp_path / "first")] if sign == "hang" else []
        async with bench(tmp_path, *flags, watch=Watch(health_poll_s=0.3)) as it:
            engine = await it.supervisor.ensure_ready()
            pid = it.supervisor.state.pid or 0
            if isinstance(sign, signal.Signals):
                stop(pid)
            with pytest.raises(EngineUnavailable):  # the call that was under way learns of it
                await it.score(engine)
            assert await it.score(await it.supervisor.ensure_ready(after=engine)) == RIGHT
            assert it.supervisor.state.starts == 2
            assert process.identify(pid) is None

    asyncio.run(story())


def test_an_engine_that_is_stuck_in_a_request_is_replaced_though_its_health_is_fine(tmp_path: Path) -> None:
    async def story() -> None:
        flags = ("--stall-after", "1", "--only-first", str(tmp_path / "first"))
        watch = Watch(health_poll_s=0.1, hang_margin_s=0.3)
        async with bench(tmp_path, *flags, watch=watch) as it:
            engine = await it.supervisor.ensure_ready()
            call = asyncio.create_task(it.score(engine))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(call), 0.6)
            assert it.supervisor.state.engine is engine  # no deadline has passed: it may be a long text
            it.supervisor.suspect(engine)
            with pytest.raises(EngineUnavailable):
                await call
            state = await it.until(lambda state: state.starts == 2 and state.engine is not None)
            assert await it.score(state.engine) == RIGHT

    asyncio.run(story())


def test_an_engine_that_works_is_not_replaced_for_a_passed_deadline(tmp_path: Path) -> None:
    async def story() -> None:
        async with bench(tmp_path, watch=Watch(health_poll_s=0.05, hang_margin_s=0.2)) as it:
            engine = await it.supervisor.ensure_ready()
            it.supervisor.suspect(engine)
            await asyncio.sleep(0.4)  # twice the margin
            assert it.supervisor.state.engine is engine

    asyncio.run(story())


def test_an_engine_that_grows_is_replaced_between_requests(tmp_path: Path) -> None:
    async def story() -> None:
        watch = Watch(health_poll_s=0.05, max_engine_memory=100 * 2**20)
        async with bench(tmp_path, "--grow-mib", "60", watch=watch) as it:
            async with it.supervisor.lease() as engine:
                assert await it.score(engine) == RIGHT  # the second call: 120 MiB
                state = await it.until(lambda state: state.engine is None)
                assert state.phase == "stopping"
                assert await it.score(engine) == RIGHT  # it has the engine until it gives it back
            assert await it.supervisor.ensure_ready() is not engine
            assert it.clock.waits == []
            assert it.supervisor.state.lost == 0

    asyncio.run(story())


def test_a_memory_limit_that_no_engine_can_keep_is_refused(tmp_path: Path) -> None:
    async def story() -> None:
        watch = Watch(max_engine_memory=2**20)
        async with bench(tmp_path, watch=watch) as it:
            with pytest.raises(EngineStartFailed, match="when it has just loaded"):
                await it.supervisor.ensure_ready()

    asyncio.run(story())


def test_an_engine_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    async def story() -> None:
        async with bench(tmp_path, "--ignore-term", stop_timeout_s=0.2) as it:
            await it.supervisor.ensure_ready()
            pid = it.supervisor.state.pid or 0
            await it.supervisor.stop()
            assert process.identify(pid) is None

    asyncio.run(story())


def test_a_second_stop_does_not_wait(tmp_path: Path) -> None:
    async def story() -> None:
        async with bench(tmp_path, "--ignore-term", stop_timeout_s=60.0) as it:
            await it.supervisor.ensure_ready()
            patient = asyncio.create_task(it.supervisor.stop())
            await it.until(lambda state: state.phase == "stopping")
            async with asyncio.timeout(5):
                await it.supervisor.stop(at_once=True)
                await patient

    asyncio.run(story())


def test_an_engine_that_writes_without_end_neither_stops_nor_fills_the_disk(tmp_path: Path) -> None:
    async def story() -> None:
        async with bench(tmp_path, "--chatter") as it:
            engine = await it.supervisor.ensure_ready()
            log, old = tmp_path / "engine.log", tmp_path / "engine.log.1"
            async with asyncio.timeout(30):
                while not old.exists():  # 8 MiB have come
                    assert await it.score(engine) == RIGHT
            assert log.stat().st_size + old.stat().st_size < 20 * 2**20

    asyncio.run(story())


@pytest.mark.parametrize("how", fake_engine.WAYS_TO_ANSWER_BADLY)
def test_a_bad_answer_is_an_engine_error(tmp_path: Path, how: str) -> None:
    async def story() -> None:
        async with bench(tmp_path, "--bad-scores", how, "--bad-after", "1") as it:
            with pytest.raises(EngineError) as caught:
                await it.score()
            assert isinstance(caught.value, EngineUnavailable) == (how == "close")

    asyncio.run(story())


def test_who_learns_of_a_closed_connection_gets_the_same_engine_if_it_lives(tmp_path: Path) -> None:
    async def story() -> None:
        async with bench(tmp_path) as it:
            engine = await it.supervisor.ensure_ready()
            assert await it.supervisor.ensure_ready(after=engine) is engine

    asyncio.run(story())


def test_what_check_raises_fails_the_start(tmp_path: Path) -> None:
    async def refuse(engine: Engine) -> None:
        raise EngineError("it scores nonsense")

    async def story() -> None:
        async with bench(tmp_path, check=refuse) as it:
            with pytest.raises(EngineError, match="it scores nonsense"):
                await it.supervisor.ensure_ready()

    asyncio.run(story())
