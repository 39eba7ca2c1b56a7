"""(pure) Whether OpenVINO's worker runs a model, or llama.cpp, and why.

It runs encoders, as far as it knows their architecture and tokenizer, where no GPU does the work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from rerankd.backends.llama.binaries import Choice
from rerankd.domain import Format, Recipe
from rerankd.errors import ConfigError, EngineTooOld, EngineUnknown

Wanted = str

# Architecture -> the tokenizers that the worker knows for it: (tokenizer.ggml.model, .pre); None: any.
_TOKENIZERS: Mapping[str, Sequence[tuple[str, str | None]]] = {
    "bert": (("t5", None), ("bert", None)),
    "modern-bert": (("gpt2", "modern-bert"),),
}
_POOLINGS = ("rank", "mean", "cls")


@dataclass(frozen=True, slots=True)
class Candidate:
    """What has to be known of a model and its surroundings.

    `tokenizer` is a GGUF file's model and pre-tokenizer, `parts` the number of its files, `activation` what
    its header says of ModernBERT's ("" for GELU). `has_charsmap` says
    that it has a normalisation map, `named` that the user has chosen a llama.cpp or flags for it, `has_wheel`
    that OpenVINO and its tokenizers are installed.
    """

    scoring: Recipe
    architecture: str
    tokenizer: tuple[str, str]
    format: Format = "gguf"
    parts: int = 1
    activation: str = ""
    has_charsmap: bool = True
    named: bool = False
    has_wheel: bool = True


def choose(wanted: Wanted, model: Candidate, worker: Choice, llama: Callable[[], Choice]) -> Choice:
    """The engine for a model: `worker`, or what `llama` chooses, with the reason.

    Raises ConfigError where OpenVINO is wanted and can't run it, and what `llama` raises.
    """
    why = obstacle(model)
    if model.format == "safetensors":
        if why or wanted == "llama":
            why = why or "llama.cpp reads GGUF files only"
            raise ConfigError(f"A model in safetensors runs on OpenVINO, and that can't be: {why}.")
        return replace(worker, reason="llama.cpp does not read safetensors")
    if wanted == "openvino":
        if why:
            raise ConfigError(f"engine = openvino can't be: {why}. Leave it at auto, or take llama.")
        return replace(worker, reason="it is set as engine")
    if wanted == "llama" or model.named:
        return llama()
    if why:
        return _instead(llama(), why)
    try:
        other = llama()
    except (EngineTooOld, EngineUnknown):
        return worker
    return worker if other.on_cpu else _instead(other, "a GPU does the work")


def other(
    wanted: Wanted, model: Candidate, chosen: Choice, worker: Choice, llama: Callable[[], Choice]
) -> Choice | None:
    """The engine to fall back to where `chosen` crashes: the other one that can run the same file. None where
    there is none, or the user has named what runs the model."""
    if wanted != "auto" or model.named or model.format != "gguf":
        return None
    if chosen.kind == "openvino":
        try:
            return replace(llama(), reason="OpenVINO can't run it here")
        except (EngineTooOld, EngineUnknown):
            return None
    return None if obstacle(model) else replace(worker, reason="llama.cpp can't run it here")


def obstacle(model: Candidate) -> str:
    """Why OpenVINO can't run the model; "" where it can."""
    scoring = model.scoring
    if scoring.method == "causal_lm":
        return "a causal model needs llama.cpp"
    known = _TOKENIZERS.get(model.architecture)
    if known is None:
        return f"OpenVINO's worker does not know the architecture {model.architecture}"
    kind, pre = model.tokenizer
    is_gguf = model.format == "gguf"
    if is_gguf and not any(kind == one and other in (None, pre) for one, other in known):
        return f"OpenVINO's worker does not know the tokenizer {kind} {pre}".rstrip()
    if is_gguf and kind == "t5" and not model.has_charsmap:
        return "the file lacks the normalisation map of its tokenizer"
    if scoring.pooling not in _POOLINGS:
        return f"OpenVINO's worker does not know the pooling {scoring.pooling}"
    if scoring.method == "cross_encoder" and scoring.template:
        return "its pairs are made by a template"
    if model.activation not in ("", "gelu"):
        return f"OpenVINO's worker does not know the activation {model.activation}"
    if is_gguf and model.parts > 1:
        return "its file is split"
    if not model.has_wheel:
        return "OpenVINO is not installed (pip install 'rerankd[openvino]')"
    return ""


def _instead(llama: Choice, why: str) -> Choice:
    return replace(llama, reason=f"{why}; {llama.reason}")
