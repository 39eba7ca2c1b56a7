"""The supervisor with a real child process that fails on demand (fake_engine.py), and its pure policies."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import fake_engine
import support
from rerankd import processes
from rerankd.backends.base import Batch, Engine, EngineSpec
from rerankd.backends.llama.engines import LlamaEngine, connect
from rerankd.domain import Normalization, Recipe
from rerankd.errors import EngineError, EngineStartFailed, EngineUnavailable
from rerankd.process import failure_reasons, memory_limit, restart_delay, rundir, states
from rerankd.process.child import Child, Launch
from rerankd.process.children import Plan, Watch
from rerankd.process.states import State, Status
from rerankd.process.supervisor import Supervisor
from rerankd.scoring.engine_input import NONE, Input, Question


@pytest.mark.parametrize(
    ("losses", "delay_s"),
    [(1, 0.2), (2, 0.4), (3, 0.8), (6, 6.4), (9, 51.2), (10, 60.0), (11, 60.0), (10**9, 60.0)],
)
def test_the_restart_delay_grows_to_a_minute(losses: int, delay_s: float) -> None:
    assert delay_s == pytest.approx(restart_delay.delay_s(losses))
    assert delay_s * (1 - restart_delay.JITTER) <= restart_delay.delay_s(losses, 0.999) < delay_s


@pytest.mark.parametrize(
    ("code", "lines", "oom", "cause"),
    [
        (-signal.SIGSEGV, [], False, "crash"),
        (-signal.SIGABRT, ["GGML_ASSERT(x) failed"], False, "crash"),
        (-signal.SIGILL, [], True, "crash"),
        (-signal.SIGKILL, [], False, "killed"),
        (-signal.SIGKILL, [], True, "memory"),
        (-signal.SIGTERM, [], False, "killed"),
        (1, [], False, "exit"),
        (0, [], False, "exit"),
        (failure_reasons.DAMAGED_FILE, ["error: m.gguf: it has no tensor cls.bias."], False, "file"),
        (-signal.SIGABRT, ["terminate called after throwing std::bad_alloc"], False, "memory"),
        (1, ["CUDA error: out of memory"], False, "memory"),
        (1, ["error: Unable to allocate 2.25 MiB for an array"], False, "memory"),
        (1, ["OSError: [Errno 12] Cannot allocate memory"], False, "memory"),
        (1, ["MemoryError"], False, "memory"),
    ],
)
def test_the_cause_of_an_exit_code(code: int, lines: list[str], oom: bool, cause: str) -> None:
    assert failure_reasons.cause(code, lines, out_of_memory=oom) == cause


@pytest.mark.parametrize(
    ("code", "lines", "step"),
    [
        (1, ["ERROR: argument 7"], "Take a newer one."),
        (1, ["error: argument 7: out of memory"], "It ran out of memory."),
        (7, ["argument 7, code 127"], "Its lock is taken."),
        (-signal.SIGILL, [], "Build it for this CPU."),
        (-signal.SIGSEGV, [], "the file is damaged"),
    ],
)
def test_the_next_step_comes_from_the_backend_or_is_general(code: int, lines: list[str], step: str) -> None:
    advice: failure_reasons.Advice = {
        "error: argument": "Take a newer one.",
        failure_reasons.NO_PROGRAM: "Install it.",
        7: "Its lock is taken.",
        -signal.SIGILL: "Build it for this CPU.",
    }
    said = failure_reasons.died("m.gguf", code, lines, advice)
    assert step in said
    assert not any(other in said for other in advice.values() if other != step)


class Clock:
    """A clock that advances only by restart delays."""

    def __init__(self) -> None:
        self.waits: list[float] = []

    async def pause(self, seconds: float) -> None:
        self.waits.append(round(seconds, 3))


class Gate(Clock):
    """Restart delays last until the test opens the gate."""

    def __init__(self) -> None:
        super().__init__()
        self.opened = asyncio.Event()

    async def pause(self, seconds: float) -> None:
        await super().pause(seconds)
        await self.opened.wait()


def pairs(query: str, *texts: str) -> Batch:
    """Make a batch of texts, as the fake engine reads it."""
    question = Question(query)
    return Batch(tuple(Input(question, text, NONE, 1) for text in texts))


class Bench:
    """A supervisor of the fake engine."""

    def __init__(self, folder: Path, clock: Clock, supervisor: Supervisor) -> None:
        self.folder, self.clock, self.supervisor = folder, clock, supervisor

    async def until(self, true: Callable[[Status], bool]) -> Status:
        async with asyncio.timeout(20):
            while not true(self.supervisor.status):
                await asyncio.sleep(0.005)
        return self.supervisor.status

    async def score(self, engine: Engine | None = None) -> list[float]:
        engine = engine or await self.supervisor.ensure_ready()
        return (await engine.score(pairs("q", "a", "b"))).values

    async def kill(self, sign: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to the engine once it is ready, and wait until it has exited."""
        state = await self.until(lambda state: state.engine is not None)
        os.kill(state.pid or 0, sign)
        await self.until(lambda now: now.engine is not state.engine)


def spec(tmp_path: Path) -> EngineSpec:
    scoring = Recipe(
        method="cross_encoder", max_length=256, normalization=Normalization("sigmoid"), pooling="rank"
    )
    return EngineSpec("fake", tmp_path / "fake.gguf", scoring, {"</s>": 2})


@asynccontextmanager
async def bench(tmp_path: Path, *flags: str, **options: Any) -> AsyncIterator[Bench]:
    program = fake_engine.install(tmp_path, *flags)
    clock = options.pop("clock", None) or Clock()
    short = tempfile.mkdtemp(prefix="rd-", dir="/tmp")  # a socket path has at most 107 bytes
    run_dir = rundir.make(Path(short))
    (tmp_path / "command").mkdir(exist_ok=True)

    def launch(path: Path) -> Launch[LlamaEngine]:
        assert (tmp_path / "command").is_dir()
        return Launch([str(program), "--host", str(path)], partial(connect, spec(tmp_path)))

    async def works(engine: Engine) -> None:
        pass

    plan = Plan(
        name="fake",
        file_name="fake.gguf",
        launch=launch,
        check=options.pop("check", works),
        probe=options.pop("probe", works),
        run_dir=run_dir,
        log=tmp_path / "engine.log",
        start_timeout_s=options.pop("start_timeout_s", 10.0),
        stop_timeout_s=options.pop("stop_timeout_s", 10.0),
        watch=options.pop("watch", Watch()),
    )
    made = options.pop("kind", Supervisor)(plan, chance=lambda: 0.0, pause=clock.pause, **options)
    made.start()
    try:
        yield Bench(tmp_path, clock, made)
    finally:
        await made.stop()
        assert list(run_dir.make().iterdir()) == []
        run_dir.remove()
        os.rmdir(short)


FAILED = EngineStartFailed("it fails")
STATES: dict[type, State[Any]] = {
    kind: kind() for kind in (states.Stopped, states.Starting, states.Stopping)
} | {
    states.Ready: states.Ready("an engine", 7),
    states.Checking: states.Checking(7),
    states.Waiting: states.Waiting(FAILED, 9.0),
    states.Failed: states.Failed(FAILED, 9.0),
}


@pytest.mark.parametrize("before", STATES)
def test_only_the_transitions_in_the_table_are_allowed(before: type) -> None:
    status = Status(STATES[before], starts=3, lost=2)
    for kind, state in STATES.items():
        if kind in states.TRANSITIONS[before]:
            assert (status.after(state).state, status.after(state).starts) == (state, 3)
        else:
            with pytest.raises(ValueError, match=f"{status.phase} can't be {state.phase} next"):
                status.after(state)


def test_every_transition_in_the_table_occurs(tmp_path: Path) -> None:
    seen: set[tuple[type, type]] = set()

    class Noted(Supervisor[LlamaEngine]):
        def _set(self, state: State[LlamaEngine]) -> None:
            before = type(self.status.state)
            super()._set(state)
            seen.add((before, type(state)))

    async def many_failures(folder: Path) -> None:
        works, lack = True, ""

        async def probe(engine: Engine) -> None:
            if not works:
                raise EngineError("it never does")

        async with bench(folder, kind=Noted, probe=probe, lacks_memory=lambda pid: lack) as it:
            supervisor = it.supervisor
            engine = await supervisor.ensure_ready()
            assert await supervisor.erred(engine, "once") is None
            assert await supervisor.ensure_ready() is engine
            supervisor.reload()
            await it.until(lambda status: status.engine not in (None, engine))
            works = False
            assert await supervisor.erred(await supervisor.ensure_ready(), "for ever") == "useless"
            await it.until(lambda status: status.starts == 3)
            lack = "no room"
            await supervisor.ensure_ready()
            supervisor.reload()
            await it.until(lambda status: status.starts == 4)
            for _ in range(5):
                await it.kill()  # until the delay is long
            program = folder / "fake-llama-server"
            await it.until(lambda status: status.engine is not None)
            supervisor.answered(await supervisor.ensure_ready())
            program.rename(folder / "away")
            await it.kill()
            await it.until(lambda status: (states.Starting, states.Waiting) in seen)
            (folder / "away").rename(program)
            await it.until(lambda status: status.engine is not None)
            async with supervisor.lease():
                supervisor.reload()
                await it.until(lambda status: status.phase == "stopping")
                await supervisor.stop()

    async def a_failed_start(folder: Path) -> None:
        steps = iter([True])
        safer = {"safer": lambda cause, loaded: next(steps, False)}
        async with bench(folder, "--die-at-start", kind=Noted, clock=Gate(), **safer) as it:
            await it.until(lambda status: status.phase == "failed")
            assert (it.supervisor.status.starts, it.supervisor.status.lost) == (2, 2)

    async def a_stop_before_the_start(folder: Path) -> None:
        async with bench(folder, "--slow-load", "60", kind=Noted) as it:
            await it.until(lambda status: status.phase == "starting")

    async def a_stop_during_a_delay(folder: Path) -> None:
        async with bench(folder, kind=Noted, clock=Gate()) as it:
            await it.kill()
            await it.until(lambda status: status.phase == "waiting")

    for story in (many_failures, a_failed_start, a_stop_before_the_start, a_stop_during_a_delay):
        folder = tmp_path / story.__name__
        folder.mkdir()
        asyncio.run(story(folder))
    assert seen == {(before, after) for before, allowed in states.TRANSITIONS.items() for after in allowed}


RIGHT = [fake_engine.raw("q", "a"), fake_engine.raw("q", "b")]


def test_a_crashed_engine_is_restarted_and_an_answer_resets_the_delay(tmp_path: Path) -> None:
    async def story() -> None:
        async with bench(tmp_path) as it:
            for _ in range(4):  # it scores, but no request is reported as answered
                assert await it.score() == RIGHT
                await it.kill()
            engine = await it.supervisor.ensure_ready()
            assert it.clock.waits == [0.2, 0.4, 0.8, 1.6]
            assert (it.supervisor.status.lost, it.supervisor.status.starts) == (4, 5)
            it.supervisor.answered(engine)
            await it.kill()
            await it.supervisor.ensure_ready()
            assert it.clock.waits[-1] == 0.2

    asyncio.run(story())


def test_an_engine_killed_each_time_it_is_ready_is_always_restarted(tmp_path: Path) -> None:
    async def story() -> None:
        async with bench(tmp_path) as it:
            for _ in range(12):
                await it.kill()
            await it.until(lambda state: state.engine is not None)
            assert await it.score() == RIGHT
            assert it.clock.waits[:6] == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4]
            assert it.clock.waits[-2:] == [60.0, 60.0]

    asyncio.run(story())


def test_a_request_during_a_long_delay_is_rejected_with_the_time_of_the_restart(tmp_path: Path) -> None:
    async def story() -> None:
        gate = Gate()
        gate.opened.set()
        async with bench(tmp_path, clock=gate) as it:
            for _ in range(9):
                await it.kill(signal.SIGSEGV)
            gate.opened.clear()
            await it.kill(signal.SIGSEGV)
            state = await it.until(lambda state: state.phase == "failed")
            with pytest.raises(EngineStartFailed, match=r"restarted in 60 s.*rerankd reload fake") as caught:
                await it.supervisor.ensure_ready()
            assert caught.value is not state.error
            assert caught.value.retry_after_s in (59, 60)
            it.supervisor.reload()
            await it.supervisor.ensure_ready()
            await it.kill()
            await it.until(lambda state: state.phase == "waiting" and it.clock.waits[-1] < 1)
            assert it.clock.waits[-1] == 0.2  # a reload resets the delay
            waiting = asyncio.create_task(it.supervisor.ensure_ready())
            gate.opened.set()
            assert await it.score(await waiting) == RIGHT

    asyncio.run(story())


def test_an_engine_that_never_loads_fails_at_its_deadline(tmp_path: Path) -> None:
    async def story() -> None:
        async with bench(tmp_path, "--slow-load", "60", start_timeout_s=0.5, clock=Gate()) as it:
            with pytest.raises(EngineStartFailed, match=r"within 0\.5 s.*\n(.*\n)*.*fake engine: loading"):
                await it.supervisor.ensure_ready()
            assert it.supervisor.status.phase == "failed"

    asyncio.run(story())


def test_a_failed_first_start_is_reported_at_once_and_retried(tmp_path: Path) -> None:
    async def story() -> None:
        gate = Gate()
        flags = ("--die-at-start", "--only-first", str(tmp_path / "first"))
        async with bench(tmp_path, *flags, clock=gate) as it:
            with pytest.raises(
                EngineStartFailed, match=r"exited with code 7[^|]*\| .*[^|]*\| .*no such tensor"
            ) as caught:
                await it.supervisor.ensure_ready()
            assert it.supervisor.status.starts == 1
            assert caught.value.retry_after_s == 1
            gate.opened.set()
            await it.until(lambda state: state.engine is not None)
            assert await it.score() == RIGHT

    asyncio.run(story())


def test_a_missing_program_is_reported_and_started_once_it_exists(tmp_path: Path) -> None:
    async def story() -> None:
        gate = Gate()
        async with bench(tmp_path, clock=gate) as it:
            program, away = tmp_path / "fake-llama-server", tmp_path / "away"
            await it.supervisor.ensure_ready()
            program.rename(away)
            gate.opened.set()
            await it.kill()
            state = await it.until(lambda state: state.phase == "failed")
            assert "fake-llama-server does not exist" in str(state.error)
            away.rename(program)
            await it.until(lambda state: state.engine is not None)
            assert await it.score() == RIGHT

    asyncio.run(story())


def test_a_failed_fork_is_retried(tmp_path: Path) -> None:
    """fork fails here because no file descriptor is left for the pipe."""

    async def story() -> None:
        async with bench(tmp_path, clock=Gate()) as it:
            await it.supervisor.ensure_ready()
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
            try:
                it.clock.opened.set()
                await it.kill()
                state = await it.until(lambda state: state.phase == "failed" or state.lost > 3)
                assert "could not start the engine" in str(state.error)
                assert "Too many open files" in str(state.error)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            await it.until(lambda state: state.engine is not None)
            assert await it.score() == RIGHT

    asyncio.run(story())


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="there asyncio needs no thread to watch a child")
def test_a_child_that_can_not_be_watched_is_killed(tmp_path: Path) -> None:
    async def story() -> None:
        others = set(support.children(os.getpid()))  # children of other tests' fixtures
        usual = threading.stack_size(2**46)  # more than the address space, so no thread can start
        try:
            with pytest.raises(EngineStartFailed, match="too many processes"):
                await Child.start(["/bin/sleep", "60"], tmp_path / "log")
        finally:
            threading.stack_size(usual)
        while set(support.children(os.getpid())) - others:
            await asyncio.sleep(0.005)

    asyncio.run(asyncio.wait_for(story(), 20))


def test_the_supervisor_survives_its_own_exceptions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        async with bench(tmp_path, clock=Gate()) as it:
            await it.supervisor.ensure_ready()
            shutil.rmtree(tmp_path / "command")
            it.clock.opened.set()
            await it.kill()
            await it.until(lambda state: "failed to supervise its engine" in str(state.error))
            (tmp_path / "command").mkdir()
            await it.until(lambda state: state.engine is not None)
            assert await it.score() == RIGHT

    asyncio.run(story())
    assert "unexpected reason" in caplog.text


@pytest.mark.parametrize("sign", [signal.SIGSTOP, "hang"])
def test_an_engine_that_hangs_is_killed_and_replaced(tmp_path: Path, sign: signal.Signals | str) -> None:
    async def story() -> None:
        flags = ["--hang-after", "1", "--only-first", str(tmp_path / "first")] if sign == "hang" else []
        async with bench(tmp_path, *flags, watch=Watch(health_poll_s=0.3)) as it:
            engine = await it.supervisor.ensure_ready()
            pid = it.supervisor.status.pid or 0
            if isinstance(sign, signal.Signals):
                support.suspend(pid)
            with pytest.raises(EngineUnavailable):  # the running call fails
                await it.score(engine)
            assert await it.score(await it.supervisor.ensure_ready(after=engine)) == RIGHT
            assert it.supervisor.status.starts == 2
            assert processes.identify(pid) is None

    asyncio.run(story())


def test_an_engine_that_hangs_in_a_request_is_replaced_though_health_polls_succeed(tmp_path: Path) -> None:
    async def story() -> None:
        flags = ("--stall-after", "1", "--only-first", str(tmp_path / "first"))
        watch = Watch(health_poll_s=0.1, hang_margin_s=0.3)
        async with bench(tmp_path, *flags, watch=watch) as it:
            engine = await it.supervisor.ensure_ready()
            call = asyncio.create_task(it.score(engine))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(call), 0.6)
            assert it.supervisor.status.engine is engine  # no deadline has passed, so it may still compute
            it.supervisor.suspect()
            with pytest.raises(EngineUnavailable):
                await call
            state = await it.until(lambda state: state.starts == 2 and state.engine is not None)
            assert await it.score(state.engine) == RIGHT

    asyncio.run(story())


def test_a_working_engine_is_not_replaced_after_a_deadline(tmp_path: Path) -> None:
    async def story() -> None:
        async with bench(tmp_path, watch=Watch(health_poll_s=0.05, hang_margin_s=0.2)) as it:
            engine = await it.supervisor.ensure_ready()
            it.supervisor.suspect()
            await asyncio.sleep(0.4)  # twice the margin
            assert it.supervisor.status.engine is engine

    asyncio.run(story())


GROWING = Watch(health_poll_s=0.05, max_engine_memory=100 * 2**20)


def test_an_engine_that_grows_is_replaced_without_a_gap(tmp_path: Path) -> None:
    async def story() -> None:
        async with bench(tmp_path, "--grow-mib", "60", watch=GROWING) as it:
            async with it.supervisor.lease() as engine:
                pid = it.supervisor.status.pid or 0
                assert await it.score(engine) == RIGHT  # the second call: 120 MiB
                state = await it.until(lambda state: state.engine is not engine)
                assert state.engine is not None  # no request had to wait
                assert processes.identify(pid) is not None
                assert await it.score(engine) == RIGHT  # the lease keeps the engine
            async with asyncio.timeout(10):
                while processes.identify(pid) is not None:
                    await asyncio.sleep(0.005)
            assert it.clock.waits == []
            assert (it.supervisor.status.lost, it.supervisor.status.starts) == (0, 2)

    asyncio.run(story())


def test_a_leaking_engine_is_replaced_at_the_default_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # The default headroom of a gigabyte would take long to fill.
    monkeypatch.setattr(memory_limit, "HEADROOM_BYTES", 50 * 2**20)

    async def story() -> None:
        async with bench(tmp_path, "--grow-mib", "60", watch=Watch(health_poll_s=0.05)) as it:
            sizes = []
            for _ in range(2):
                async with it.supervisor.lease() as engine:
                    calls = 0
                    while it.supervisor.status.engine is engine:
                        assert await it.score(engine) == RIGHT  # no call fails meanwhile
                        calls += 1
                        assert calls < 50, "it was never replaced"
                        await asyncio.sleep(0.1)
                    sizes.append(calls)
            # The first one reached its limit soon, so the limit of the next one is doubled.
            assert sizes[1] > sizes[0]
            assert it.supervisor.status.lost == 0

    asyncio.run(story())
    assert "MiB (it used " in caplog.text


def test_the_default_limit_grows_with_rss_and_doubles_when_raised() -> None:
    mib = 2**20
    assert memory_limit.limit_bytes(500 * mib, 0, 0) == 1000 * mib + memory_limit.HEADROOM_BYTES
    # llama.cpp has not read all pages of its file yet.
    assert memory_limit.limit_bytes(100 * mib, 4000 * mib, 0) == 4100 * mib + memory_limit.HEADROOM_BYTES
    assert memory_limit.limit_bytes(500 * mib, 0, 2) == 4 * memory_limit.limit_bytes(500 * mib, 0, 0)


def test_without_memory_for_two_a_leaking_engine_stops_before_the_next_one_starts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    async def story() -> None:
        room = {"watch": GROWING, "lacks_memory": lambda pid: "1 MiB is free"}
        async with bench(tmp_path, "--grow-mib", "60", **room) as it:
            async with it.supervisor.lease() as engine:
                assert await it.score(engine) == RIGHT
                state = await it.until(lambda state: state.engine is None)
                assert state.phase == "stopping"
                assert await it.score(engine) == RIGHT
            assert await it.supervisor.ensure_ready() is not engine
            assert it.clock.waits == []
            assert it.supervisor.status.lost == 0

    asyncio.run(story())
    assert "1 MiB is free: the engine for fake.gguf is stopped before the next one starts" in caplog.text


def test_a_successor_that_fails_to_start_costs_no_request(tmp_path: Path) -> None:
    async def story() -> None:
        flags = ("--die-at-start", "--only-second", str(tmp_path / "second"))
        async with bench(tmp_path, *flags) as it:
            engine = await it.supervisor.ensure_ready()
            it.supervisor.reload()
            await it.until(lambda state: state.starts == 3 and state.engine is not None)
            assert await it.supervisor.ensure_ready() is not engine
            assert it.supervisor.status.lost == 0

    asyncio.run(story())


def test_a_stop_while_a_successor_starts_leaves_no_process(tmp_path: Path) -> None:
    async def story() -> None:
        flags = ("--slow-load", "60", "--only-second", str(tmp_path / "second"))
        others = set(support.children(os.getpid()))  # children of other tests' fixtures
        async with bench(tmp_path, *flags) as it:
            await it.supervisor.ensure_ready()
            it.supervisor.reload()
            await it.until(lambda state: state.starts == 2)
            while len(set(support.children(os.getpid())) - others) < 2:
                await asyncio.sleep(0.005)
            await it.supervisor.stop()
            assert set(support.children(os.getpid())) <= others

    asyncio.run(story())


def test_an_engine_with_an_error_is_not_used_while_its_successor_starts(tmp_path: Path) -> None:
    async def story() -> None:
        flags = ("--slow-load", "60", "--only-second", str(tmp_path / "second"))
        async with bench(tmp_path, *flags) as it:
            engine = await it.supervisor.ensure_ready()
            it.supervisor.reload()
            await it.until(lambda status: status.starts == 2)
            telling = asyncio.create_task(it.supervisor.erred(engine, "something broke"))
            await asyncio.sleep(0)
            next_call = asyncio.create_task(it.supervisor.ensure_ready())
            await it.until(lambda status: status.phase == "checking")
            assert not next_call.done()
            await it.supervisor.stop()
            with pytest.raises(EngineUnavailable, match="stopped"):
                await next_call
            await telling

    asyncio.run(story())


def test_an_exclusive_lease_excludes_other_calls(tmp_path: Path) -> None:
    async def story() -> None:
        async with bench(tmp_path) as it:
            supervisor, order, free = it.supervisor, [], asyncio.Event()

            async def call(name: str, alone: bool) -> None:
                async with supervisor.lease(alone=alone):
                    order.append(name)
                    await free.wait()
                    order.append(f"{name} ends")

            async with asyncio.TaskGroup() as group:
                for name, alone in (("a", False), ("b", False), ("c", True), ("d", False)):
                    group.create_task(call(name, alone))
                    while len(order) < 2 and name == "b":
                        await asyncio.sleep(0.001)
                for _ in range(50):
                    await asyncio.sleep(0)
                assert order == ["a", "b"]
                free.set()
            assert order == ["a", "b", "a ends", "b ends", "c", "c ends", "d", "d ends"]
            assert supervisor.leases == 0

    asyncio.run(story())


def test_an_engine_that_returns_only_errors_is_replaced_after_three(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        flags = ("--bad-scores", "error", "--bad-after", "1", "--only-first", str(tmp_path / "first"))

        async def probe(engine: Engine) -> None:
            await engine.score(pairs("known", "pair"))

        async with bench(tmp_path, *flags, probe=probe) as it:
            engine = await it.supervisor.ensure_ready()
            with pytest.raises(EngineError):
                await it.score(engine)
            assert await it.supervisor.erred(engine, "something broke") == "useless"
            assert await it.score(await it.supervisor.ensure_ready()) == RIGHT
            assert it.supervisor.status.starts == 2

    asyncio.run(story())
    assert caplog.text.count("failed on a known pair") == 2
    assert "3 errors in a row and was replaced" in caplog.text


def test_after_an_error_an_engine_is_ready_once_it_scores_a_known_pair(tmp_path: Path) -> None:
    async def story() -> None:
        works = asyncio.Event()

        async def probe(engine: Engine) -> None:
            await works.wait()
            await engine.score(pairs("known", "pair"))

        async with bench(tmp_path, probe=probe) as it:
            engine = await it.supervisor.ensure_ready()
            telling = asyncio.create_task(it.supervisor.erred(engine, "one bad document"))
            await asyncio.sleep(0)
            next_call = asyncio.create_task(it.supervisor.ensure_ready())
            await it.until(lambda status: status.phase == "checking")
            assert it.supervisor.status.engine is None
            assert not next_call.done()
            works.set()
            assert await next_call is engine
            assert await telling is None
            it.supervisor.answered(engine)
            for _ in range(2):
                assert await it.supervisor.erred(engine, "two more") is None
                assert await it.supervisor.ensure_ready() is engine
            assert it.supervisor.status.starts == 1

    asyncio.run(story())


def test_a_memory_limit_below_the_size_after_loading_fails_the_start(tmp_path: Path) -> None:
    async def story() -> None:
        watch = Watch(max_engine_memory=2**20)
        async with bench(tmp_path, watch=watch) as it:
            with pytest.raises(EngineStartFailed, match="right after loading"):
                await it.supervisor.ensure_ready()

    asyncio.run(story())


def test_an_engine_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    async def story() -> None:
        async with bench(tmp_path, "--ignore-term", stop_timeout_s=0.2) as it:
            await it.supervisor.ensure_ready()
            pid = it.supervisor.status.pid or 0
            await it.supervisor.stop()
            assert processes.identify(pid) is None

    asyncio.run(story())


def test_a_second_stop_kills_at_once(tmp_path: Path) -> None:
    async def story() -> None:
        async with bench(tmp_path, "--ignore-term", stop_timeout_s=60.0) as it:
            await it.supervisor.ensure_ready()
            patient = asyncio.create_task(it.supervisor.stop())
            await it.until(lambda state: state.phase == "stopping")
            async with asyncio.timeout(5):
                await it.supervisor.stop(at_once=True)
                await patient

    asyncio.run(story())


def test_endless_output_neither_blocks_the_engine_nor_fills_the_disk(tmp_path: Path) -> None:
    async def story() -> None:
        async with bench(tmp_path, "--chatter") as it:
            engine = await it.supervisor.ensure_ready()
            log, old = tmp_path / "engine.log", tmp_path / "engine.log.1"
            async with asyncio.timeout(30):
                while not old.exists():  # until 8 MiB are written
                    assert await it.score(engine) == RIGHT
            assert log.stat().st_size + old.stat().st_size < 20 * 2**20

    asyncio.run(story())


@pytest.mark.parametrize("how", fake_engine.INVALID_RESPONSES)
def test_an_invalid_response_is_an_engine_error(tmp_path: Path, how: str) -> None:
    async def story() -> None:
        async with bench(tmp_path, "--bad-scores", how, "--bad-after", "1") as it:
            with pytest.raises(EngineError) as caught:
                await it.score()
            assert isinstance(caught.value, EngineUnavailable) == (how == "close")

    asyncio.run(story())


def test_after_a_lost_connection_a_living_engine_is_returned_again(tmp_path: Path) -> None:
    async def story() -> None:
        async with bench(tmp_path) as it:
            engine = await it.supervisor.ensure_ready()
            assert await it.supervisor.ensure_ready(after=engine) is engine

    asyncio.run(story())


def test_an_error_for_a_known_pair_fails_the_start_with_rerankds_own_message(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def refuse(engine: Engine) -> None:
        raise EngineError("CUDA error: it scores nonsense")

    async def story() -> None:
        async with bench(tmp_path, check=refuse) as it:
            with pytest.raises(EngineStartFailed, match="returned an error for a known pair") as caught:
                await it.supervisor.ensure_ready()
            assert "CUDA" not in caught.value.message

    asyncio.run(story())
    assert "CUDA error: it scores nonsense" in caplog.text
