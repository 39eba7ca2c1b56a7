"""(pure) Explain why an engine crashed or exited: the cause, its last lines of output, and the next step.

`name` is the name of the model file, `lines` the engine's output in order. A backend adds its own
explanations as `Advice`.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from typing import Literal

_QUOTED_LINES = 12
LESS_MEMORY = "use a smaller quantisation or lower scoring.max_length."
Cause = Literal[
    "crash", "exit", "file", "hang", "memory", "killed", "errors", "useless", "start", "requested"
]
"""Why an engine stopped: `crash`, a signal raised by a fault in the program; `exit`, an exit code; `file`, a
damaged model file (see DAMAGED_FILE); `hang`, no progress; `memory`, out of memory; `killed`, a signal from
another process; `errors`, repeated errors instead of scores; `useless`, also for a known pair; `start`, a
failed start; `requested`, a planned stop or replacement."""

DAMAGED_FILE = 65
"""The exit code (EX_DATAERR of sysexits.h) of rerankd's own workers for a damaged or incomplete model file.
No other engine is tried then: it might compute wrong scores from the file without an error."""

Advice = Mapping[str | int, str]
"""The next step by a phrase in the engine's output (lower case), or by its exit code: negative for a signal,
NO_PROGRAM if the program could not be run."""
NO_PROGRAM = 127

# Signals raised by a fault in the program itself. Any other signal comes from another process.
_FAULTS = ("SIGILL", "SIGTRAP", "SIGABRT", "SIGBUS", "SIGFPE", "SIGSEGV", "SIGSYS")
# Out-of-memory messages of engines, CUDA, C++, Rust, numpy, Python and the system.
_MEMORY_SIGNS = (
    "failed to allocate", "out of memory", "bad_alloc", "memory allocation of", "unable to allocate",
    "memoryerror", "cannot allocate memory", "not enough memory",
)  # fmt: skip
_FAULT_NUMBERS = [getattr(signal, name) for name in _FAULTS if hasattr(signal, name)]
_CODES = {
    DAMAGED_FILE: "The model file is damaged, or a part of it was lost in conversion. Use another file "
    "of the same model.",
    -4: "It executed an instruction that this CPU does not support. Another engine may work (see the "
    "setting engine).",
    -9: "Another process killed it. The system does so when memory runs out. If that is the cause, "
    + LESS_MEMORY,
    -11: "It crashed. Either the file is damaged, or the engine is broken on this machine. Another engine "
    "may work (see the setting engine).",
}


def died(name: str, code: int, lines: Sequence[str], advice: Advice) -> str:
    """Return the message for an exit code, negative for a signal."""
    how = f"was terminated by signal {-code}" if code < 0 else f"exited with code {code}"
    output = "\n".join(lines).lower()
    if says_memory(output):
        step = "It ran out of memory. To avoid this, " + LESS_MEMORY
    else:
        by_words = (text for sign, text in advice.items() if isinstance(sign, str) and sign in output)
        step = next(by_words, (_CODES | dict(advice)).get(code, ""))
    return f"The engine for {name} {how}. {step}".rstrip() + f"\n{quote(lines)}"


def cause(code: int, lines: Sequence[str], *, out_of_memory: bool) -> Cause:
    """Return the cause of an exit code, negative for a signal. `out_of_memory`: the system has killed a
    process for lack of memory since this one started."""
    if (code == -signal.SIGKILL and out_of_memory) or says_memory("\n".join(lines)):
        return "memory"
    if code == DAMAGED_FILE:
        return "file"
    if code >= 0:
        return "exit"
    return "crash" if -code in _FAULT_NUMBERS else "killed"


def says_memory(text: str) -> bool:
    """Whether an engine's output reports that it ran out of memory."""
    return any(sign in text.lower() for sign in _MEMORY_SIGNS)


def not_started(program: str, error: OSError | RuntimeError) -> str:
    """Return the message for a process that the system could not start, or not watch (RuntimeError)."""
    why = getattr(error, "strerror", None) or str(error)
    if isinstance(error, BlockingIOError) or "new thread" in why:
        why += ": too many processes (see ulimit -u, and TasksMax of a systemd unit)"
    return f"The system could not start the engine {program}: {why}."


def quote(lines: Sequence[str]) -> str:
    """Quote the engine's last lines for a message."""
    if not lines:
        return "It wrote no output."
    return "\n".join(("Its last lines:", *(f"  | {line}" for line in lines[-_QUOTED_LINES:])))
