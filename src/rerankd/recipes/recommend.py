"""(pure) Recommend models of the catalog for a machine: by memory, GPU, CPU cores, languages, licence and
published quality.

The quality is `ndcg10` of the catalog, which one publication states for several models. A model without it is
not recommended: nothing says how it compares with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rerankd.recipes.catalog import Entry

QUALITY_SOURCE = "the mean nDCG@10 over English retrieval collections, published with ettin-reranker"
Device = Literal["GPU", "CPU"]
# Licences that permit commercial use without further conditions.
_PERMISSIVE = ("MIT", "Apache-2.0")
_MANY = "multi"
# Bytes of a weight, by quantisation. Q8_0 stores 32 weights in 34 bytes.
_WEIGHT_BYTES = {"F32": 4.0, "F16": 2.0, "BF16": 2.0, "Q8_0": 34 / 32}
# The largest model that is fast enough on a CPU. With this number of weights per core, it scores about five
# documents of 60 words per second: BERT-large's shape, 335 million weights, scores 1.5 on two cores
# (docs/performance.md).
_WEIGHTS_PER_CORE = 40e6
# What an engine needs, from the size of the file: weights, buffers, and the KV cache of a causal model (8,192
# tokens of Qwen3-4B: 1.2 GB) or a second copy of an encoder's matrices. A rule of thumb.
_FACTOR, _FIXED_BYTES = 1.5, 500e6
# The part of the memory that a model may use. The rest is for the system and other programs.
_SHARE = 0.85


@dataclass(frozen=True, slots=True)
class Wish:
    """The machine and the user's conditions.

    `memory_bytes`: the main memory, None if unknown; `gpu_bytes`: the memory of the largest GPU that engines
    can use, 0 for none; `language`: a code such as "zh", "" for many languages; `commercial`: only licences
    that permit commercial use.
    """

    memory_bytes: int | None
    cores: int
    gpu_bytes: int = 0
    language: str = ""
    commercial: bool = False


@dataclass(frozen=True, slots=True)
class Pick:
    """A recommended model, what it is best for, the device that runs it, and why it is recommended, as one
    sentence."""

    entry: Entry
    best_for: str
    device: Device
    why: str


def recommend(entries: Sequence[Entry], wish: Wish) -> tuple[Pick, ...]:
    """The recommended models, the best one first; () if none fits.

    The first has the best published quality of those that are fast enough on this machine (best for
    "quality"). Then follow the smallest one ("speed"), and, if no language is given, a better one for English
    ("English"). If none of many languages fits, the one for English is the only one.
    """
    fitting = _fitting(entries, wish)
    if not fitting:
        return () if wish.language else _if_english(entries, wish, "The best one")
    fast = [pick for pick in fitting if _is_fast(pick, wish)]
    smallest = min(fitting, key=lambda pick: _weights(pick.entry))
    best = max(fast, key=lambda pick: pick.entry.ndcg10, default=smallest)
    picks = [replace(best, best_for="quality", why=_why_best(best, fast, wish))]
    if smallest.entry is not best.entry:
        picks.append(replace(smallest, best_for="speed", why=_why_smallest(smallest, best)))
    if not wish.language:
        english = _if_english(entries, wish, f"Better than {_name(best)}")
        picks += [pick for pick in english if pick.entry.ndcg10 > best.entry.ndcg10]
    return tuple(picks)


def _if_english(entries: Sequence[Entry], wish: Wish, what: str) -> tuple[Pick, ...]:
    """The best model for English texts."""
    picks = recommend(entries, replace(wish, language="en"))[:1]
    return tuple(
        replace(pick, best_for="English", why=f"{what} if all texts are English: {_quality(pick)}.")
        for pick in picks
    )


def _fitting(entries: Sequence[Entry], wish: Wish) -> list[Pick]:
    """The models with a published quality that meet the conditions and fit into memory."""
    return [
        Pick(entry, "", device, "")
        for entry in entries
        if entry.ndcg10 and entry.refs and entry.size_mb and entry.quant in _WEIGHT_BYTES
        if wish.language in entry.languages or _MANY in entry.languages
        if entry.licence in _PERMISSIVE or not wish.commercial
        if (device := device_of(entry, wish)) is not None
    ]


def device_of(entry: Entry, wish: Wish) -> Device | None:
    """The device whose memory the model fits into, if its size is known: None if it fits into none. Models in
    safetensors run on a CPU."""
    needed = entry.size_mb * 1e6 * _FACTOR + _FIXED_BYTES
    if "gguf" in entry.refs[0].lower() and needed <= wish.gpu_bytes * _SHARE:
        return "GPU"
    return "CPU" if wish.memory_bytes is None or needed <= wish.memory_bytes * _SHARE else None


def _is_fast(pick: Pick, wish: Wish) -> bool:
    return pick.device == "GPU" or _weights(pick.entry) <= _WEIGHTS_PER_CORE * wish.cores


def _weights(entry: Entry) -> float:
    """The number of weights, from the size of the file."""
    return entry.size_mb * 1e6 / _WEIGHT_BYTES[entry.quant]


def _why_best(best: Pick, fast: Sequence[Pick], wish: Wish) -> str:
    if not fast:
        cores = f"{wish.cores} CPU cores" if wish.cores > 1 else "one CPU core"
        return f"The smallest model that suits: {_quality(best)}. It is slow on {cores}; a GPU would help."
    if len(fast) == 1:
        return f"The only model with a published quality that suits this machine: {_quality(best)}."
    return f"The best published quality of the {len(fast)} models that suit this machine: {_quality(best)}."


def _why_smallest(smallest: Pick, best: Pick) -> str:
    times = _weights(best.entry) / _weights(smallest.entry)
    if times >= 2:
        return f"{times:.0f} times smaller than {_name(best)}, and faster: {_quality(smallest)}."
    return f"Faster than {_name(best)}, which reads a long prompt with each document: {_quality(smallest)}."


def _quality(pick: Pick) -> str:
    return f"nDCG@10 {pick.entry.ndcg10:.3f}"


def _name(pick: Pick) -> str:
    return pick.entry.name.lower()
