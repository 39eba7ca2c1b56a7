"""(pure) What an engine can be doing, and what may come after what.

    stopped -> starting -> ready <-> checking      ready | checking -> stopping -> waiting | failed
                    \\-> waiting | failed           waiting | failed -> starting    any -> stopping -> stopped

No state is final: an engine that was lost is started again after a delay (see restart_delay.py) for as long
as its supervisor runs. `waiting` is a short delay, and requests wait with it. `failed` is a long one, or a
model that has never loaded: requests are told at once what is wrong and when the next start is."""

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
    """There is no engine, since nobody has asked for the model; its supervisor begins as `Stopped`."""

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
    """The engine gave an error, and nobody gets it before it has scored a pair that is known to work."""

    phase: ClassVar[Phase] = "checking"
    pid: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """`until` is the time of the next start, of the monotonic clock."""

    phase: ClassVar[Phase] = "waiting"
    error: RerankdError
    until: float


@dataclass(frozen=True, slots=True)
class Failed:
    """`until` is the time of the next start, of the monotonic clock."""

    phase: ClassVar[Phase] = "failed"
    error: RerankdError
    until: float


@dataclass(frozen=True, slots=True)
class Stopping:
    phase: ClassVar[Phase] = "stopping"


State = Unloaded | Stopped | Starting | Ready[EngineT] | Checking | Waiting | Failed | Stopping

TRANSITIONS: Mapping[type[State[Any]], tuple[type[State[Any]], ...]] = {
    Stopped: (Starting,),
    Starting: (Starting, Ready, Waiting, Failed, Stopping),  # starting again: with safer settings
    Ready: (Ready, Checking, Stopping),  # ready again: a successor took over
    Checking: (Ready, Stopping),
    Waiting: (Starting, Stopping),
    Failed: (Starting, Stopping),
    Stopping: (Stopping, Stopped, Starting, Waiting, Failed),  # stopping again: the supervisor, too
}


@dataclass(frozen=True, slots=True)
class Status(Generic[EngineT]):
    """What an engine is doing, and `since` when, of the monotonic clock. `starts` counts the children, `lost`
    those that went without being asked to."""

    state: State[EngineT] = Stopped()
    starts: int = 0
    lost: int = 0
    since: float = field(default_factory=time.monotonic)

    def after(self, state: State[EngineT]) -> Status[EngineT]:
        """The status from now on. Raises ValueError where the new state can't follow this one."""
        if type(state) not in TRANSITIONS[type(self.state)]:
            raise ValueError(f"an engine that is {self.phase} can't be {state.phase} next")
        return Status(state, self.starts, self.lost)

    @property
    def phase(self) -> Phase:
        return self.state.phase

    @property
    def engine(self) -> EngineT | None:
        """Where it is ready."""
        return self.state.engine if isinstance(self.state, Ready) else None

    @property
    def pid(self) -> int | None:
        return self.state.pid if isinstance(self.state, Ready | Checking) else None

    @property
    def error(self) -> RerankdError | None:
        """Why it is not running."""
        return self.state.error if isinstance(self.state, Waiting | Failed) else None

    @property
    def until(self) -> float:
        """When it is started again, of the monotonic clock; 0 where that is not planned."""
        return self.state.until if isinstance(self.state, Waiting | Failed) else 0.0
