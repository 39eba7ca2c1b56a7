"""(pure) Build the llama-server command line and its flags: slots, batch size, GPU layers, flash attention.

The estimate of GPU memory is the sum of the weights, the KV cache of each slot's context, the buffers of one
micro-batch, and a fixed amount for the driver. The whole model goes to the GPU if it fits, with fewer slots
if necessary; else as many layers as fit; else none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rerankd.backends.base import EngineSpec
from rerankd.backends.safer_steps import Step
from rerankd.domain import Recipe
from rerankd.machine import CUDA_ORDER, Gpu
from rerankd.memory import card
from rerankd.process import failure_reasons

# llama-server uses an HTTP thread per running call: two calls of the queue, one of the self-test, TOKENIZING
# tokenize calls, and two for health polls.
TOKENIZING = 4
HTTP_THREADS = 3 + TOKENIZING + 2
# llama.cpp rounds a slot's context up to a multiple of this many tokens.
_CONTEXT_STEP = 256
# A causal LM can process its prompt in several micro-batches, so one need not hold the whole prompt.
_CAUSAL_LM_UBATCH = 512
_LEAST_UBATCH = 128
# CUDA graphs: with them, llama.cpp crashed on an H200 with F16 encoders; it updates a graph for each shape.
# Arenas: glibc gives each HTTP thread its own malloc arena. A tiny model's engine grew by a fifth over 4,000
# documents, and by 2 % with a single arena. The compute threads do not allocate.
ENVIRONMENT = {"GGML_CUDA_DISABLE_GRAPHS": "1", "MALLOC_ARENA_MAX": "1", **CUDA_ORDER}
_NEWER = "This llama-server does not support a flag that rerankd uses. Use a newer one."
ADVICE: failure_reasons.Advice = {
    failure_reasons.NO_PROGRAM: "Check LLAMA_PATH, or leave it unset to use the bundled llama.cpp.",
    -4: "It executed an instruction that this CPU does not support. Build one for this CPU: rerankd engine "
    "build.",
    "unknown model architecture": "This engine is too old for this model. Use a newer llama.cpp: rerankd "
    "engine build --source …",
    "error: argument": _NEWER,
    "invalid argument": _NEWER,
}
# More layers than any model has: it stands for all layers, including the output layer.
ALL_LAYERS = 999
_GPU_SLOTS = (4, 2, 1)
# The fastest flags for an F16 BERT-large on an H200, `-np 4 -ub 2048`: 453 pairs/s of 134 tokens. Its engine
# then had another version and other defaults; this version has not been measured on a GPU.
_GPU_UBATCH = 2048
# Memory of CUDA's context and cuBLAS's workspace on each GPU.
_PER_GPU_BYTES = 600 * 2**20
# A causal model's logits for a micro-batch of 512 and a vocabulary of 152,000 take 300 MiB.
_LOGITS_BYTES = 300 * 2**20
# Float32 values per token alive at once while a layer is computed, in multiples of the model's width. Most
# are the hidden values of the feed-forward network.
_WIDTHS_AT_WORK = 12
_HEAD_WIDTH = 64

CacheType = Literal["f16", "f32"]


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """The options of a child that the user and the machine determine.

    `gpus` are the GPUs that the program supports: () if none, None if unknown. `cards` names those it may use
    (see memory.card); () means all. With `gpu_layers` -1, `decide` chooses the number. `keeps_f32`: no
    attention, key or value is rounded to half precision, on a GPU either. `extra` are flags that override
    rerankd's, and `safer` the steps in use after crashes (see backends/safer_steps.py).
    """

    program: tuple[str, ...]
    threads: int
    gpus: tuple[Gpu, ...] | None = ()
    gpu_layers: int = -1
    keeps_f32: bool = False
    extra: tuple[str, ...] = ()
    safer: tuple[str, ...] = ()
    cards: tuple[str, ...] = ()

    @property
    def usable(self) -> tuple[Gpu, ...] | None:
        """The GPUs that the child may use."""
        if not self.gpus or not self.cards:
            return self.gpus
        return tuple(gpu for at, gpu in enumerate(self.gpus) if card(at) in self.cards)


@dataclass(frozen=True, slots=True)
class Decision:
    """The settings of a child: `slots` texts in parallel, `gpu_layers` (None: llama.cpp decides), batch and
    micro-batch size in tokens, flash attention "auto" or "off", and the type of the KV cache. `reason`
    explains the choice of CPU or GPU, for messages."""

    slots: int
    gpu_layers: int | None
    batch: int
    ubatch: int
    flash_attention: Literal["auto", "off"]
    cache_type: CacheType
    reason: str


def decide(spec: EngineSpec, options: EngineOptions) -> Decision:
    """Decide how `spec` runs with these options.

    Slots: with flash attention, an encoder gains a little from four slots (2.0 against 2.2 s of CPU time for
    16 texts of 100 words, built-in model). Without it, attention in each slot is also computed over the other
    slots' tokens, and four slots are slower (3.7 against 2.5 s). A causal LM on a CPU gains nothing, and each
    slot would compute the prompt prefix and hold its own KV cache.

    Flash attention rounds keys and values to F16, which changes raw scores by up to 0.006. That is negligible
    for quantised weights, but the largest error for others: these go without it on a CPU, and where rerankd
    can't see whether the program uses a GPU. On a GPU all models use it, and an F16 KV cache, unless the user
    asks for float32. There an earlier version scored 20 to 30 % more pairs per second with it (H200), within
    0.0009 log-odds of transformers for Qwen3 in F16.
    """
    is_causal_lm = spec.recipe.method == "causal_lm"
    placed, reason = _place(spec, options)
    keeps_f32 = _keeps_f32(spec, options, on_cpu=placed.layers == 0)
    decided = Decision(
        slots=placed.slots,
        gpu_layers=placed.layers,
        batch=max(placed.ubatch, 2048) if is_causal_lm else placed.ubatch,
        ubatch=placed.ubatch,
        flash_attention="off" if keeps_f32 else "auto",
        cache_type="f32" if keeps_f32 and is_causal_lm else "f16",
        reason=reason,
    )
    for step in options.safer:
        decided = _safer(decided, step, spec.shape.layers)
    return decided


def _keeps_f32(spec: EngineSpec, options: EngineOptions, *, on_cpu: bool) -> bool:
    """Whether attention, keys and values stay in float32."""
    return options.keeps_f32 or (spec.exact and (on_cpu or options.gpus is None))


def needs_extra_token(scoring: Recipe) -> bool:
    """Whether the context must hold one token more than the input. llama.cpp requires this for models that
    may process their input in several micro-batches."""
    return scoring.method == "causal_lm" or scoring.pooling == "last"


def _context(scoring: Recipe) -> int:
    """Return the context length of a slot, in tokens."""
    if not needs_extra_token(scoring):
        return scoring.max_length
    return -(-(scoring.max_length + 1) // _CONTEXT_STEP) * _CONTEXT_STEP


def _safer(decided: Decision, step: str, layers: int) -> Decision:
    if step == "flash_attention":
        return replace(decided, flash_attention="auto")
    if step == "slots":
        return replace(decided, slots=1)
    if step == "batches":
        ubatch = max(decided.ubatch // 4, _LEAST_UBATCH)
        return replace(decided, batch=ubatch, ubatch=ubatch)
    if step == "half_on_gpu":
        return replace(decided, gpu_layers=layers // 2, reason="it is safer after a crash")
    return replace(decided, gpu_layers=0, reason="it is safer after a crash") if step == "cpu" else decided


def steps(spec: EngineSpec, options: EngineOptions) -> tuple[Step, ...]:
    """List the safer settings that would change anything for `spec`, in order."""
    decided = decide(spec, replace(options, safer=()))
    found = []
    if decided.flash_attention == "off":
        found.append(Step("flash_attention", "llama.cpp's default for flash attention"))
    if decided.slots > 1:
        found.append(Step("slots", "one text at a time", saves_memory=True))
    if spec.recipe.method == "causal_lm" and decided.ubatch > _LEAST_UBATCH:
        found.append(Step("batches", "smaller batches", saves_memory=True))
    if decided.gpu_layers != 0 and options.gpus != () and spec.shape.layers:
        found.append(Step("half_on_gpu", "half of its layers on the GPU", saves_memory=True))
        found.append(Step("cpu", "no layers on the GPU", saves_memory=True))
    return tuple(found)


def argv(spec: EngineSpec, options: EngineOptions, socket: Path) -> Sequence[str]:
    """Build the child's command line. llama-server and the bundled program take the same flags."""
    scoring = spec.recipe
    decided = decide(spec, options)
    flags = {
        "--model": str(spec.path),
        "--host": str(socket),
        "--alias": spec.name,
        "--ctx-size": str(decided.slots * _context(scoring)),
        "--parallel": str(decided.slots),
        "--batch-size": str(decided.batch),
        "--ubatch-size": str(decided.ubatch),
        "--threads": str(options.threads),
        "--threads-http": str(HTTP_THREADS),
        # By default prompts of idle slots are cached in up to 8 GiB of memory; reranking never reuses them.
        "--cache-ram": "0",
        "--no-webui": "",
    }
    if decided.flash_attention == "off":
        flags["--flash-attn"] = "off"
    if decided.cache_type == "f32":
        flags |= {"--cache-type-k": "f32", "--cache-type-v": "f32"}
    if scoring.method != "causal_lm":
        flags |= {"--embedding": "", "--pooling": scoring.pooling}
    if decided.gpu_layers is not None:
        flags["--n-gpu-layers"] = str(decided.gpu_layers)
    if len(options.cards) == 1 and options.gpus is not None and len(options.gpus) > 1:
        only = next(at for at in range(len(options.gpus)) if card(at) in options.cards)
        flags |= {"--split-mode": "none", "--main-gpu": str(only)}
    # llama-server rejects duplicate flags.
    for word in options.extra:
        flags.pop(word.partition("=")[0], None)
    words = [word for flag, value in flags.items() for word in (flag, value) if word]
    return [*options.program, *words, *options.extra]


@dataclass(frozen=True, slots=True)
class _Placed:
    """The number of layers on the GPU (None: llama.cpp decides), of slots, and of tokens in a micro-batch."""

    layers: int | None
    slots: int
    ubatch: int


@dataclass(frozen=True, slots=True)
class _Need:
    """The estimate of GPU memory. Its methods return bytes."""

    spec: EngineSpec
    keeps_f32: bool

    def per_layer(self, slots: int) -> int:
        shape = self.spec.shape
        return shape.weights_bytes // (shape.layers + 1) + self._cache(slots)

    def at_work(self, ubatch: int) -> int:
        """The compute buffers of one micro-batch."""
        width, is_causal_lm = self.spec.shape.width, self.spec.recipe.method == "causal_lm"
        bytes_ = ubatch * width * 4 * _WIDTHS_AT_WORK
        if self.keeps_f32:  # without flash attention: the attention matrix of each head
            against = _context(self.spec.recipe) if is_causal_lm else ubatch
            bytes_ += max(width // _HEAD_WIDTH, 1) * ubatch * against * 4
        return bytes_ + (_LOGITS_BYTES if is_causal_lm else 0)

    def whole(self, slots: int, ubatch: int) -> int:
        shape = self.spec.shape
        return shape.weights_bytes + shape.layers * self._cache(slots) + self.at_work(ubatch)

    def _cache(self, slots: int) -> int:
        """The KV cache of one layer; an encoder has none."""
        if self.spec.recipe.method != "causal_lm":
            return 0
        a_number = 4 if self.keeps_f32 else 2
        return slots * _context(self.spec.recipe) * self.spec.shape.kv_width * a_number


def _place(spec: EngineSpec, options: EngineOptions) -> tuple[_Placed, str]:
    """Decide what runs where, and explain why."""
    # An encoder processes a text in one micro-batch, which must hold the longest text. It is not larger on a
    # CPU, because compute buffers grow with it.
    is_causal_lm, most = spec.recipe.method == "causal_lm", spec.recipe.max_length
    ubatch = min(_CAUSAL_LM_UBATCH, most) if is_causal_lm else most
    on_cpu = _Placed(0, 1 if is_causal_lm or spec.exact or options.keeps_f32 else 4, ubatch)
    keeps_f32 = _keeps_f32(spec, options, on_cpu=False)
    on_gpu = _on_gpu(is_causal_lm=is_causal_lm, keeps_f32=keeps_f32, ubatch=ubatch)
    asked, gpus = options.gpu_layers, options.usable
    if gpus == () or asked == 0:
        return on_cpu, "gpu_layers is 0" if asked == 0 else "this engine has no GPU"
    if gpus is None or not spec.shape.layers or not all(gpu.total_bytes for gpu in gpus):
        if asked > 0:
            return replace(on_gpu[0], layers=asked), f"gpu_layers is {asked}"
        return replace(on_gpu[0], layers=None), "llama.cpp decides how many layers go to the GPU"
    need = _Need(spec, keeps_f32)
    free = sum(max(gpu.free_bytes - _PER_GPU_BYTES, 0) for gpu in gpus)
    where = f"{gpus[0].name}" if len(gpus) == 1 else f"{len(gpus)} GPUs"
    fitting = [one for one in on_gpu if need.whole(one.slots, one.ubatch) <= free]
    if asked > 0:
        return replace(fitting[0] if fitting else on_gpu[-1], layers=asked), f"gpu_layers is {asked}"
    if fitting:
        return fitting[0], f"the whole model fits on {where}"
    least = on_gpu[-1]
    layers = max(0, free - need.at_work(least.ubatch)) // need.per_layer(least.slots)
    if layers <= 0:
        return on_cpu, f"no layer fits on {where}"
    return replace(least, layers=layers), f"{layers} of {spec.shape.layers} layers fit on {where}"


def _on_gpu(*, is_causal_lm: bool, keeps_f32: bool, ubatch: int) -> list[_Placed]:
    """How a whole model may run on a GPU, the fastest first. Each slot of a causal LM takes memory."""
    if is_causal_lm:
        return [_Placed(ALL_LAYERS, slots, ubatch) for slots in _GPU_SLOTS]
    if keeps_f32:
        return [_Placed(ALL_LAYERS, 1, ubatch)]
    slots = _GPU_SLOTS[0]
    return [_Placed(ALL_LAYERS, slots, size) for size in dict.fromkeys((max(ubatch, _GPU_UBATCH), ubatch))]
