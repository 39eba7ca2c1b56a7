"""Settings of the llama.cpp backend: llama-server binary, extra flags (engine_args), GPU layers."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator

from rerankd.backends.options import PrecisionOptions, per_model, setting

# rerankd can't connect to its engine if a user changes one of these flags.
_RESERVED = ("--host", "--port", "--model", "-m", "--api-key", "--api-key-file", "--api-prefix")


def _split_words(value: object) -> object:
    return shlex.split(value) if isinstance(value, str) else value


def _allowed(words: tuple[str, ...]) -> tuple[str, ...]:
    taken = [word for word in words if word.partition("=")[0] in _RESERVED]
    if taken:
        raise ValueError(f"{taken[0]} is set by rerankd; remove it")
    return words


class LlamaOptions(PrecisionOptions):
    """Settings; the descriptions are below and in PrecisionOptions."""

    llama_path: Path | None = setting(
        None,
        environment="LLAMA_PATH",
        names_program=True,
        description="a llama-server binary to run instead of the bundled or built engines",
    )
    engine_args: Annotated[tuple[str, ...], BeforeValidator(_split_words), AfterValidator(_allowed)] = (
        setting(
            (),
            names_program=True,
            description="extra flags for llama.cpp; they override those that rerankd sets",
        )
    )
    gpu_layers: int = per_model(
        -1, ge=-1, le=10_000, on_cpu=0, description="number of layers on the GPU; -1: as many as fit"
    )
