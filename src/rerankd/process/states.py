"""(pure) The states of an engine, and the allowed transitions between them.

    stopped -> starting -> ready <-> checking      ready | checking -> stopping -> waiting | failed
                    \\-> waiting | failed           waiting | failed -> starting    any -> stopping -> stopped

No state is final: while its supervisor runs, a failed engine is restarted after a delay (see
restart_delay.py). In `waiting` the delay is short, and requests wait for the restart. In `failed` the delay
is long, or the model has never loaded; requests are rejected at once with the cause and the time of the next
start."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Literal, TypeVar

from rerankd.errors import RerankdError

Phase = Literal["unloaded", "stopped", "starting", "ready", "checking", "waiting", "failed", "stopping"]
EngineT = TypeVar("EngineT")


@dataclass(frozen=True, slots=True)
class Unloaded:
    """The model is not loaded, so it has no engine. Its supervisor starts as `Stopped`."""

    phase: ClassVar[Phase] = "unloaded"


@dataclass(frozen=True, slots=True)
class Stopped:
    phase: ClassVar[Phase] = "stopped"


@dataclass(frozen=True, slots=True)
class Starting:
    phase: ClassVar[Phase] = "starting"


@dataclass(frozen=True, slots=True)
class Ready(Generic[EngineT]):
    phase: ClassVar[Phase] = "ready"
    engine: EngineT
    pid: int


@dataclass(frozen=True, slots=True)
class Checking:
    """The engine returned an error. No request uses it until it has scored a known pair."""

    phase: ClassVar[Phase] = "checking"
    pid: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """A short restart delay. `until` is the time of the next start (monotonic clock)."""

    phase: ClassVar[Phase] = "waiting"
    error: RerankdError
    until: float


@dataclass(frozen=True, slots=True)
class Failed:
    """A long restart delay, or a model that never loaded. `until` is the time of the next start
    (monotonic)."""

    phase: ClassVar[Phase] = "failed"
    error: RerankdError
    until: float


@dataclass(frozen=True, slots=True)
class Stopping:
    phase: ClassVar[Phase] = "stopping"


State = Unloaded | Stopped | Starting | Ready[EngineT] | Checking | Waiting | Failed | Stopping

TRANSITIONS: Mapping[type[State[Any]], tuple[type[State[Any]], ...]] = {
    Stopped: (Starting,),
    Starting: (Starting, Ready, Waiting, Failed, Stopping),  # Starting: a retry with safer settings
    Ready: (Ready, Checking, Stopping),  # Ready: a successor took over
    Checking: (Ready, Stopping),
    Waiting: (Starting, Stopping),
    Failed: (Starting, Stopping),
    Stopping: (Stopping, Stopped, Starting, Waiting, Failed),  # Stopping: the supervisor stops, too
}


@dataclass(frozen=True, slots=True)
class Status(Generic[EngineT]):
    """An engine's state, and `since` when (monotonic clock). `starts` counts the started children, `lost`
    those that exited or were killed unplanned."""

    state: State[EngineT] = Stopped()
    starts: int = 0
    lost: int = 0
    since: float = field(default_factory=time.monotonic)

    def after(self, state: State[EngineT]) -> Status[EngineT]:
        """Return the status after a transition. Raises ValueError if the transition is not allowed."""
        if type(state) not in TRANSITIONS[type(self.state)]:
            raise ValueError(f"an engine that is {self.phase} can't be {state.phase} next")
        return Status(state, self.starts, self.lost)

    @property
    def phase(self) -> Phase:
        return self.state.phase

    @property
    def engine(self) -> EngineT | None:
        """The engine if it is ready, else None."""
        return self.state.engine if isinstance(self.state, Ready) else None

    @property
    def pid(self) -> int | None:
        return self.state.pid if isinstance(self.state, Ready | Checking) else None

    @property
    def error(self) -> RerankdError | None:
        """Why the engine is not running, or None."""
        return self.state.error if isinstance(self.state, Waiting | Failed) else None

    @property
    def until(self) -> float:
        """The time of the next start (monotonic clock), or 0 if none is planned."""
        return self.state.until if isinstance(self.state, Waiting | Failed) else 0.0
