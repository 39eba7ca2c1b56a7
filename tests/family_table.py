"""The table in docs/models.md: each family of models in each format, and by which backend it is served.

Made by resolving the kinds of tests/kinds.py, so it can't differ from what rerankd does (`make docs`).
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from kinds import KINDS, Kind
from rerankd.backends.base import Backend, Offer
from rerankd.backends.llama.binaries import Binaries, Binary
from rerankd.backends.table import BACKENDS
from rerankd.backends.torch.devices import Device, Survey
from rerankd.config import Settings
from rerankd.domain import Refusal
from rerankd.errors import ModelFileError
from rerankd.formats import model_files
from rerankd.formats.metadata import ModelMetadata
from rerankd.serving import backend_offers
from rerankd.serving.prepare_model import resolve_file
from support import GOLDEN, options_of

# The families, and the kinds that represent them: patterns of `Kind.what`.
FAMILIES = {
    "ms-marco-MiniLM and other BERT": r"BERT cross-encoder, safetensors|ms-marco-MiniLM as GGUF",
    "bge-reranker and other XLM-R": r"XLM-R cross-encoder, safetensors|bge-reranker-v2-m3",
    "jina-reranker-v2": r"jina-reranker-v2, .*",
    "jina-reranker-v1": r"jina-reranker-v1.*",
    "gte-reranker-modernbert, granite r2": r"ModernBERT cross-encoder, safetensors|granite reranker",
    "ettin-reranker": r"ettin-reranker, (plain conversion|safetensors)",
    "gte-multilingual-reranker": r"gte-multilingual-reranker.*",
    "mxbai-rerank-v1 (DeBERTa)": r"DeBERTa cross-encoder",
    "ELECTRA, DistilBERT, CamemBERT": r"(ELECTRA|DistilBERT|CamemBERT) cross-encoder",
    "MPNet, ALBERT, DeBERTa-v1 and other encoders": r"MPNet cross-encoder.*",
    "two labels (monoBERT)": r"two-label head.*",
    "Qwen3-Reranker": r"Qwen3-Reranker(, plain conversion| with rank head and template| in safetensors)",
    "Qwen3-VL-Reranker": r"Qwen3-VL-Reranker.*",
    "KURE-base, PIXIE-Spell, MemReranker": r"KURE-Reranker-base|PIXIE.*|MemReranker-4B",
    "SkillRouter-Reranker": r"SkillRouter.*",
    "Prism-Reranker": r"Prism-.*",
    "mxbai-rerank-v2": r"mxbai-rerank-base-v2",
    "zerank": r"zerank-2",
    "ctxl-rerank-v2": r"ctxl-rerank-v2",
    "bge-reranker-v2-gemma": r"bge-reranker-v2-gemma",
    "bge-reranker-v2-minicpm-layerwise": r"bge-reranker-v2-minicpm-layerwise.*",
    "bge-reranker-v2.5-gemma2-lightweight": r"bge-reranker-v2.5-gemma2-lightweight.*",
    "jina-reranker-v3": r"jina-reranker-v3, (GGUF with.*|safetensors)",
    "jina-reranker-v3.5": r"jina-reranker-v3\.5, .*",
    "LightOn-rerank-LW, RankZephyr": r"(LightOn-rerank-LW|RankZephyr).*",
    "jina-reranker-m0": r"jina-reranker-m0(, safetensors)?",
    "llama-nemotron-rerank": r"llama-nemotron-rerank(, safetensors)?",
    "another causal reranker, with prompt and labels": r"rerank template of its own, with labels",
    "another causal reranker, without them": r"a Qwen3 reranker of another prompt",
    "ColBERT on BERT and ModernBERT": r"colbertv2.0 with pooling|ColBERT on (Modern)?BERT, safetensors",
    "ColBERT on another body": r"ColBERT on another encoder, safetensors",
    "SPLADE": r"SPLADE with pooling",
    "multilingual-e5, bge-m3 (embeddings)": r"bge-m3|multilingual-e5-small|embedding model in safetensors",
    "Qwen3-Embedding": r"Qwen3-Embedding",
}
# What each backend finds on a machine with all of them and no GPU.
_SURVEYS = {
    "torch": Survey("2.14", (Device("cpu", "a CPU"),)),
    "openvino": True,
    "onnx": True,
    "llama": Binaries(None, 0, "", (), Binary("bundled", ("bundled",), "", 11549), (), ()),
}


_CONVERTED = {
    ("bert", "t5"): "xlmr-head.gguf",
    ("gemma", "gpt2"): "gemma-yes.gguf",
    ("modern-bert", "gpt2"): "modernbert-head.gguf",
    ("qwen2", "gpt2"): "qwen2-labels.gguf",
    ("qwen3", "gpt2"): "qwen3-headless.gguf",
    ("qwen3vl", "gpt2"): "qwen3-headless.gguf",
}


def table() -> str:
    """The table in Markdown. Families of which no kind is tested are left out."""
    head = ["family", "format", *(backend.title for backend in BACKENDS), "why not"]
    rows = [head, ["---"] * len(head)]
    with tempfile.TemporaryDirectory() as folder:
        for at, (family, pattern) in enumerate(FAMILIES.items()):
            found = [kind for kind in KINDS if re.fullmatch(pattern, kind.what)]
            made = [_row(family, kind, Path(folder, f"{at}-{one}")) for one, kind in enumerate(found)]
            rows += sorted(row for one, row in enumerate(made) if row not in made[:one])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(family: str, kind: Kind, folder: Path) -> list[str]:
    path = kind.write(folder)
    form = "safetensors" if path.is_dir() else "GGUF"
    return [family, form, *_cells(path, folder)]


def _cells(path: Path, folder: Path) -> list[str]:
    """For each backend "served" or "-"; then the reasons why not."""
    (wanted,) = Settings(model=(str(path),)).wanted("")
    try:
        metadata = model_files.read(path)
        metadata = metadata if path.is_dir() else _with_tokenizer(metadata)
    except ModelFileError as error:
        return _refused(error.message.replace(f"{folder}/", ""))
    resolved = resolve_file(metadata, wanted.scoring)
    if isinstance(resolved.outcome, Refusal):
        return _refused(resolved.outcome.reason)
    spec = backend_offers.spec("model", path, metadata, resolved, wanted, "")
    answers = [backend.offer(spec, options_of(backend), _survey(backend)) for backend in BACKENDS]
    reasons = "; ".join(dict.fromkeys(one.reason for one in answers if isinstance(one, Refusal)))
    return [*("served" if isinstance(one, Offer) else "-" for one in answers), reasons]


def _refused(reason: str) -> list[str]:
    # The family names the model.
    words = re.sub(r"^this is [^:]+: ", "", reason).replace("|", "\\|").rstrip(".")
    return ["-"] * len(BACKENDS) + [f"refused: {words}"]


def _with_tokenizer(metadata: ModelMetadata) -> ModelMetadata:
    """The same metadata with the tokenizer of a real conversion: the kinds of GGUF files have only a few
    pieces."""
    name = _CONVERTED.get((metadata.architecture, metadata.tokenizer_model))
    if name is None:
        return metadata
    real = model_files.read(GOLDEN / name)
    return replace(
        metadata,
        has_charsmap=real.has_charsmap,
        tokenizer_model=real.tokenizer_model,
        tokenizer_pre=real.tokenizer_pre,
    )


def _survey(backend: Backend) -> Any:
    return _SURVEYS[backend.name]


if __name__ == "__main__":
    print(table())
