"""Replicas: several engines of one model. Each call goes to the ready engine with the fewest calls."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from rerankd.backends.base import Engine
from rerankd.backends.token_vectors import KeptVectors
from rerankd.errors import RerankdError
from rerankd.process.failure_reasons import Cause
from rerankd.process.states import Phase, Status
from rerankd.process.supervisor import Supervisor

# If no engine is ready, wait for the one that will probably be ready first.
_SOONEST: tuple[Phase, ...] = (
    "ready", "checking", "starting", "waiting", "stopping", "failed", "stopped"
)  # fmt: skip


class Replicas:
    """The supervisors of one model's engines, used like a single one."""

    def __init__(self, supervisors: Sequence[Supervisor[Engine]]) -> None:
        self._supervisors = tuple(supervisors)

    @property
    def status(self) -> Status[Engine]:
        """The status of the replica in the best phase, with the starts and losses of all."""
        found = [supervisor.status for supervisor in self._supervisors]
        best = min(found, key=lambda status: _SOONEST.index(status.phase))
        return replace(best, starts=sum(one.starts for one in found), lost=sum(one.lost for one in found))

    @property
    def pids(self) -> list[int]:
        """The process ids of the ready engines."""
        return [pid for supervisor in self._supervisors if (pid := supervisor.status.pid) is not None]

    @property
    def kept(self) -> KeptVectors | None:
        """The document vectors that all engines keep together; None if they keep none."""
        engines = [supervisor.status.engine for supervisor in self._supervisors]
        found = [one.kept for one in engines if one is not None and one.kept is not None]
        return KeptVectors.sum(found) if found else None

    def start(self) -> None:
        """Start the engines and return at once. Call it on the event loop's thread, which must outlive
        them."""
        for supervisor in self._supervisors:
            supervisor.start()

    async def ensure_ready(self) -> None:
        """Wait until each engine is ready or has failed. If none is ready, raises the first error. Failed
        engines continue to retry."""
        waits = (supervisor.ensure_ready() for supervisor in self._supervisors)
        outcomes = await asyncio.gather(*waits, return_exceptions=True)
        failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        unexpected = [failure for failure in failures if not isinstance(failure, RerankdError)]
        if unexpected or len(failures) == len(outcomes):
            raise (unexpected or failures)[0]

    def pick(self, after: Engine | None = None) -> Supervisor[Engine]:
        """The supervisor to lease an engine from. `after` is the engine that failed the caller; another one
        is preferred."""

        def rank(supervisor: Supervisor[Engine]) -> tuple[bool, int, int]:
            status = supervisor.status
            failed = after is not None and status.engine is after
            return failed, _SOONEST.index(status.phase), supervisor.leases

        return min(self._supervisors, key=rank)

    def answered(self, engine: Engine) -> None:
        """Report that `engine` has scored a client's request."""
        for supervisor in self._supervisors:
            supervisor.answered(engine)

    def exit_cause(self, engine: Engine) -> Cause | None:
        """Why `engine` exited, or None if that is not known yet."""
        return next(filter(None, (one.known_exit_cause(engine) for one in self._supervisors)), None)

    def reload(self) -> None:
        """Restart failed engines now, and running ones between requests."""
        for supervisor in self._supervisors:
            supervisor.reload()

    def suspect(self) -> None:
        """Report that a call timed out. Engines that hang are restarted."""
        for supervisor in self._supervisors:
            supervisor.suspect()

    async def stop(self, *, at_once: bool = False) -> None:
        """Stop all engines. Safe to call again; `at_once` then ends an earlier call."""
        await asyncio.gather(*(supervisor.stop(at_once=at_once) for supervisor in self._supervisors))
