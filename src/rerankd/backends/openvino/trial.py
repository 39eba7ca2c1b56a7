"""Tries bf16 on one model: `python -m rerankd.backends.openvino.trial --model FILE --scoring JSON …`.

First the speed, by a feed-forward block of the model's sizes: CPU time of one thread, in turns, so that other
work on the machine does not decide (the ratio stayed within 1.88 and 1.91 on two cores with six busy
processes, where wall time gave 0.5 to 7.5). Then, where bf16 is worth it, the accuracy: the model scores
some queries of the collection that comes with rerankd in both precisions.

The last line of the output is a JSON object: {"ratio", "gap"} as in precision.Trial, or {"error"}.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rerankd.backends.openvino import precision
from rerankd.backends.openvino.encoder import Encoder
from rerankd.backends.openvino.precision import Precision, Trial
from rerankd.backends.openvino.runtime import config, op, ov
from rerankd.backends.worker.scorer import Scorer
from rerankd.domain import Normalization
from rerankd.errors import ModelFileError
from rerankd.formats.tokenizer import Vocabulary, of_file, of_header
from rerankd.formats.weights import VOCABULARY, Weights
from rerankd.scoring.sequences import Ids, Input, Question

_TOKENS = 256
_ROUNDS = 7
_QUERIES = 4
_DOCUMENTS = 20
_EVERYDAY = Path(__file__).parents[2] / "evaluation" / "everyday"


def speed_ratio(width: int, hidden: int) -> float:
    """The CPU time that a feed-forward block of this size takes in f32 over that in bf16."""
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


def questions(queries: int, documents: int) -> list[tuple[str, list[str]]]:
    """Queries of the collection that comes with rerankd, spread over it, each with the documents that have
    the most pairs of letters in common with it."""
    texts = _texts("corpus.jsonl")
    pairs = [_letter_pairs(text) for text in texts]
    asked = _texts("queries.jsonl")
    found = []
    for query in asked[:: len(asked) // queries][:queries]:
        own = _letter_pairs(query)
        best = sorted(range(len(texts)), key=lambda at: (-len(own & pairs[at]), at))
        found.append((query, [texts[at] for at in best[:documents]]))
    return found


def _texts(name: str) -> list[str]:
    lines = (_EVERYDAY / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def _letter_pairs(text: str) -> set[str]:
    return {text[at : at + 2].lower() for at in range(len(text) - 1)}


def inputs(
    vocabulary: Vocabulary, scoring: dict[str, Any], query: str, documents: Sequence[str]
) -> list[Input]:
    """What the model reads of a query's documents, cut where it is too long."""
    if scoring["method"] == "cross_encoder":
        room = max(scoring["max_length"] - vocabulary.around_pair, 2)
        asked, *found = vocabulary.ids([query, *documents])
        asked = asked[: room // 2]
        pair = vocabulary.pair(asked, [])
        before = [*vocabulary.start, *asked, *vocabulary.between]
        question = Question(
            "",
            before=_ids(before),
            after=_ids(vocabulary.end),
            second=None if vocabulary.first_typed is None else pair.second,
        )
        room -= len(asked)
    else:
        room = scoring["max_length"] - vocabulary.around_text
        prefixes = [scoring["query_prefix"], *[scoring["document_prefix"]] * len(documents)]
        texts = [before + text for before, text in zip(prefixes, [query, *documents], strict=True)]
        asked, *found = vocabulary.ids(texts)
        question = Question(
            "",
            before=_ids(vocabulary.start),
            after=_ids(vocabulary.alone),
            ids=_ids(vocabulary.text(asked[:room]).ids),
        )
    return [Input(question, "", _ids(ids[:room]), 0) for ids in found]


def _ids(values: Sequence[int]) -> Ids:
    return np.array(values, np.int32)


def _vocabulary(path: Path) -> Vocabulary:
    weights = Weights(path, keep=VOCABULARY)
    file = weights.tokenizer
    return of_header(weights.values) if file is None else of_file(file, weights.rows("token_embd.weight"))


def tried(path: Path, scoring: dict[str, Any], threads: int, *, compressed: bool) -> Trial:
    """The trial of one model. Raises ModelFileError, and what OpenVINO raises."""
    weights = Weights(path)
    ratio = speed_ratio(weights.key("embedding_length"), weights.key("feed_forward_length"))
    if not precision.is_worth_it(ratio):
        return Trial(ratio, None)
    vocabulary = _vocabulary(path)
    asked = [
        inputs(vocabulary, scoring, query, documents) for query, documents in questions(_QUERIES, _DOCUMENTS)
    ]
    values: dict[Precision, list[list[float]]] = {}
    kinds: tuple[Precision, ...] = ("f32", "bf16")
    for kind in kinds:  # one after the other: both together may not fit into memory
        encoder = Encoder(path, scoring["pooling"], threads=threads, precision=kind, compressed=compressed)
        scorer = Scorer(encoder, scoring["max_length"], is_head=scoring["pooling"] == "rank")
        values[kind] = [scorer.score(of_query) for of_query in asked]
        del encoder, scorer
    normalization = Normalization(**scoring["normalization"])
    gaps = [
        precision.largest_swap(exact, rough, normalization)
        for exact, rough in zip(values["f32"], values["bf16"], strict=True)
    ]
    return Trial(ratio, max(gaps))


def main(arguments: list[str] | None = None) -> int:
    """Print what the trial gave. Returns 1 where it could not be made."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    flags = argparse.ArgumentParser(prog="rerankd.backends.openvino.trial", allow_abbrev=False)
    flags.add_argument("--model", required=True, type=Path)
    flags.add_argument("--scoring", required=True, type=json.loads, help="domain.Scoring as JSON")
    flags.add_argument("--threads", type=int, required=True)
    flags.add_argument("--weights", choices=["full", "compressed"], default="full")
    options = flags.parse_args(arguments)
    try:
        compressed = options.weights == "compressed"
        trial = tried(options.model, options.scoring, options.threads, compressed=compressed)
    except (ModelFileError, MemoryError, RuntimeError, ValueError) as error:  # RuntimeError: OpenVINO's own
        print(json.dumps({"error": str(error)[:500] or "out of memory"}), flush=True)
        return 1
    print(json.dumps({"ratio": trial.ratio, "gap": trial.gap}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
