"""(pure) What is said of an engine that went: the cause, its last lines, and the next step.

`name` is the model file's name, `lines` what the engine wrote, the last line last.
"""

from __future__ import annotations

from collections.abc import Sequence

from rerankd.errors import EngineStartFailed, EngineUnavailable, RerankdError

_QUOTED_LINES = 12
_GAVE_UP = (
    "It is not started again by itself: mend the cause, then send rerankd SIGHUP or "
    "POST /v1/models/NAME/reload."
)
# Nothing changes until somebody does something.
_RETRY_FAILED_S = 60
_LESS_MEMORY = "Take a smaller quantisation or lower scoring.window."
_NEWER = "This llama-server does not know a flag that rerankd uses: take a newer one."
_SIGNS = (
    (
        "unknown model architecture",
        "This engine is too old for this model: take a newer llama.cpp (rerankd engine build --source …).",
    ),
    ("failed to allocate", "It needs more memory than there is. " + _LESS_MEMORY),
    ("out of memory", "It needs more memory than there is. " + _LESS_MEMORY),
    ("bad_alloc", "It needs more memory than there is. " + _LESS_MEMORY),
    ("memory allocation of", "It needs more memory than there is. " + _LESS_MEMORY),
    ("error: argument", _NEWER),
    ("invalid argument", _NEWER),
)
_SIGNALS = {
    -4: "It met an instruction that this CPU does not have: rerankd engine build makes one for it, which "
    "engine = llama takes.",
    -9: "It was killed, most likely because memory ran out. " + _LESS_MEMORY,
    -11: "It crashed: the file may be damaged, or the engine is broken on this machine: another one "
    "may work (engine = llama or openvino).",
}


def died(name: str, code: int, lines: Sequence[str]) -> str:
    """It ended with this exit code, negative for a signal."""
    how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    output = "\n".join(lines).lower()
    advice = next((text for sign, text in _SIGNS if sign in output), _SIGNALS.get(code, ""))
    return f"The engine for {name} {how}. {advice}\n{_quote(lines)}"


def silent(name: str, misses: int, lines: Sequence[str]) -> str:
    """It did not answer so many health polls."""
    return (
        f"The engine for {name} did not answer {misses} health polls in a row and was replaced; try again."
        f"\n{_quote(lines)}"
    )


def stuck(name: str, margin_s: float, lines: Sequence[str]) -> str:
    """It answers health polls and does nothing else."""
    return (
        f"The engine for {name} did no work for {margin_s:g} s after a request's deadline and was replaced; "
        f"try again.\n{_quote(lines)}"
    )


def not_loaded(name: str, timeout_s: float, lines: Sequence[str]) -> str:
    """It was not ready in time."""
    return (
        f"The engine did not load {name} within {timeout_s:g} s. Raise start_timeout_s if the disk is slow."
        f"\n{_quote(lines)}"
    )


def too_large(name: str, held_bytes: int, most_bytes: int) -> str:
    """It holds more memory than it may as soon as it has loaded."""
    return (
        f"The engine for {name} holds {held_bytes / 2**20:.0f} MiB when it has just loaded, more than "
        f"max_engine_memory allows ({most_bytes / 2**20:.0f} MiB). Raise it, or: {_LESS_MEMORY}"
    )


def final(error: RerankdError) -> RerankdError:
    """The error of an engine that is not started again by itself: what happened, and what to do."""
    if isinstance(error, EngineUnavailable):
        return EngineStartFailed(f"{error.message}\n{_GAVE_UP}", retry_after_s=_RETRY_FAILED_S)
    return error


def _quote(lines: Sequence[str]) -> str:
    if not lines:
        return "It wrote nothing."
    return "\n".join(("Its last lines:", *(f"  | {line}" for line in lines[-_QUOTED_LINES:])))
