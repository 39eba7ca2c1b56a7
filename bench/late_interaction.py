"""What a request costs whose documents a late-interaction model has read before, over HTTP.

    python bench/late_interaction.py            a model of answerai-colbert-small's shape, random weights
    python bench/late_interaction.py MODEL      a folder with a late-interaction model
    python bench/late_interaction.py --shape modernbert

Each round sends a new query with 100 documents that are new, then a new query with the same ones. The score
cache does not help with either. Prints the medians and their ratio.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np

TESTS = Path(__file__).parents[1] / "tests"
sys.path.insert(0, str(TESTS))
import checkpoints
import late

# Layers, width, inner width, attention heads: those of answerai-colbert-small-v1 and GTE-ModernColBERT-v1.
SHAPES = {"bert": (12, 384, 1536, 12, 96), "modernbert": (22, 768, 1152, 12, 128)}
BASES = {"bert": "stanford-bert", "modernbert": "pylate-modernbert"}


def made(shape: str, folder: Path, documents: int, queries: int) -> Path:
    """A tiny late-interaction checkpoint with the sizes of a real one. Its vocabulary stays small: a text has
    twice as many tokens as it would have with the real one."""
    layers, width, inner, heads, rows = SHAPES[shape]
    model = late.build(BASES[shape], folder)
    positions = 512
    changes: dict[str, Any] = {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "max_position_embeddings": positions,
        "layer_types": None,
        "local_attention": 128,
    }
    checkpoints.edit(model / "config.json", **changes)
    old = checkpoints.read(model / "model.safetensors")
    config = json.loads((model / "config.json").read_text())
    sizes = {64: width, config["vocab_size"]: config["vocab_size"]}
    tensors: checkpoints.Tensors = {}
    random_numbers = np.random.default_rng(1)
    for name, (_, shape_of, _) in old.items():
        if "layer" in name and ".0." not in name and ".1." not in name:
            continue
        if name == "linear.weight":
            continue
        places = [name]
        if "layer" in name:
            places = [
                name.replace(".0.", f".{at}.").replace(".1.", f".{at}.")
                for at in range(layers)
                if (".0." in name and at == 0) or (".1." in name and at > 0)
            ]
        said = [
            _size(one, name, sizes, shape, width, inner, positions, at) for at, one in enumerate(shape_of)
        ]
        for place in places:
            deviation = 0.02 if len(said) > 1 else 0.0
            values = random_numbers.normal(0, deviation, said).astype(np.float32)
            if "norm" in name.lower() and name.endswith("weight"):
                values += 1
            tensors[place] = ("F32", said, values.tobytes())
    if "linear.weight" in old:
        tensors["linear.weight"] = late.matrix(rows, width, 1)
    else:
        late.dense(model / "1_Dense", rows, width, 1, {})
    checkpoints.write(model / "model.safetensors", tensors)
    lengths = {"query_maxlen": queries, "doc_maxlen": documents}
    if shape == "bert":
        checkpoints.edit(model / late.ARTIFACT_FILE, **lengths)
    else:
        said_lengths = {"query_length": queries, "document_length": documents}
        checkpoints.edit(model / late.PYLATE_FILE, **said_lengths)
    return model


def _size(
    old: int, name: str, sizes: dict[int, int], shape: str, width: int, inner: int, positions: int, axis: int
) -> int:
    """The new length of an axis of a tensor."""
    if "position_embeddings" in name and axis == 0:
        return positions
    if "Wqkv" in name and axis == 0:
        return 3 * width
    if "mlp.Wi" in name and axis == 0:
        return 2 * inner
    if ("mlp.Wo" in name and axis == 1) or ("output.dense" in name and "attention" not in name and axis == 1):
        return inner
    if "intermediate.dense" in name and axis == 0:
        return inner
    return sizes.get(old, old)


@contextlib.contextmanager
def served(model: str, home: Path) -> Iterator[str]:
    """rerankd with product defaults on a free port."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    environment = os.environ | {"RERANKD_MODEL": model, "RERANKD_PORT": str(port), "RERANKD_HOME": str(home)}
    process = subprocess.Popen([sys.executable, "-m", "rerankd", "serve"], env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/health").status_code == 200:
                    break
            if process.poll() is not None:
                raise SystemExit("rerankd has ended")
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait()


def text(words: int, source: random.Random) -> str:
    return " ".join(source.choice(WORDS) for _ in range(words))


WORDS = [
    word
    for pair in json.loads((TESTS / "golden" / "pairs.json").read_text())
    for word in pair["document"].split()
]


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("model", nargs="?")
    flags.add_argument("--shape", choices=[*SHAPES], default="bert")
    flags.add_argument("--words", type=int, default=50, help="words of a document")
    flags.add_argument("--rounds", type=int, default=3)
    options = flags.parse_args()
    source = random.Random(1)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        model = options.model or str(made(options.shape, Path(folder), 300, 32))
        url = stack.enter_context(served(model, Path(folder) / "home"))
        client = stack.enter_context(httpx.Client(timeout=600))
        new, known, again = [], [], []
        for _ in range(options.rounds):
            documents = [text(options.words, source) for _ in range(100)]
            for times, count in ((new, 1), (known, 3)):
                for _ in range(count):
                    body = {"query": text(6, source), "documents": documents}
                    started = time.perf_counter()
                    client.post(f"{url}/v1/rerank", json=body).raise_for_status()
                    times.append(time.perf_counter() - started)
            started = time.perf_counter()
            client.post(f"{url}/v1/rerank", json=body).raise_for_status()
            again.append(time.perf_counter() - started)
        status = client.get(f"{url}/v1/status").json()["models"][0]
        unknown_s, known_s, cached_s = map(statistics.median, (new, known, again))
        print(f"engine: {status['engine']['program']}")
        print(f"100 documents of {options.words} words, unknown: {unknown_s * 1000:.0f} ms")
        print(f"the same, known, another query: {known_s * 1000:.1f} ms ({known_s / unknown_s:.1%})")
        print(f"the same query again, from the score cache: {cached_s * 1000:.1f} ms")
        print(f"kept: {status['engine']['document_vectors']}")


if __name__ == "__main__":
    main()
