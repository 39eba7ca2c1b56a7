"""Compares the golden values of tests/golden with llama.cpp's raw scores for the same files.

Prints for each model the largest and the mean difference of the raw scores, and the texts that llama.cpp
tokenizes differently from the reference, with the effect on their scores. Requires only xllamacpp and httpx.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import xllamacpp

Case = dict
F32 = 0  # GGML_TYPE_F32
POOLING = {"head": 4, "cosine": 1}  # LLAMA_POOLING_TYPE_RANK, _MEAN


@contextlib.contextmanager
def engine(model: Path, method: str, max_length: int, flash: bool, f32_cache: bool) -> Iterator[httpx.Client]:
    """Run llama.cpp's server with this model, and yield a client of it."""
    folder = Path(tempfile.mkdtemp(prefix="g-"))
    p = xllamacpp.CommonParams()
    p.model.path = str(model)
    p.hostnames = [str(folder / "s.sock")]
    p.n_ctx = p.n_batch = p.n_ubatch = max_length
    p.n_parallel = 1
    p.cache_ram_mib = 0
    p.warmup = False
    p.verbosity = -1
    p.cpuparams.n_threads = 2
    if method in POOLING:
        p.embedding = True
        p.pooling_type = xllamacpp.llama_pooling_type(POOLING[method])
    if not flash:
        p.flash_attn_type = xllamacpp.llama_flash_attn_type(0)
    if f32_cache:
        p.cache_type_k = p.cache_type_v = xllamacpp.ggml_type(F32)
    server = xllamacpp.Server(p)
    transport = httpx.HTTPTransport(uds=p.hostnames[0])
    with httpx.Client(transport=transport, base_url="http://engine", timeout=60) as client:
        yield client
    del server
    shutil.rmtree(folder)


def post(client: httpx.Client, path: str, body: dict) -> dict:
    answer = client.post(path, json=body)
    if answer.status_code != 200:
        raise RuntimeError(f"{path}: {answer.status_code} {answer.text[:300]}")
    return answer.json()


def tokenize(client: httpx.Client, text: str, special: bool = False) -> list[int]:
    body = {"content": text, "add_special": False, "parse_special": special}
    return post(client, "/tokenize", body)["tokens"]


def engine_ids(client: httpx.Client, golden: dict, case: Case, pair: dict) -> list:
    """Return llama.cpp's token ids for the texts whose reference ids are case["ids"]."""
    query, document = pair["query"], pair["document"]
    if golden["way"] == "judge":
        out = []
        for piece in golden["pieces"]:
            if "{" not in piece:
                out += tokenize(client, piece, special=True)
                continue
            for name in ("instruction", "query", "document"):  # each occurs once, the document last
                value = pair.get(name, golden["instruction"])
                head, found, tail = piece.partition("{" + name + "}")
                piece = head + value + tail if found else piece
            out += tokenize(client, piece)
        return out
    if golden["way"] == "cosine":
        texts = [golden["query_prefix"] + query, golden["document_prefix"] + document]
        return [
            [ids[0], *tokenize(client, text), ids[-1]] for ids, text in zip(case["ids"], texts, strict=True)
        ]
    ids, q, d = case["ids"], tokenize(client, query), tokenize(client, document)
    between = ids[-1:] * (2 if golden["model"].startswith("xlmr") else 1)
    return [ids[0], *q, *between, *d, ids[-1]]


def judge_score(client: httpx.Client, golden: dict, ids: list[int]) -> float:
    high, low = golden["label_ids"]
    body = {
        "prompt": [ids],
        "n_predict": 1,
        "cache_prompt": True,
        "logit_bias": [[high, 100], [low, 100]],
        "n_probs": 2,
        "post_sampling_probs": True,
        "samplers": ["top_k", "temperature"],
        "top_k": 2,
        "temperature": 1.0,
    }
    answer = post(client, "/completion", body)
    answer = answer[0] if isinstance(answer, list) else answer
    probs = {t["id"]: t["prob"] for t in answer["completion_probabilities"][0]["top_probs"]}
    return math.log(probs[high]) - math.log(probs[low])


def head_score(client: httpx.Client, pair: dict) -> float:
    body = {"query": pair["query"], "documents": [pair["document"]]}
    return post(client, "/v1/rerank", body)["results"][0]["relevance_score"]


def cosine_score(client: httpx.Client, ids: list[list[int]]) -> float:
    data = post(client, "/v1/embeddings", {"input": ids})["data"]
    a, b = (d["embedding"] for d in sorted(data, key=lambda d: d["index"]))
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def engine_score(client: httpx.Client, golden: dict, pair: dict, ids: list) -> float:
    """Return the engine's raw score of these ids; for a cross-encoder, of the ids that it makes from the
    texts."""
    if golden["way"] == "judge":
        return judge_score(client, golden, ids)
    return cosine_score(client, ids) if golden["way"] == "cosine" else head_score(client, pair)


def check(golden: dict, pairs: dict[str, dict], folder: Path, flash: bool, f32_cache: bool) -> None:
    method, name = golden["way"], golden["model"]
    deltas: list[tuple[float, str]] = []
    moved: list[str] = []
    with engine(folder / name, method, golden["window"], flash, f32_cache) as client:
        for case in golden["cases"]:
            if not case["fits"]:
                continue
            pair = pairs[case["id"]]
            found = engine_ids(client, golden, case, pair)
            if found != case["ids"]:
                shift = engine_score(client, golden, pair, found) - case["raw"]
                moved.append(f"{case['id']} {shift:+.4f}")
            if found == case["ids"] or method != "head":
                delta = abs(engine_score(client, golden, pair, case["ids"]) - case["raw"])
                deltas.append((delta, case["id"]))
    worst, where = max(deltas)
    mean = statistics.mean(d for d, _ in deltas)
    setting = f"flash attention {'auto' if flash else 'off'}, cache {'F32' if f32_cache else 'F16'}"
    print(f"{name} ({setting}): {len(deltas)} scores, max {worst:.6f} at {where}, mean {mean:.6f}")
    print("  ids differ:", ", ".join(moved) or "nowhere", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--golden", type=Path, default=Path("tests/golden"))
    parser.add_argument("--only", action="append", help="names of models (default: all)")
    parser.add_argument("--no-flash", action="store_true", help="disable flash attention")
    parser.add_argument("--f32-cache", action="store_true", help="keep the KV cache in F32 instead of F16")
    args = parser.parse_args()
    pairs = {p["id"]: p for p in json.loads((args.golden / "pairs.json").read_text(encoding="utf-8"))}
    for file in sorted(args.golden.glob("*.json")):
        if file.name != "pairs.json" and (not args.only or file.stem in args.only):
            golden = json.loads(file.read_text(encoding="utf-8"))
            check(golden, pairs, args.golden, not args.no_flash, args.f32_cache)


if __name__ == "__main__":
    main()
