"""(pure) A model and the settings -> the command line of the child."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rerankd.engine.base import EngineSpec

# Texts scored side by side. Measured on 2 cores with the built-in model, 32 documents of 100 words: 1, 4, 8
# and 16 slots take 2.09, 1.93, 2.14 and 2.90 s; memory grows with them.
SLOTS = 4
# llama-server keeps one of its HTTP threads for each call under way; a few more answer health and tokenize.
HTTP_THREADS = SLOTS + 6
# A judge reads its prompt in pieces, so a piece need not hold all of it.
_JUDGE_UBATCH = 512


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What the user or the machine decides about a child. `gpu_layers` -1 leaves it to llama.cpp."""

    program: tuple[str, ...]
    threads: int
    gpu_layers: int = -1


def argv(spec: EngineSpec, options: EngineOptions, socket: Path) -> Sequence[str]:
    """The child's command line; the same flags for llama-server and for the bundled program."""
    scoring = spec.scoring
    judge = scoring.way == "judge"
    # An encoder reads a text in one go: its (micro-)batch must hold the longest one, and no more, for compute
    # memory grows with it.
    ubatch = min(_JUDGE_UBATCH, scoring.window) if judge else scoring.window
    batch = max(ubatch, 2048) if judge else ubatch
    command = [
        *options.program,
        "--model", str(spec.path),
        "--host", str(socket),
        "--alias", spec.name,
        "--ctx-size", str(SLOTS * scoring.window),
        "--parallel", str(SLOTS),
        "--batch-size", str(batch),
        "--ubatch-size", str(ubatch),
        "--threads", str(options.threads),
        "--threads-http", str(HTTP_THREADS),
        # Prompts of idle slots would be kept in up to 8 GiB of memory, and rerank has no use for them.
        "--cache-ram", "0",
        "--no-webui",
    ]  # fmt: skip
    if not judge:
        command += ["--embedding", "--pooling", scoring.pooling]
    if options.gpu_layers >= 0:
        command += ["--n-gpu-layers", str(options.gpu_layers)]
    return command
