"""(pure) What is said of an engine that went: the cause, its last lines, and the next step.

`name` is the model file's name, `lines` what the engine wrote, the last line last. What only a backend can
tell is its `Advice`.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from typing import Literal

_QUOTED_LINES = 12
LESS_MEMORY = "Take a smaller quantisation or lower scoring.max_length."
Cause = Literal[
    "crash", "exit", "file", "hang", "memory", "killed", "errors", "useless", "start", "requested"
]
"""Why an engine went: a signal that a fault in it raises, an exit code, a model file that is not whole (see
DAMAGED_FILE), no sign of work, too little memory, a signal from outside, errors instead of scores for some
texts or (useless) for a known pair, too, no start at all, or a planned replacement."""

DAMAGED_FILE = 65
"""The exit code (EX_DATAERR of sysexits.h) with which our own workers say that the model file is damaged or
lacks a part. Another engine might compute something else of it and say nothing, so none is tried."""

Advice = Mapping[str | int, str]
"""The next step, by words that the engine writes (in lower case), or by its exit code as a shell tells it:
negative for a signal, NO_PROGRAM where it could not be run."""
NO_PROGRAM = 127

# What a fault in the program itself raises; any other signal comes from outside.
_FAULTS = ("SIGILL", "SIGTRAP", "SIGABRT", "SIGBUS", "SIGFPE", "SIGSEGV", "SIGSYS")
# Of engines, CUDA, C++, Rust, numpy, Python and the system.
_MEMORY_SIGNS = (
    "failed to allocate", "out of memory", "bad_alloc", "memory allocation of", "unable to allocate",
    "memoryerror", "cannot allocate memory", "not enough memory",
)  # fmt: skip
_FAULT_NUMBERS = [getattr(signal, name) for name in _FAULTS if hasattr(signal, name)]
_CODES = {
    DAMAGED_FILE: "The model file is damaged, or a part of it was lost in conversion: take another "
    "file of the same model.",
    -4: "It met an instruction that this CPU does not have: another engine may work (see the setting "
    "engine).",
    -9: "It was killed from outside, which the system does where memory runs out. If that is why: "
    + LESS_MEMORY,
    -11: "It crashed: the file may be damaged, or the engine is broken on this machine: another one "
    "may work (see the setting engine).",
}


def died(name: str, code: int, lines: Sequence[str], advice: Advice) -> str:
    """It ended with this exit code, negative for a signal."""
    how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    output = "\n".join(lines).lower()
    if says_memory(output):
        step = "It needs more memory than there is. " + LESS_MEMORY
    else:
        by_words = (text for sign, text in advice.items() if isinstance(sign, str) and sign in output)
        step = next(by_words, (_CODES | dict(advice)).get(code, ""))
    return f"The engine for {name} {how}. {step}\n{quote(lines)}"


def cause(code: int, lines: Sequence[str], *, out_of_memory: bool) -> Cause:
    """Why a process ended with this exit code, negative for a signal. `out_of_memory` says that the system
    has killed a process for memory since it started."""
    if (code == -signal.SIGKILL and out_of_memory) or says_memory("\n".join(lines)):
        return "memory"
    if code == DAMAGED_FILE:
        return "file"
    if code >= 0:
        return "exit"
    return "crash" if -code in _FAULT_NUMBERS else "killed"


def says_memory(text: str) -> bool:
    """Whether an engine's words say that memory was short."""
    return any(sign in text.lower() for sign in _MEMORY_SIGNS)


def not_started(program: str, error: OSError | RuntimeError) -> str:
    """The system did not start the process, or a thread to watch it (RuntimeError)."""
    why = getattr(error, "strerror", None) or str(error)
    if isinstance(error, BlockingIOError) or "new thread" in why:
        why += ": too many processes run (see ulimit -u, and TasksMax of a systemd unit)"
    return f"The system could not start the engine {program}: {why}."


def quote(lines: Sequence[str]) -> str:
    """The last of its lines, for a message."""
    if not lines:
        return "It wrote nothing."
    return "\n".join(("Its last lines:", *(f"  | {line}" for line in lines[-_QUOTED_LINES:])))
