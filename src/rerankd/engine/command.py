"""(pure) A model and the settings -> the command line of the child."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rerankd.engine.base import EngineSpec

# llama-server keeps one of its HTTP threads for each call under way; so many calls may compute, as many
# tokenise, and two more threads answer health.
CALLS = 4
HTTP_THREADS = 2 * CALLS + 2
# A judge reads its prompt in pieces, so a piece need not hold all of it.
_JUDGE_UBATCH = 512


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What the user or the machine decides about a child. `gpu_layers` -1 leaves it to llama.cpp; `on_cpu`
    says that nothing of it runs on a GPU."""

    program: tuple[str, ...]
    threads: int
    gpu_layers: int = -1
    on_cpu: bool = True


def slots(spec: EngineSpec, options: EngineOptions) -> int:
    """How many texts the engine works on side by side.

    An encoder with flash attention gains a little from four (2.0 against 2.2 s of CPU time for 16 texts of
    100 words, built-in model); without it each slot pays for the others' tokens too (3.7 against 2.5 s). A
    judge on a CPU gains nothing, and each slot would compute the prompt's prefix and keep a KV cache of its
    own.
    """
    if spec.scoring.way == "judge":
        return 1 if options.on_cpu else 4
    return 1 if spec.exact else 4


def argv(spec: EngineSpec, options: EngineOptions, socket: Path) -> Sequence[str]:
    """The child's command line; the same flags for llama-server and for the bundled program."""
    scoring = spec.scoring
    judge = scoring.way == "judge"
    # An encoder reads a text in one go: its (micro-)batch must hold the longest one, and no more, for compute
    # memory grows with it.
    ubatch = min(_JUDGE_UBATCH, scoring.window) if judge else scoring.window
    batch = max(ubatch, 2048) if judge else ubatch
    count = slots(spec, options)
    command = [
        *options.program,
        "--model", str(spec.path),
        "--host", str(socket),
        "--alias", spec.name,
        "--ctx-size", str(count * scoring.window),
        "--parallel", str(count),
        "--batch-size", str(batch),
        "--ubatch-size", str(ubatch),
        "--threads", str(options.threads),
        "--threads-http", str(HTTP_THREADS),
        # Prompts of idle slots would be kept in up to 8 GiB of memory, and rerank has no use for them.
        "--cache-ram", "0",
        "--no-webui",
    ]  # fmt: skip
    if spec.exact:
        # Flash attention rounds keys and values to F16, which moves raw values by up to 0.006. Where the
        # weights are quantised that is nothing; where they are not, it is most of the error.
        command += ["--flash-attn", "off"]
        if judge:
            command += ["--cache-type-k", "f32", "--cache-type-v", "f32"]
    if not judge:
        command += ["--embedding", "--pooling", scoring.pooling]
    if options.gpu_layers >= 0:
        command += ["--n-gpu-layers", str(options.gpu_layers)]
    return command
