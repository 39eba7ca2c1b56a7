"""Compare causal-LM scoring with llama-server's own /v1/rerank, on the same model shape.

    python bench/causal_lm.py [--folder FOLDER] [--documents 16] [--words 50] [--rounds 5]
        [--slots 4] [--llama-server PATH] [--openvino f32 bf16] [--int8] [--weights full] [--threads 1]

All run Qwen3-Reranker-0.6B's shape in Q8_0 with random weights: /v1/rerank a file with a rank head, which it
requires, and rerankd a file without one. rerankd runs as a service, once on the bundled llama.cpp and once on
OpenVINO in each precision, with --int8 also on ONNX Runtime. All answer over HTTP. They alternate; each round
uses a new query, and then the same query with other documents. Prints the best rates and the ratios.

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

import httpx
import models
from programs import text

from rerankd import machine
from rerankd.backends.base import EngineSpec
from rerankd.backends.llama import launch
from rerankd.backends.llama.client import LlamaClient
from rerankd.benchmark import service
from rerankd.domain import Recipe
from rerankd.normalization import Normalization
from rerankd.process.child import Child

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


async def timed(pid: int, work: Any) -> tuple[float, float, Any]:
    """The time that work takes, the CPU time of a process and its children meanwhile, and its result."""
    cpu, started = cpu_s(pid), time.perf_counter()
    result = await work
    return time.perf_counter() - started, cpu_s(pid) - cpu, result


def write_settings(path: Path, model: Path, options: argparse.Namespace, more: dict[str, Any]) -> Path:
    """The rerankd.toml of a service."""
    prompt = json.loads((ROOT / "tests" / "golden" / "qwen3-headless.json").read_text())
    scoring = {key: prompt[key] for key in ("template", "labels", "instruction")} | {"max_length": 2048}
    own = {"model": str(model), "threads": options.threads, "gpu_layers": 0, "force": True}
    values = own | {"cache_entries": 0} | more
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items() if value is not None]
    lines += ["[scoring]", *(f"{key} = {json.dumps(value)}" for key, value in scoring.items())]
    path.write_text("\n".join(lines))
    return path


def children(pid: int) -> list[int]:
    """The processes that a process started (Linux)."""
    tasks = Path("/proc", str(pid), "task").iterdir()
    return [int(one) for task in tasks for one in (task / "children").read_text().split()]


def family(pid: int) -> list[Path]:
    """The folders in /proc of a process and of all below it."""
    return [Path("/proc", str(pid)), *(one for child in children(pid) for one in family(child))]


def rss_mib(pid: int) -> list[int]:
    """The memory of a process and of each below it."""
    lines = [line for one in family(pid) for line in (one / "status").read_text().splitlines()]
    return [int(line.split()[1]) // 2**10 for line in lines if line.startswith("VmRSS")]


def cpu_s(pid: int) -> float:
    """The CPU time of a process and of all below it."""
    fields = [(one / "stat").read_text().rpartition(")")[2].split() for one in family(pid)]
    return sum(int(one[11]) + int(one[12]) for one in fields) / os.sysconf("SC_CLK_TCK")


def peak(precision: str) -> float:
    """OpenVINO's matrix product on one thread, in GFLOP for each second of CPU time: the best of 20."""
    import numpy as np
    import openvino as ov
    from openvino import opset13 as op

    rows, columns, inner = 1024, 4096, 1024
    weights = np.random.default_rng(1).normal(0, 1, (columns, inner)).astype(np.float32)
    x = op.parameter([rows, inner], np.float32)
    model = ov.Model([op.result(op.matmul(x, op.constant(weights), False, True))], [x])
    config = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": precision}
    request = ov.Core().compile_model(model, "CPU", config).create_infer_request()
    request.set_input_tensor(ov.Tensor(np.ones((rows, inner), np.float32)))
    took = []
    for _ in range(20):
        started = time.process_time()
        request.infer()
        took.append(time.process_time() - started)
    return 2 * rows * columns * inner / min(took) / 1e9


async def main(options: argparse.Namespace) -> None:
    options.folder.mkdir(parents=True, exist_ok=True)
    headed, headless = (models.qwen3(options.folder, headed=has) for has in (True, False))
    bundled = (sys.executable, "-m", "rerankd.backends.llama.bundled")
    program = (options.llama_server,) if options.llama_server else bundled
    services = {"rerankd, llama.cpp": {"engine": "llama"}}
    for precision in options.openvino:
        more = {"engine": "openvino", "precision": precision, "weights": options.weights}
        services[f"rerankd, OpenVINO {precision}"] = more
    if options.int8:
        services["rerankd, ONNX Runtime int8"] = {"precision": "int8"}
    took: dict[str, list[float]] = {"llama.cpp /v1/rerank": []} | {name: [] for name in services}
    computed: dict[str, list[float]] = {name: [] for name in took}
    again: dict[str, list[float]] = {name: [] for name in took}
    async with contextlib.AsyncExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="rb-")))
        child, client = await start_plain(headed, program, options.slots, options.threads, folder)
        pids, clients = {"llama.cpp /v1/rerank": child.pid}, {}
        for at, (name, more) in enumerate(services.items()):
            home = str(folder / f"home-{at}")
            config = write_settings(folder / f"{at}.toml", headless, options, more | {"home": home})
            url, _ = await running.enter_async_context(
                service.running(["--config", str(config)], os.environ, folder / f"{at}.log", 300)
            )
            clients[name] = await running.enter_async_context(
                httpx.AsyncClient(base_url=url, timeout=600, trust_env=False)
            )
            (pids[name],) = {*children(os.getpid())} - {*pids.values()}
        for at in range(options.rounds + 1):
            for is_again in (False, True):
                query = text(WORDS, 8, f"query {at}")
                count = options.documents if at else 4  # the first round only warms up
                documents = [text(WORDS, options.words, f"{at} {is_again} {one}") for one in range(count)]
                body = {"query": query, "documents": documents}
                works: dict[str, Any] = {"llama.cpp /v1/rerank": client.compute("/v1/rerank", body)}
                works |= {name: ask(one, body) for name, one in clients.items()}
                raws = {}
                for name, work in works.items():
                    seconds, of_cpu, result = await timed(pids[name], work)
                    kind = "same query" if is_again else "new query"
                    print(f"{kind:10} {name:26} {seconds:6.2f} s, {of_cpu:6.2f} s of CPU", flush=True)
                    if at and is_again:
                        again[name].append(of_cpu)
                    elif at:
                        took[name].append(seconds)
                        computed[name].append(of_cpu)
                    if name in clients:
                        raws[name] = result
                print({name: [round(value, 3) for value in values[:3]] for name, values in raws.items()})
        for name, pid in pids.items():
            print(f"{name:26} MiB of its processes: {rss_mib(pid)}")
        await client.close()
        await child.stop(5)
    report(options.documents, took, computed, again)
    for precision in options.openvino:
        print(f"{precision}: {peak(precision):.0f} GFLOP for each second of CPU time in a matrix product")


async def ask(client: httpx.AsyncClient, body: dict[str, Any]) -> list[float]:
    """The raw scores in the order of the documents."""
    answer = await client.post("/v1/rerank", json=body | {"raw_scores": True})
    answer.raise_for_status()
    rows = sorted(answer.json()["results"], key=lambda one: one["index"])
    return [one["relevance_score"] for one in rows]


def report(
    documents: int,
    took: dict[str, list[float]],
    computed: dict[str, list[float]],
    again: dict[str, list[float]],
) -> None:
    """Print the rates, and the ratios to both ways of llama.cpp."""
    for base in list(took)[:2]:
        for name in took:
            ratios = [
                [plain / own for plain, own in zip(of[base], of[name], strict=True)]
                for of in (took, computed, again)
            ]
            shown = [f"{statistics.median(one):5.2f} ({min(one):.2f} to {max(one):.2f})" for one in ratios]
            print(
                f"{name:26} {base} takes {shown[0]} times as long, {shown[1]} of CPU, "
                f"{shown[2]} of CPU for a query again"
            )
    for name in took:
        rates = [documents / min(of[name]) for of in (took, computed, again)]
        print(
            f"{name:26} best {rates[0]:.2f} pairs/s; {rates[1]:.2f} pairs for each second of CPU time, "
            f"{rates[2]:.2f} for a query again"
        )


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
    parser.add_argument("--int8", action="store_true", help="ONNX Runtime, too: rerankd[onnx]")
    parser.add_argument("--weights", choices=("full", "compressed"), default="full")
    asyncio.run(main(parser.parse_args()))
