"""Test bf16 with one model: `python -m rerankd.backends.openvino.trial --model FILE --scoring JSON …`.

The first test measures the speed of a feed-forward block of the model's sizes, in alternating runs. It
measures the CPU time of one thread, so other processes hardly matter: with six busy processes on two cores,
the ratio stayed between 1.88 and 1.91, while wall time gave 0.5 to 7.5. If bf16 is fast enough, the second
test checks the accuracy: the model scores some queries of rerankd's own collection in both precisions.

The last line of the output is a JSON object: {"ratio", "gap"} as in precision.Trial, or {"error"}.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rerankd import machine
from rerankd.backends.openvino import precision
from rerankd.backends.openvino.load import load
from rerankd.backends.openvino.precision import Precision, Trial
from rerankd.backends.openvino.runtime import config, op, ov
from rerankd.backends.worker.scorer import Scorer
from rerankd.domain import Recipe
from rerankd.errors import RerankdError
from rerankd.formats import model_files, tokenizer
from rerankd.formats.metadata import ModelMetadata
from rerankd.formats.tokenizer import Vocabulary
from rerankd.formats.weights import Weights
from rerankd.normalization import Normalization
from rerankd.scoring import blocks
from rerankd.scoring.engine_input import Ids, Input

_TOKENS = 256
_ROUNDS = 7


class _Texts(NamedTuple):
    """The texts of a trial: queries, documents for each, and the largest document in letters (None: any)."""

    queries: int
    documents: int
    letters: int | None = None


# A causal model has 2 to 20 times the weights of an encoder, so it gets fewer texts. 16 short documents of
# about the same length are 120 pairs, and few tensor shapes: each new one costs 0.5 s in f32 (Qwen3-0.6B).
_TEXTS = {False: _Texts(4, 20), True: _Texts(1, 16, 90)}
# Memory of a loaded model, in bytes per weight in its blocks (see backend.py).
_A_WEIGHT = 8
_EVERYDAY = Path(__file__).parents[2] / "evaluation" / "everyday"


def speed_ratio(width: int, hidden: int) -> float:
    """Return the CPU time of a feed-forward block of this size in f32, divided by that in bf16."""
    requests = [_block(width, hidden, kind) for kind in ("f32", "bf16")]
    taken: list[list[float]] = [[], []]
    for _ in range(_ROUNDS + 1):  # the first one warms up
        for request, times in zip(requests, taken, strict=True):
            started = time.process_time()
            request.infer()
            times.append(time.process_time() - started)
    f32, bf16 = (statistics.median(times[1:]) for times in taken)
    return f32 / bf16


def _block(width: int, hidden: int, kind: Precision) -> Any:
    random = np.random.default_rng(1)
    x = op.parameter([-1, width], np.float32)
    up = op.constant(random.normal(0, 0.02, (hidden, width)).astype(np.float32))
    down = op.constant(random.normal(0, 0.02, (width, hidden)).astype(np.float32))
    node = op.matmul(op.gelu(op.matmul(x, up, False, True), "erf"), down, False, True)
    model = ov.Core().compile_model(ov.Model([op.result(node)], [x]), "CPU", config(1, kind))
    request = model.create_infer_request()
    request.set_input_tensor(ov.Tensor(random.normal(0, 1, (_TOKENS, width)).astype(np.float32)))
    return request


def questions(queries: int, documents: int, letters: int | None = None) -> list[tuple[str, list[str]]]:
    """Select queries spread over rerankd's own collection, each with the documents that share the most pairs
    of letters with it, of those with up to `letters` letters."""
    texts = [text for text in _texts("corpus.jsonl") if letters is None or len(text) <= letters]
    pairs = [_letter_pairs(text) for text in texts]
    every = _texts("queries.jsonl")
    found = []
    for query in every[:: len(every) // queries][:queries]:
        own = _letter_pairs(query)
        best = sorted(range(len(texts)), key=lambda at: (-len(own & pairs[at]), at))
        found.append((query, [texts[at] for at in best[:documents]]))
    return found


def _texts(name: str) -> list[str]:
    lines = (_EVERYDAY / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def _letter_pairs(text: str) -> set[str]:
    return {text[at : at + 2].lower() for at in range(len(text) - 1)}


class _Tokenizer:
    """A tokenizer.Tokenizer for the vocabulary in a model's files."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.frame = vocabulary.frame
        self._vocabulary = vocabulary

    async def encode(self, texts: Sequence[str]) -> list[Ids]:
        return self._vocabulary.encode(texts)

    async def ends(self, texts: Sequence[str]) -> list[Ids]:
        return self._vocabulary.ends(texts)


def inputs(
    metadata: ModelMetadata, recipe: Recipe, asked: Sequence[tuple[str, list[str]]]
) -> list[list[Input]]:
    """Build the model's inputs for each query and its documents. Raises ModelFileError, and TooLong for a
    query."""
    special = {**metadata.control_tokens, **metadata.ids_of(recipe.markers)}
    reader = blocks.reader(recipe, _Tokenizer(tokenizer.read(metadata)), special)

    async def read() -> list[list[Input]]:
        return [await reader.plain(query, documents) for query, documents in asked]

    return asyncio.run(read())


def tried(path: Path, recipe: Recipe, threads: int, *, compressed: bool) -> Trial:
    """Run the trial of one model. Raises ModelFileError, and OpenVINO's errors."""
    weights = Weights(path)
    ratio = speed_ratio(weights.key("embedding_length"), weights.key("feed_forward_length"))
    if not precision.is_worth_it(ratio):
        return Trial(ratio, None)
    metadata = model_files.read(path)
    batches = inputs(metadata, recipe, questions(*_TEXTS[metadata.is_causal]))
    labels = metadata.token_ids(recipe.labels) if recipe.method == "causal_lm" else None

    def loaded(kind: Precision) -> Scorer:
        return load(
            path,
            recipe.pooling,
            labels,
            recipe.max_length,
            threads=threads,
            precision=kind,
            compressed=compressed,
            reads_blocks=recipe.method == "listwise",
        )

    values: dict[Precision, list[list[float]]] = {}
    kinds: tuple[Precision, ...] = ("f32", "bf16")
    # Compiling occupies one core for the most part, so both are compiled at the same time if they fit.
    fits = (machine.available_bytes() or 0) > len(kinds) * _A_WEIGHT * metadata.block_weights
    with ThreadPoolExecutor(len(kinds) if fits else 1) as pool:
        waiting = [pool.submit(loaded, kind) for kind in kinds] if fits else []
        for kind in kinds:
            scorer = waiting.pop(0).result() if fits else loaded(kind)
            values[kind] = [scorer.score(batch) for batch in batches]
            del scorer
    gaps = [
        precision.largest_swap(exact, rough, recipe.normalization)
        for exact, rough in zip(values["f32"], values["bf16"], strict=True)
    ]
    return Trial(ratio, max(gaps))


def _recipe(said: str) -> Recipe:
    values = json.loads(said)
    return Recipe(**values | {"normalization": Normalization(**values["normalization"])})


def main(arguments: list[str] | None = None) -> int:
    """Print the trial's result. Returns 1 if it failed."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    flags = argparse.ArgumentParser(prog="rerankd.backends.openvino.trial", allow_abbrev=False)
    flags.add_argument("--model", required=True, type=Path)
    flags.add_argument("--scoring", required=True, type=_recipe, help="domain.Recipe as JSON")
    flags.add_argument("--threads", type=int, required=True)
    flags.add_argument("--weights", choices=["full", "compressed"], default="full")
    options = flags.parse_args(arguments)
    try:
        compressed = options.weights == "compressed"
        trial = tried(options.model, options.scoring, options.threads, compressed=compressed)
    except (RerankdError, MemoryError, RuntimeError, ValueError) as error:  # RuntimeError: OpenVINO's own
        print(json.dumps({"error": str(error)[:500] or "out of memory"}), flush=True)
        return 1
    print(json.dumps({"ratio": trial.ratio, "gap": trial.gap}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
