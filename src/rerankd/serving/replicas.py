"""Several engines of one model that share its requests: each call goes to the ready one that has the
fewest."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from rerankd.backends.base import Engine
from rerankd.errors import RerankdError
from rerankd.process.failure_reasons import Cause
from rerankd.process.states import Phase, Status
from rerankd.process.supervisor import Supervisor

# Whom to wait for where nobody is ready: the one that will be soonest.
_SOONEST: tuple[Phase, ...] = (
    "ready", "checking", "starting", "waiting", "stopping", "failed", "stopped"
)  # fmt: skip


class Replicas:
    """The supervisors of one model, used as if they were one."""

    def __init__(self, supervisors: Sequence[Supervisor[Engine]]) -> None:
        self._supervisors = tuple(supervisors)

    @property
    def status(self) -> Status[Engine]:
        """That of the one that is best off, with the starts and losses of all."""
        found = [supervisor.status for supervisor in self._supervisors]
        best = min(found, key=lambda status: _SOONEST.index(status.phase))
        return replace(best, starts=sum(one.starts for one in found), lost=sum(one.lost for one in found))

    @property
    def pids(self) -> list[int]:
        """The processes of the engines that are ready."""
        return [pid for supervisor in self._supervisors if (pid := supervisor.status.pid) is not None]

    def start(self) -> None:
        """Begin; returns at once. Must be called on the thread of the event loop that stays."""
        for supervisor in self._supervisors:
            supervisor.start()

    async def ensure_ready(self) -> None:
        """Wait until each is ready or has failed. Raises what made the first one fail where none is ready:
        the others go on trying."""
        waits = (supervisor.ensure_ready() for supervisor in self._supervisors)
        outcomes = await asyncio.gather(*waits, return_exceptions=True)
        failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        unexpected = [failure for failure in failures if not isinstance(failure, RerankdError)]
        if unexpected or len(failures) == len(outcomes):
            raise (unexpected or failures)[0]

    def pick(self, after: Engine | None = None) -> Supervisor[Engine]:
        """The one to ask for an engine. `after` is one that has failed the caller: another one's is taken
        where there is one."""

        def rank(supervisor: Supervisor[Engine]) -> tuple[bool, int, int]:
            status = supervisor.status
            failed = after is not None and status.engine is after
            return failed, _SOONEST.index(status.phase), supervisor.leases

        return min(self._supervisors, key=rank)

    def answered(self, engine: Engine) -> None:
        """Say that `engine` has scored what a client asked for."""
        for supervisor in self._supervisors:
            supervisor.answered(engine)

    def exit_cause(self, engine: Engine) -> Cause | None:
        """Why `engine` went, as far as that is known now."""
        return next(filter(None, (one.known_exit_cause(engine) for one in self._supervisors)), None)

    def reload(self) -> None:
        """Start failed engines again, replace running ones between requests."""
        for supervisor in self._supervisors:
            supervisor.reload()

    def suspect(self) -> None:
        """Say that a call was not answered in time: the engines that are stuck are replaced."""
        for supervisor in self._supervisors:
            supervisor.suspect()

    async def stop(self, *, at_once: bool = False) -> None:
        """Stop all; safe to call again, and with `at_once` to cut an earlier call short."""
        await asyncio.gather(*(supervisor.stop(at_once=at_once) for supervisor in self._supervisors))
