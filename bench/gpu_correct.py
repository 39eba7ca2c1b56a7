"""Scores of the service against those of transformers in float32 (a part of bench/gpu.py).

Both read the same checkpoint in bf16 and the same token ids. What transformers in bf16 deviates from its
float32 is the measure of what the precision costs; the service's deviation is divided by it.
"""

from __future__ import annotations

import contextlib
import random
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from gpu_bench import Bench
from gpu_models import FAMILIES, SHAPES, Shape
from gpu_service import Failed, Service, Start, ready, starting, wait
from gpu_texts import Reader
from numpy.typing import NDArray

from rerankd.benchmark import load

QUERIES, DOCUMENTS, WORDS = 4, 16, (5, 250)
_READY_S, _COMPILE_S = 60.0, 60.0
TINY_WORDS = (5, 30)  # single bytes as tokens must fit, too
_REAL = ("bert-large", "Qwen3-Reranker-0.6B")
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Question:
    query: str
    documents: tuple[str, ...]


def run(bench: Bench, until: float) -> None:
    """All services start at once."""
    started: dict[str, tuple[Shape, Reader, Start]] = {}
    known_by_size = ("mxbai-rerank-base-v2",) if bench.is_tiny else ()
    with contextlib.ExitStack() as stack:
        for name in (*FAMILIES, *_REAL):
            if name in known_by_size:
                continue
            with bench.guarded("correct", name, until):
                shape = bench.sized(FAMILIES.get(name) or SHAPES[name])
                reader = Reader.of(bench.make(shape), bench.home)
                flags = ("--engine", bench.options.engine)
                start = stack.enter_context(starting([reader.folder], bench.home, *flags))
                started[name] = shape, reader, start
        wait([start for *_, start in started.values()], _READY_S)
        some = questions(bench.is_tiny)
        for name, (shape, reader, start) in started.items():
            with bench.guarded("correct", name, until):
                service = ready(start)
                row = {"model": name, "compiled": "; ".join(service.compiled(_COMPILE_S))}
                bench.add("correct", row | compared(bench, shape, reader, some, service))
        for *_, start in started.values():
            start.process.terminate()  # all at once


def questions(is_few: bool) -> list[Question]:
    pick, words = random.Random(3), TINY_WORDS if is_few else WORDS
    return [
        Question(
            load.text(pick, load.QUERY_WORDS),
            tuple(load.text(pick, pick.randint(*words)) for _ in range(4 if is_few else DOCUMENTS)),
        )
        for _ in range(2 if is_few else QUERIES)
    ]


def compared(
    bench: Bench, shape: Shape, reader: Reader, some: list[Question], service: Service
) -> dict[str, Any]:
    """How far the service and transformers' bf16 are from transformers' float32."""
    served, seconds = _served(service, shape.name, some)
    ids = [reader.read(one.query, text) for one in some for text in one.documents]
    network = getattr(transformers, shape.of).from_pretrained(reader.folder, dtype=torch.bfloat16)
    network = network.to(bench.device).eval()
    half = _computed(network, reader, ids)
    exact = _computed(network.float(), reader, ids)  # the same weights, and sines in float32 for both
    del network
    bench.release()
    ours, theirs = np.abs(served - exact), np.abs(half - exact)
    return {
        "pairs": len(exact),
        "spread": round(float(exact.std()), 4),
        "mean": round(float(ours.mean()), 6),
        "max": round(float(ours.max()), 6),
        "reference_mean": round(float(theirs.mean()), 6),
        "reference_max": round(float(theirs.max()), 6),
        "mean_ratio": round(float(ours.mean() / theirs.mean()), 3),
        "max_ratio": round(float(ours.max() / theirs.max()), 3),
        "took_s": round(seconds, 2),
    }


def _served(service: Service, model: str, some: list[Question]) -> tuple[Floats, float]:
    """The raw scores that the service answers, in the order of the documents, and the time they took."""
    started, found = time.perf_counter(), []
    for one in some:
        fields = {"model": model, "query": one.query, "documents": one.documents, "raw_scores": True}
        results = sorted(service.post(fields)["results"], key=lambda row: row["index"])
        if len(results) != len(one.documents):
            raise Failed(f"{len(results)} of {len(one.documents)} documents were answered")
        found += [row["relevance_score"] for row in results]
    return np.array(found), time.perf_counter() - started


@torch.inference_mode()
def _computed(network: Any, reader: Reader, pairs: list[dict[str, list[int]]]) -> Floats:
    """The scores of transformers, each pair alone, so that nothing is padded."""
    found = []
    for pair in pairs:
        inputs = {name: torch.tensor([ids], device=network.device) for name, ids in pair.items()}
        more = {"logits_to_keep": 1} if reader.is_causal else {}
        logits = network(**inputs, **more).logits[0].double()
        if reader.is_causal:
            relevant, other = reader.labels
            found.append(float(logits[-1, relevant] - logits[-1, other]))
        else:
            found.append(float(logits[0]))
    return np.array(found)
