"""The settings that only llama.cpp has."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator

from rerankd.backends.options import Options, per_model, setting

# Without these as they are, rerankd can't reach its engine.
_NOT_YOURS = ("--host", "--port", "--model", "-m", "--api-key", "--api-key-file", "--api-prefix")


def _split_words(value: object) -> object:
    return shlex.split(value) if isinstance(value, str) else value


def _allowed(words: tuple[str, ...]) -> tuple[str, ...]:
    taken = [word for word in words if word.partition("=")[0] in _NOT_YOURS]
    if taken:
        raise ValueError(f"rerankd itself sets {taken[0]}")
    return words


class LlamaOptions(Options):
    """See the settings of these names."""

    llama_path: Path | None = setting(
        None,
        environment="LLAMA_PATH",
        names_program=True,
        description="a llama-server binary to run instead of the engines that rerankd knows",
    )
    engine_args: Annotated[tuple[str, ...], BeforeValidator(_split_words), AfterValidator(_allowed)] = (
        setting(
            (),
            names_program=True,
            description="more flags for llama.cpp; they replace those that rerankd chooses",
        )
    )
    gpu_layers: int = per_model(
        -1, ge=-1, le=10_000, description="layers to put on the GPU; -1 for as many as fit there"
    )
