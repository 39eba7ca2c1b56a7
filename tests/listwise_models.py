"""Tiny listwise checkpoints, made from the golden Qwen3 and a random projector with a fixed seed.

The values in golden/listwise.json are those of a reference implementation with transformers, which reads the
same folders (scripts/golden_listwise.py), so no weights are stored for them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np

import checkpoints
from support import GOLDEN

MARKERS = ("<|embed_token|>", "<|rerank_token|>")
WIDTH, INNER, OUTER = 64, 32, 16
NAMES = ("jina-reranker-v3", "jina-reranker-v3.5")
_WINDOW = {
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 1024,
    "use_sliding_window": True,
}


def build(name: str, folder: Path, **config: Any) -> Path:
    """The checkpoint `name` in a new folder; `config` changes keys of its config.json."""
    known: dict[str, Any] = {
        "architectures": ["JinaForRanking"],
        "auto_map": {"AutoModel": "modeling.JinaForRanking"},
    }
    known |= {"max_position_embeddings": 8192, **(_WINDOW if name.endswith("v3.5") else {})}
    model = checkpoints.copy("qwen3-headless", folder / name, **known | config)
    _add_markers(model / "tokenizer.json")
    tensors = checkpoints.read(model / "model.safetensors")
    checkpoints.write(model / "model.safetensors", tensors | projector("projector."))
    return model


def build_gguf(folder: Path, name: str = "Jina Reranker v3", *, has_projector: bool = True) -> Path:
    """The same model as a GGUF file, with its projector beside it."""
    import ggufs

    folder.mkdir(parents=True, exist_ok=True)
    source = GOLDEN / "qwen3-headless.gguf"
    fields = gguf.GGUFReader(source).fields
    tokens = list(fields["tokenizer.ggml.tokens"].contents())
    types = list(fields["tokenizer.ggml.token_type"].contents())
    first = tokens.index("</think>") + 1
    tokens[first : first + 2], types[first : first + 2] = MARKERS, [gguf.TokenType.CONTROL] * 2
    keys = {
        "general.name": name,
        "qwen3.context_length": 8192,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [int(one) for one in types],
    }
    path = ggufs.rewrite(source, folder / "model.gguf", keys=keys)
    if has_projector:
        checkpoints.write(folder / "projector.safetensors", projector(""))
    return path


def projector(prefix: str) -> checkpoints.Tensors:
    random = np.random.default_rng(23)
    shapes = {"0": (INNER, WIDTH), "2": (OUTER, INNER)}
    return {
        f"{prefix}{at}.weight": ("F32", [*shape], random.normal(0, 1, shape).astype(np.float32).tobytes())
        for at, shape in shapes.items()
    }


def _add_markers(tokenizer: Path) -> None:
    values = json.loads(tokenizer.read_text())
    added = values["added_tokens"]
    for marker in MARKERS:
        added.append(added[0] | {"id": added[-1]["id"] + 1, "content": marker, "special": True})
    tokenizer.write_text(json.dumps(values, ensure_ascii=False))


def requests() -> dict[str, dict[str, Any]]:
    """The requests with golden values. The reference has blocks of 125 documents."""
    pairs = json.loads((GOLDEN / "pairs.json").read_text())
    # The reference reads the names of control tokens in a text as these tokens; rerankd never does.
    texts = [one["document"] for one in pairs if "<" not in one["document"]]
    texts = [text for text in dict.fromkeys(texts) if text.strip() and "\0" not in text]
    short = [text for text in texts if len(text) < 120]
    query = next(one["query"] for one in pairs if len(one["query"]) > 20)
    return {
        "one document": {"query": query, "documents": short[:1]},
        "one block": {"query": query, "documents": short[:12]},
        "instruction": {"query": query, "documents": short[5:10], "instruction": "Prefer short passages."},
        "longer than the window": {"query": query, "documents": sorted(texts, key=len)[-12:]},
        "two blocks": {"query": query, "documents": [f"{at}. {short[at % 60]}" for at in range(130)]},
        "a truncated document": {"query": query, "documents": [" ".join(texts)[:9000], *short[:3]]},
        "marker in a text": {"query": f"{MARKERS[1]}{query}", "documents": [f"a{MARKERS[0]}b", *short[:3]]},
    }
