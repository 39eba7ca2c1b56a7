"""Compare causal-LM scoring with llama-server's own /v1/rerank, on the same model shape.

    python bench/causal_lm.py [--folder FOLDER] [--documents 16] [--words 50] [--rounds 5]
        [--slots 4] [--llama-server PATH]

Both run Qwen3-Reranker-0.6B's shape in Q8_0 with random weights: /v1/rerank a file with a rank head, which
it requires, and rerankd a file without one. They alternate; each round uses a new query. Prints medians and
the ratio.

The vocabulary of the golden models is small and needs about two tokens a word. So 50 of its words stand for
100 English words in Qwen's own vocabulary: about 190 tokens a pair, 91 of them the prompt without the
document.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import models
from programs import text

from rerankd import machine
from rerankd.backends.base import EngineSpec
from rerankd.backends.llama import launch
from rerankd.backends.llama.client import LlamaClient
from rerankd.config import Settings
from rerankd.domain import Normalization, Recipe
from rerankd.process.child import Child
from rerankd.service import Reranker

ROOT = Path(__file__).parents[1]
PAIRS = json.loads((ROOT / "tests" / "golden" / "pairs.json").read_text())
# Words that the tokenizer was trained on: about one token each, as English has with a real vocabulary.
WORDS = sorted(
    {word for pair in PAIRS for word in pair["document"].split() if word.isascii() and word.isalpha()}
)


async def start_plain(
    model: Path, program: tuple[str, ...], slots: int, folder: Path
) -> tuple[Child, LlamaClient]:
    """llama.cpp's own rerank server as its manual starts it, with `slots` slots."""
    spec = EngineSpec(
        "plain", model, Recipe("cross_encoder", 2048, Normalization("sigmoid"), pooling="rank"), {}
    )
    argv = list(
        launch.argv(spec, launch.EngineOptions(program, machine.read().cores), folder / f"{slots}.sock")
    )
    argv[argv.index("--parallel") + 1] = str(slots)
    argv[argv.index("--ctx-size") + 1] = str(slots * 2048)
    child = await Child.start(argv, folder / "plain.log")
    client = LlamaClient(folder / f"{slots}.sock")
    while not await client.is_ready():
        assert child.exit_code is None, child.lines()[-20:]
        await asyncio.sleep(0.1)
    return child, client


async def timed(work: Any) -> tuple[float, Any]:
    started = time.perf_counter()
    result = await work
    return time.perf_counter() - started, result


async def main(options: argparse.Namespace) -> None:
    options.folder.mkdir(parents=True, exist_ok=True)
    headed, headless = (models.qwen3(options.folder, headed=has) for has in (True, False))
    program = (
        (options.llama_server,)
        if options.llama_server
        else (sys.executable, "-m", "rerankd.backends.llama.bundled")
    )
    documents = [text(WORDS, options.words, f"document {at}") for at in range(options.documents)]
    prompt = json.loads((ROOT / "tests" / "golden" / "qwen3-headless.json").read_text())
    settings = Settings.model_validate(
        {
            "model": str(headless),
            "home": options.folder,
            "llama_path": options.llama_server,
            "gpu_layers": 0,
            "force": True,
            "cache_entries": 0,
            "scoring": {key: prompt[key] for key in ("template", "labels", "instruction")}
            | {"max_length": 2048},
        }
    )
    took: dict[str, list[float]] = {"rerank": [], "causal_lm": []}
    with tempfile.TemporaryDirectory(prefix="rb-") as folder:
        child, client = await start_plain(headed, program, options.slots, Path(folder))
        async with Reranker(settings) as reranker:
            for at in range(options.rounds + 1):
                query = text(WORDS, 8, f"query {at}")
                asked = documents if at else documents[:2]  # the first round only warms up
                body = {"query": query, "documents": asked}
                plain_s, answer = await timed(client.compute("/v1/rerank", body))
                rerankd_s, result = await timed(reranker.rerank(query, asked))
                if at == 0:
                    tokens = answer["usage"]["prompt_tokens"] / len(asked)
                    own = result.tokens / len(asked)
                    print(f"{tokens:.0f} tokens a pair by /v1/rerank, {own:.0f} by rerankd")
                    continue
                took["rerank"].append(plain_s)
                took["causal_lm"].append(rerankd_s)
        await client.close()
        await child.stop(5)
    for name, label in (("rerank", "llama.cpp /v1/rerank"), ("causal_lm", "rerankd, causal LM")):
        median = statistics.median(took[name])
        each = ", ".join(f"{seconds:.2f}" for seconds in took[name])
        print(f"{label:22} {len(documents) / median:6.2f} pairs/s   {median:6.2f} s   ({each})")
    ratios = [plain / rerankd for plain, rerankd in zip(took["rerank"], took["causal_lm"], strict=True)]
    print(
        f"ratio                  {statistics.median(ratios):6.2f}   (min {min(ratios):.2f}, max "
        f"{max(ratios):.2f})"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "rerankd-bench")
    parser.add_argument("--documents", type=int, default=16)
    parser.add_argument("--words", type=int, default=50, help="50 have the tokens of 100 English words")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slots", type=int, default=4, help="slots of llama.cpp's own server")
    parser.add_argument("--llama-server", help="a llama-server for both; default: the bundled llama.cpp")
    asyncio.run(main(parser.parse_args()))
