"""Compare causal-LM scoring with llama-server's own /v1/rerank, on the same model shape.

    python bench/causal_lm.py [--folder FOLDER] [--documents 16] [--words 50] [--rounds 5]
        [--slots 4] [--llama-server PATH] [--openvino f32 bf16] [--weights full] [--threads 1]

Both run Qwen3-Reranker-0.6B's shape in Q8_0 with random weights: /v1/rerank a file with a rank head, which
it requires, and rerankd a file without one. rerankd runs it on llama.cpp, and on OpenVINO in each
precision. They alternate; each round uses a new query. Prints the best rates and the ratios.

The vocabulary of the golden models is small and needs about two tokens a word. So 50 of its words stand for
100 English words in Qwen's own vocabulary: about 190 tokens a pair, 91 of them the prompt without the
document.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
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
    model: Path, program: tuple[str, ...], slots: int, threads: int, folder: Path
) -> tuple[Child, LlamaClient]:
    """llama.cpp's own rerank server as its manual starts it, with `slots` slots."""
    spec = EngineSpec(
        "plain", model, Recipe("cross_encoder", 2048, Normalization("sigmoid"), pooling="rank"), {}
    )
    argv = list(launch.argv(spec, launch.EngineOptions(program, threads), folder / f"{slots}.sock"))
    argv[argv.index("--parallel") + 1] = str(slots)
    argv[argv.index("--ctx-size") + 1] = str(slots * 2048)
    child = await Child.start(argv, folder / "plain.log")
    client = LlamaClient(folder / f"{slots}.sock")
    while not await client.is_ready():
        assert child.exit_code is None, child.lines()[-20:]
        await asyncio.sleep(0.1)
    return child, client


async def timed(work: Any) -> tuple[float, float, Any]:
    """The time that work takes, the CPU time of the engines meanwhile, and its result."""
    cpu, started = cpu_s(), time.perf_counter()
    result = await work
    return time.perf_counter() - started, cpu_s() - cpu, result


def settings_of(model: Path, options: argparse.Namespace, more: dict[str, Any]) -> Settings:
    prompt = json.loads((ROOT / "tests" / "golden" / "qwen3-headless.json").read_text())
    scoring = {key: prompt[key] for key in ("template", "labels", "instruction")} | {"max_length": 2048}
    shared: dict[str, Any] = {"threads": options.threads}
    shared |= {"home": options.folder, "gpu_layers": 0, "force": True, "cache_entries": 0}
    return Settings.model_validate({"model": str(model), "scoring": scoring, **shared, **more})


def engines() -> list[Path]:
    """The folders in /proc of this process's children (Linux)."""
    tasks = Path("/proc/self/task").iterdir()
    return [Path("/proc", pid) for task in tasks for pid in (task / "children").read_text().split()]


def rss_mib() -> list[int]:
    """The memory of each engine, in the order of their starts."""
    lines = [line for one in engines() for line in (one / "status").read_text().splitlines()]
    return [int(line.split()[1]) // 2**10 for line in lines if line.startswith("VmRSS")]


def cpu_s() -> float:
    """The CPU time of all engines, of which one at a time computes."""
    fields = [(one / "stat").read_text().rpartition(")")[2].split() for one in engines()]
    return sum(int(one[11]) + int(one[12]) for one in fields) / os.sysconf("SC_CLK_TCK")


async def main(options: argparse.Namespace) -> None:
    options.folder.mkdir(parents=True, exist_ok=True)
    headed, headless = (models.qwen3(options.folder, headed=has) for has in (True, False))
    bundled = (sys.executable, "-m", "rerankd.backends.llama.bundled")
    program = (options.llama_server,) if options.llama_server else bundled
    documents = [text(WORDS, options.words, f"document {at}") for at in range(options.documents)]
    llama = {"engine": "llama", "llama_path": options.llama_server}
    served = {"rerankd, llama.cpp": llama}
    for precision in options.openvino:
        more = {"engine": "openvino", "precision": precision, "weights": options.weights}
        served[f"rerankd, OpenVINO {precision}"] = more
    took: dict[str, list[float]] = {"llama.cpp /v1/rerank": []} | {name: [] for name in served}
    computed: dict[str, list[float]] = {name: [] for name in took}
    async with contextlib.AsyncExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="rb-")))
        child, client = await start_plain(headed, program, options.slots, options.threads, folder)
        rerankers = {}
        for name, more in served.items():
            rerankers[name] = await running.enter_async_context(
                Reranker(settings_of(headless, options, more))
            )
            await rerankers[name].rerank("warm", documents[:2])
        print(f"MiB of each engine: {rss_mib()}", flush=True)
        for at in range(options.rounds + 1):
            query = text(WORDS, 8, f"query {at}")
            asked = documents if at else documents[:4]  # the first round only warms up
            body = {"query": query, "documents": asked}
            works: dict[str, Any] = {"llama.cpp /v1/rerank": client.compute("/v1/rerank", body)}
            works |= {name: one.rerank(query, asked, raw_scores=True) for name, one in rerankers.items()}
            raws = {}
            for name, work in works.items():
                seconds, of_cpu, result = await timed(work)
                print(f"{name:24} {seconds:6.2f} s, {of_cpu:6.2f} s of CPU", flush=True)
                if at:
                    took[name].append(seconds)
                    computed[name].append(of_cpu)
                if name in rerankers:
                    raws[name] = [one.score for one in sorted(result.results, key=lambda one: one.index)]
            if at == 0:
                print(f"{result.tokens / len(asked):.0f} tokens a pair", flush=True)
            print({name: [round(value, 3) for value in values[:3]] for name, values in raws.items()})
        print(f"MiB of each engine after all calls: {rss_mib()}")
        await client.close()
        await child.stop(5)
    base = "rerankd, llama.cpp"
    for name in took:
        ratios = [
            [plain / own for plain, own in zip(of[base], of[name], strict=True)] for of in (took, computed)
        ]
        shown = [f"{statistics.median(one):5.2f} ({min(one):.2f} to {max(one):.2f})" for one in ratios]
        rate = len(documents) / min(took[name])
        print(f"{name:24} best {rate:6.2f} pairs/s; {base} takes {shown[0]} times as long, {shown[1]} of CPU")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "rerankd-bench")
    parser.add_argument("--documents", type=int, default=16)
    parser.add_argument("--words", type=int, default=50, help="50 have the tokens of 100 English words")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slots", type=int, default=4, help="slots of llama.cpp's own server")
    parser.add_argument("--llama-server", help="a llama-server for both; default: the bundled llama.cpp")
    parser.add_argument(
        "--threads",
        type=int,
        default=machine.read().cores,
        help="of each engine; with 1, no thread waits for another, so CPU times are right on a busy machine",
    )
    precisions = ("f32", "bf16")
    parser.add_argument("--openvino", nargs="*", choices=precisions, default=precisions, help="precisions")
    parser.add_argument("--weights", choices=("full", "compressed"), default="full")
    asyncio.run(main(parser.parse_args()))
