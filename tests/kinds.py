"""Tiny files of every kind of model file that was tested, each with its expected scoring method or refusal.

`tests/golden/README.md` has the same table with the results before and after.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import checkpoints
import hollow
import late
import listwise_models
from rerankd.recipes import catalog
from support import GOLDEN, golden
from twins import JINA_TOKENS, PIECES, Twin, head_of

_QWEN = catalog.known().find("Qwen3-Reranker-0.6B")
assert _QWEN is not None
# llama.cpp's converter writes this into every file of a folder named qwen3-reranker or qwen3-vl-reranker.
QWEN3_TEMPLATE = _QWEN.template.replace("{instruction}", _QWEN.instruction)
OTHER_TEMPLATE = "<|im_start|>Is {document} about {query}?<|im_end|>"
YES_NO = ("yes", "no")
TWO_ROWS = {"cls.output.weight": 2}
XLMR: dict[str, Any] = {"arch": "bert", "blocks": 24, "width": 1024}
MODERN: dict[str, Any] = {"arch": "modern-bert", "blocks": 22, "width": 768}
MODERN_HEAD = head_of(768, "modern-bert")
CLS, MEAN = {"modern-bert.classifier.pooling_type": 2}, {"modern-bert.classifier.pooling_type": 1}


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    `becomes` is its scoring method, or a part of the reason of its refusal. `asked` names the catalog's model
    whose prompt it must get; `file` is its file name.
    """

    what: str
    twin: Twin | Callable[[Path], Path]
    becomes: str
    asked: str = ""
    file: str = "model.gguf"

    @property
    def is_served(self) -> bool:
        return self.becomes in ("cross_encoder", "causal_lm", "embedding", "late_interaction", "listwise")

    def write(self, folder: Path) -> Path:
        """Write the file or the checkpoint into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        return self.twin.write(folder / self.file) if isinstance(self.twin, Twin) else self.twin(folder)


def _checkpoint(name: str, **config: object) -> Callable[[Path], Path]:
    return lambda folder: checkpoints.copy(name, folder / "model", **config)


def _own_code(folder: Path) -> Path:
    """A model of XLM-R's class with code of its own (auto_map), whose tensors have other names."""
    made = checkpoints.copy(
        "xlmr-head", folder / "model",
        auto_map={"AutoModelForSequenceClassification": "modeling.XLMRobertaForSequenceClassification"},
    )  # fmt: skip
    tensors = checkpoints.read(made / "model.safetensors")
    own = {name.replace(".attention.self.query.", ".mixer.Wq."): one for name, one in tensors.items()}
    checkpoints.write(made / "model.safetensors", own)
    return made


def _two_labels(name: str, **config: object) -> Callable[[Path], Path]:
    return lambda folder: checkpoints.copy("two-label-reranker", folder / name, **config)


def _with_modules(folder: Path) -> Path:
    """A sentence-transformers model whose modules contradict the class in config.json."""
    made = checkpoints.copy("modernbert-head", folder / "model")
    modules = ("Transformer", "Pooling", "Dense", "LayerNorm", "Dense")
    checkpoints.write_modules(made, modules)
    return made


def _folder(**files: str) -> Callable[[Path], Path]:
    """A folder with these files; in the names, __ stands for a dot and ___ for a slash."""

    def write(folder: Path) -> Path:
        for name, text in files.items():
            file = folder / "model" / name.replace("___", "/").replace("__", ".")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return folder / "model"

    return write


def _tensors(change: Callable[[dict[str, Any]], None], **config: object) -> Callable[[Path], Path]:
    """A BERT cross-encoder with changed tensors."""

    def write(folder: Path) -> Path:
        made = checkpoints.copy("bert-pairs", folder / "model", **config)
        tensors = checkpoints.read(made / "model.safetensors")
        change(tensors)
        checkpoints.write(made / "model.safetensors", tensors)
        return made

    return write


_LAYER = "bert.encoder.layer."


def _without(model: str, tensor: str) -> Callable[[Path], Path]:
    """A checkpoint without one of its tensors."""

    def write(folder: Path) -> Path:
        made = checkpoints.copy(model, folder / "model")
        tensors = checkpoints.read(made / "model.safetensors")
        del tensors[tensor]
        checkpoints.write(made / "model.safetensors", tensors)
        return made

    return write


def _more_head(tensors: dict[str, Any]) -> None:
    tensors["classifier.1.weight"] = tensors["classifier.weight"]


def _default_prompt(folder: Path) -> Path:
    made = checkpoints.copy("bert-pairs", folder / "model")
    checkpoints.write_modules(made, ("Transformer",))
    said = {"model_type": "CrossEncoder", "prompts": {"web": "Query: "}, "default_prompt_name": "web"}
    (made / "config_sentence_transformers.json").write_text(json.dumps(said))
    (made / "sentence_bert_config.json").write_text('{"transformer_task": "sequence-classification"}')
    return made


def _more_layers(tensors: dict[str, Any]) -> None:
    tensors |= {
        name.replace(f"{_LAYER}1.", f"{_LAYER}2."): one
        for name, one in tensors.items()
        if name.startswith(f"{_LAYER}1.")
    }


def _gate(tensors: dict[str, Any]) -> None:
    tensors[f"{_LAYER}0.attention.gate.weight"] = tensors[f"{_LAYER}0.attention.self.query.weight"]


def _packed(kind: str) -> Callable[[dict[str, Any]], None]:
    """A matrix of a type that only quantised checkpoints have."""

    def change(tensors: dict[str, Any]) -> None:
        tensors[f"{_LAYER}0.attention.self.query.weight"] = kind, [64, 8], bytes(64 * 8 * 4)

    return change


def _no_bias(tensors: dict[str, Any]) -> None:
    del tensors[f"{_LAYER}1.output.dense.bias"]


def _pointer(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        made = checkpoints.copy("bert-pairs", folder / "model")
        (made / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 17\n")
        return made

    return write


def _foreign_tokenizer(folder: Path) -> Path:
    made = checkpoints.copy("modernbert-head", folder / "model")
    shutil.copy(GOLDEN / "bert-pairs" / "tokenizer.json", made / "tokenizer.json")
    return made


KINDS = (
    # Qwen3-Reranker and similar models
    Kind("Qwen3-Reranker, plain conversion", Twin("Qwen3 Reranker 0.6B"), "causal_lm", "Qwen3-Reranker-0.6B"),
    Kind(
        "Qwen3-Reranker with rank head and template",
        Twin("Qwen3 Reranker 0.6B", pooling="rank", labels=YES_NO, template=QWEN3_TEMPLATE, head=TWO_ROWS),
        "causal_lm",
        "Qwen3-Reranker-0.6B",
    ),
    Kind(
        "Qwen3-Reranker named so, of another size",
        Twin("Qwen3-Reranker-0.6B pruned", blocks=20),
        "causal_lm",
        "Qwen3-Reranker-0.6B",
    ),
    Kind(
        "unnamed, with Qwen3-Reranker's template",
        Twin("Model", blocks=12, template=QWEN3_TEMPLATE),
        "causal_lm",
        "Qwen3-Reranker-0.6B",
    ),
    Kind(
        "unnamed, rank head with labels yes and no",
        Twin("Model", pooling="rank", labels=YES_NO, head=TWO_ROWS),
        "causal_lm",
        "Qwen3-Reranker-0.6B",
    ),
    Kind("unnamed, rank head without labels", Twin("Model", pooling="rank", head=TWO_ROWS), "labels"),
    Kind(
        "rerank template of its own, with labels",
        Twin("My Reranker", template=OTHER_TEMPLATE, labels=YES_NO, head=TWO_ROWS),
        "causal_lm",
    ),
    Kind("rerank template of its own, no labels", Twin("My Reranker", template=OTHER_TEMPLATE), "labels"),
    Kind(
        "rerank template of its own in Jinja",
        Twin("My Reranker", template="Query: {{query}} {{ document }}", labels=YES_NO, head=TWO_ROWS),
        "written in Jinja",
    ),
    Kind(
        "rerank template of its own that wants an instruction",
        Twin("My Reranker", template=f"{{instruction}} {OTHER_TEMPLATE}", labels=YES_NO, head=TWO_ROWS),
        "does not define its {instruction}",
    ),
    Kind(
        "rerank template of its own, labels no and yes",
        Twin("My Reranker", template=OTHER_TEMPLATE, labels=("no", "yes"), head=TWO_ROWS),
        "relevant first",
    ),
    Kind(
        "Qwen3-Reranker with another rerank template",
        Twin("Qwen3 Reranker 0.6B", template=OTHER_TEMPLATE, labels=YES_NO, head=TWO_ROWS),
        "causal_lm",
        "Qwen3-Reranker-0.6B",
    ),
    Kind("KURE-Reranker-base", Twin("KURE Reranker Base", width=2048), "causal_lm", "Qwen3-Reranker-0.6B"),
    Kind(
        "PIXIE-Spell-Reranker", Twin("PIXIE-Spell-Reranker-Preview-0.6B"), "causal_lm", "Qwen3-Reranker-0.6B"
    ),
    Kind("MemReranker-4B", Twin("MemReranker 4B", blocks=36, width=2560), "causal_lm", "Qwen3-Reranker-0.6B"),
    Kind("SkillRouter-Reranker", Twin("SkillRouter Reranker 0.6B"), "causal_lm", "SkillRouter-Reranker-0.6B"),
    Kind(
        "Prism-Qwen3-Reranker-4B-exp",
        Twin("Prism Qwen3 Reranker 4B Exp", blocks=36, width=2560),
        "differs from Qwen3-Reranker's",
    ),
    Kind(
        "Prism-Qwen3.5-Reranker", Twin("Prism Qwen3.5 Reranker 0.8B", "qwen35"), "catalog does not contain it"
    ),
    Kind("LightOn-rerank-PW", Twin("LightOn Rerank PW 0.8B", "qwen35"), "catalog does not contain it"),
    Kind(
        "Qwen3-VL-Reranker, converted with the text model's template",
        Twin(
            "Qwen3 VL Reranker 2B",
            "qwen3vl",
            width=2048,
            pooling="rank",
            labels=YES_NO,
            template=QWEN3_TEMPLATE,
            head=TWO_ROWS,
        ),
        "causal_lm",
        "Qwen3-VL-Reranker-2B",
    ),
    Kind(
        "qwen3vl reranker of another size",
        Twin("My VL Reranker", "qwen3vl", template=QWEN3_TEMPLATE, labels=YES_NO, head=TWO_ROWS),
        "own prompt",
    ),
    Kind(
        "mxbai-rerank-base-v2",
        Twin("Mxbai Rerank Base v2", "qwen2", 24, 896),
        "causal_lm",
        "mxbai-rerank-base-v2",
    ),
    Kind(
        "ctxl-rerank-v2",
        Twin("Ctxl Rerank v2 Instruct Multilingual 1b", width=2048),
        "causal_lm",
        "ctxl-rerank-v2",
    ),
    Kind("zerank-2", Twin("zerank-2", blocks=36, width=2560), "causal_lm", "zerank-2"),
    Kind("zerank-1-small", Twin("Zerank 1 Small", width=2048), "causal_lm", "zerank-1-small"),
    Kind("zerank-like reranker", Twin("My zerank reranker"), "prompt it was trained on"),
    Kind("a Qwen3 reranker of another prompt", Twin("Lychee Rerank"), "prompt it was trained on"),
    Kind("Qwen3 chat model", Twin("Qwen3 0.6B Instruct"), "plain language model"),
    Kind(
        "Qwen3 chat model in a file called reranker",
        Twin("Qwen3 0.6B"),
        "prompt it was trained on",
        file="qwen3-reranker.gguf",
    ),
    Kind("causal reranker with pooling", Twin("My Reranker", pooling="last"), "prompt it was trained on"),
    Kind("Qwen3-Embedding", Twin("Qwen3 Embedding 0.6B", pooling="last"), "embedding"),
    Kind(
        "Qwen3-Embedding's name with a rank head",
        Twin("Qwen3 Embedding 0.6B", pooling="rank", head=TWO_ROWS),
        "labels",
    ),
    Kind("unnamed causal embedding model", Twin("Model", "qwen2", pooling="last"), "embedding"),
    Kind(
        "bge-reranker-v2-gemma",
        Twin("bge-reranker-v2-gemma", "gemma", 18, 2048),
        "causal_lm",
        "bge-reranker-v2-gemma",
    ),
    Kind(
        "bge-reranker-v2-minicpm-layerwise",
        Twin("bge-reranker-v2-minicpm-layerwise", "minicpm"),
        "layer chosen",
    ),
    Kind(
        "bge-reranker-v2-minicpm-layerwise, safetensors",
        lambda folder: hollow.of_class("LayerWiseMiniCPMForCausalLM", "minicpm", folder / "model"),
        "layer chosen",
    ),
    Kind(
        "bge-reranker-v2.5-gemma2-lightweight, safetensors",
        lambda folder: hollow.of_class("CostWiseGemmaForCausalLM", "gemma2", folder / "model"),
        "layers chosen",
    ),
    Kind("LightOn-rerank-LW", Twin("LightOn Rerank LW 2B", "qwen35"), "computes no scores"),
    Kind(
        "LightOn-rerank-LW, safetensors",
        lambda folder: hollow.of_class("Qwen3_5ForCausalLM", "qwen3_5_text", folder / "LightOn-rerank-LW-2B"),
        "computes no scores",
    ),
    Kind("RankZephyr", Twin("Rank Zephyr 7b V1 Full", "llama"), "computes no scores"),
    Kind(
        "RankZephyr, safetensors",
        lambda folder: hollow.of_class("MistralForCausalLM", "mistral", folder / "rank_zephyr_7b_v1_full"),
        "computes no scores",
    ),
    Kind("ReasonRank", Twin("ReasonRank 7B", "qwen2"), "writes its reasons"),
    Kind(
        "ListConRanker, safetensors",
        lambda folder: hollow.of_class("ListConRankerModel", "bert", folder / "ListConRanker"),
        "layers of its own",
    ),
    Kind(
        "bge-reranker-v2.5-gemma2-lightweight",
        Twin("bge-reranker-v2.5-gemma2-lightweight", "gemma2"),
        "layers chosen",
    ),
    Kind(
        "jina-reranker-v3, GGUF alone",
        Twin("Jina Reranker v3", tokens=JINA_TOKENS),
        "projector is missing",
    ),
    Kind(
        "jina-reranker-v3, GGUF with projector.safetensors",
        lambda folder: listwise_models.build_gguf(folder / "model"),
        "listwise",
        "jina-reranker-v3",
    ),
    Kind(
        "jina-reranker-v3, safetensors",
        lambda folder: listwise_models.build("jina-reranker-v3", folder),
        "listwise",
        "jina-reranker-v3",
    ),
    Kind(
        "jina-reranker-v3.5, safetensors",
        lambda folder: listwise_models.build("jina-reranker-v3.5", folder),
        "listwise",
        "jina-reranker-v3.5",
    ),
    Kind(
        "jina-reranker-v3.5, GGUF with projector.safetensors",
        lambda folder: listwise_models.build_gguf(folder / "model", "Jina Reranker v3.5"),
        "see a window",
    ),
    Kind(
        "jina-reranker-v3 in a folder of another name",
        lambda folder: listwise_models.build("model", folder),
        "give its folder that name",
    ),
    Kind(
        "jina-reranker-v3 under another name, with pooling",
        Twin("Model", tokens=JINA_TOKENS, pooling="last"),
        "listwise model",
    ),
    Kind("jina-reranker-m0", Twin("Jina Reranker m0", "qwen2vl", 28, 1536), "small network"),
    Kind(
        "jina-reranker-m0, safetensors",
        lambda folder: hollow.jina_m0(folder / "jina-reranker-m0"),
        "causal_lm",
        "jina-reranker-m0",
    ),
    Kind(
        "Qwen3-VL-Reranker, safetensors",
        lambda folder: hollow.vision(folder / "Qwen3-VL-Reranker-2B", 28, 2048),
        "causal_lm",
        "Qwen3-VL-Reranker-2B",
    ),
    Kind(
        "llama-nemotron-rerank",
        Twin("Llama Nemotron Rerank 1b v2", "llama-embed", 16, 2048, pooling="mean"),
        "converter drops score.weight",
    ),
    Kind(
        "llama-nemotron-rerank, converted as a llama",
        Twin("Llama Nemotron Rerank 1b v2", "llama", 16, 2048, pooling="mean"),
        "bidirectional",
    ),
    Kind(
        "llama-nemotron-rerank, safetensors",
        lambda folder: hollow.nemotron(folder / "llama-nemotron-rerank-1b-v2"),
        "cross_encoder",
        "llama-nemotron-rerank-1b-v2",
    ),
    Kind(
        "llama-nemotron-rerank in a folder of another name",
        lambda folder: hollow.nemotron(folder / "model"),
        "its head reads a prompt",
    ),
    Kind(
        "nemotron reranker under another name",
        Twin("Model", "llama-embed", 16, 2048, pooling="mean"),
        "nothing in the file tells",
    ),
    Kind(
        "nemotron reranker as a llama without causal attention",
        Twin("Model", "llama", 16, 2048, pooling="mean", extra={"llama.attention.causal": False}),
        "nothing in the file tells",
    ),
    Kind(
        "llama-nemotron-embed",
        Twin("Llama Nemotron Embed 1b v2", "llama-embed", 16, 2048, pooling="mean"),
        "embedding",
    ),
    # XLM-R and BERT
    Kind("bge-reranker-v2-m3", Twin("Bge Reranker v2 M3", **XLMR, head=head_of(1024)), "cross_encoder"),
    Kind("bge-reranker-v2-m3 called Bge M3", Twin("Bge M3", **XLMR, head=head_of(1024)), "cross_encoder"),
    Kind(
        "bge-reranker-v2-m3 without its head", Twin("Bge Reranker v2 M3", **XLMR, pooling="cls"), "incomplete"
    ),
    Kind(
        "the same of a size that is not known",
        Twin("Bge Reranker v2 M3", "bert", 8, pooling="cls"),
        "no rank head",
    ),
    Kind(
        "headless reranker called Bge M3, by its file name",
        Twin("Bge M3", **XLMR, pooling="cls"),
        "no rank head",
        file="bge-reranker-v2-m3-Q8_0.gguf",
    ),
    Kind(
        "headless reranker called Bge M3, by its tags",
        Twin("Bge M3", **XLMR, pooling="cls", tags=("text-ranking",)),
        "no rank head",
    ),
    Kind(
        "headless reranker called Bge M3, tagged as a classifier",
        Twin("Bge M3", **XLMR, pooling="cls", tags=("text-classification",)),
        "no rank head",
    ),
    Kind(
        "rerank template with labels that are no tokens",
        Twin("My Reranker", template=OTHER_TEMPLATE, labels=("LABEL_0", "LABEL_1"), head=TWO_ROWS),
        "tokens of the vocabulary",
    ),
    Kind(
        "headless reranker made from one, by its base model",
        Twin("Model", **XLMR, pooling="cls", extra={"general.base_model.0.name": "Bge Reranker v2 M3"}),
        "no rank head",
    ),
    Kind("bge-m3", Twin("Bge M3", **XLMR, pooling="cls"), "embedding"),
    Kind(
        "bge-m3 in a file of its own name",
        Twin("Bge M3", **XLMR, pooling="cls", tags=("sentence-similarity",)),
        "embedding",
        file="bge-m3-Q8_0.gguf",
    ),
    Kind(
        "bge-m3 whose file says mean pooling",
        Twin("Bge M3", **XLMR, pooling="mean"),
        "declares the pooling mean",
    ),
    Kind(
        "EmbeddingGemma without its dense layers",
        Twin("embeddinggemma-300m", "gemma-embedding", 24, 768, pooling="mean"),
        "dense layers",
    ),
    Kind(
        "EmbeddingGemma with its dense layers",
        Twin(
            "embeddinggemma-300m",
            "gemma-embedding",
            24,
            768,
            pooling="mean",
            tensors={"dense_2.weight": (3072, 768), "dense_3.weight": (768, 3072)},
        ),
        "embedding",
    ),
    Kind(
        "SPLADE with pooling",
        Twin("splade-v3", "bert", 12, 768, tokenizer="bert", types=2, pooling="cls"),
        "sparse",
    ),
    Kind(
        "sparse encoder by its tags", Twin("Model", **XLMR, pooling="cls", tags=("sparse-encoder",)), "sparse"
    ),
    Kind("RankLLaMA", Twin("RankLLaMA 7b", "llama", 32, 2048, pooling="last"), "prompt it was trained on"),
    Kind("multilingual-e5-small", Twin("multilingual-e5-small", "bert", 12, 384), "embedding"),
    Kind("unnamed embedding model with its pooling", Twin("Model", **XLMR, pooling="mean"), "embedding"),
    Kind("unnamed encoder without pooling", Twin("Model", **XLMR), "declares no pooling"),
    Kind(
        "unnamed encoder with rank pooling and no head", Twin("Model", **XLMR, pooling="rank"), "incomplete"
    ),
    Kind(
        "mmarco-mMiniLMv2 with its head",
        Twin("mmarco mMiniLMv2 L12 H384 v1", "bert", 12, 384, head=head_of(384)),
        "cross_encoder",
    ),
    Kind(
        "mmarco-mMiniLMv2 without its head",
        Twin("mmarco mMiniLMv2 L12 H384 v1", "bert", 12, 384, pooling="mean"),
        "no rank head",
    ),
    Kind(
        "two-label head", Twin("Model", **XLMR, head={"cls.weight": 1024, "cls.output.weight": 2}), "2 labels"
    ),
    Kind(
        "ms-marco-MiniLM as GGUF",
        Twin(
            "ms-marco-MiniLM-L6-v2", "bert", 6, 384, tokenizer="bert", types=2, head={"cls.output.weight": 1}
        ),
        "pooler",
    ),
    Kind(
        "ms-marco-MiniLM as GGUF, no head, with pooling",
        Twin("Cross Encoder MiniLM", "bert", 6, 384, tokenizer="bert", types=2, pooling="mean"),
        "no rank head",
    ),
    Kind(
        "jina-reranker-v2, merged attn_qkv",
        Twin(
            "Jina Reranker v2 Base Multilingual",
            "bert",
            12,
            768,
            head=head_of(768),
            tensors={"blk.0.attn_qkv.weight": (2304, 768)},
        ),
        "cross_encoder",
    ),
    Kind(
        "jina-reranker-v1-tiny",
        Twin("Jina Reranker v1 Tiny En", "jina-bert-v2", 4, 384, head={"cls.weight": 1}),
        "pooler",
    ),
    Kind(
        "gte-multilingual-reranker, GGUF",
        Twin(
            "Gte Multilingual Reranker Base", "new", 12, 768, head={"cls.weight": 768, "cls.output.weight": 1}
        ),
        "no rank head for new",
    ),
    # ModernBERT
    Kind(
        "gte-reranker-modernbert-base, older converter",
        Twin("Gte Reranker Modernbert Base", **MODERN, head=MODERN_HEAD),
        "cross_encoder",
    ),
    Kind(
        "granite reranker",
        Twin("Granite Embedding Reranker English R2", **MODERN, head=MODERN_HEAD, extra=CLS),
        "cross_encoder",
    ),
    Kind(
        "granite reranker, older converter",
        Twin("Granite Embedding Reranker English R2", **MODERN, head=MODERN_HEAD),
        "would use the mean",
    ),
    Kind(
        "unnamed ModernBERT, pooling cls",
        Twin("Model", **MODERN, head=MODERN_HEAD, extra=CLS),
        "cross_encoder",
    ),
    Kind(
        "unnamed ModernBERT, pooling mean",
        Twin("Model", **MODERN, head=MODERN_HEAD, extra=MEAN),
        "cross_encoder",
    ),
    Kind(
        "unnamed ModernBERT, older converter",
        Twin("Model", **MODERN, head=MODERN_HEAD),
        "does not declare whether",
    ),
    Kind(
        "ModernBERT head without its norm",
        Twin("Model", **MODERN, head=head_of(768), extra=MEAN),
        "cls.norm.weight",
    ),
    Kind(
        "ModernBERT head whose norm has a bias",
        Twin("Model", **MODERN, head=MODERN_HEAD | {"cls.norm.bias": 0}, extra=MEAN),
        "cls.norm.bias",
    ),
    Kind(
        "ModernBERT head that reads the last token",
        Twin("Model", **MODERN, head=MODERN_HEAD, extra={"modern-bert.classifier.pooling_type": 3}),
        "'last'",
    ),
    Kind(
        "ModernBERT with SiLU",
        Twin("Model", **MODERN, head=MODERN_HEAD, extra=MEAN | {"modern-bert.hidden_activation": "silu"}),
        "cross_encoder",
    ),
    Kind(
        "ModernBERT of another activation",
        Twin("Model", **MODERN, head=MODERN_HEAD, extra=MEAN | {"modern-bert.hidden_activation": "relu"}),
        "'relu'",
    ),
    Kind(
        "ModernBERT decision model",
        Twin("Laya", **MODERN, head=MODERN_HEAD, extra=MEAN | {"modern-bert.decision.block_count": 2}),
        "decision model",
    ),
    Kind(
        "ModernBERT classifier with 3 labels",
        Twin("Model", **MODERN, head=MODERN_HEAD | {"cls.output.weight": 3}, extra=MEAN),
        "3 labels",
    ),
    Kind(
        "ettin-reranker, plain conversion",
        Twin("Ettin Reranker 150m v1", **MODERN, pooling="cls"),
        "rank head is incomplete",
    ),
    # Late interaction
    Kind(
        "colbertv2.0 with pooling",
        Twin("colbertv2.0", "bert", 12, 768, tokenizer="bert", types=2, pooling="cls"),
        "late interaction",
    ),
    Kind(
        "ColBERT on BERT, safetensors",
        lambda folder: late.build("stanford-bert", folder),
        "late_interaction",
    ),
    Kind(
        "ColBERT on ModernBERT, safetensors",
        lambda folder: late.build("pylate-modernbert", folder),
        "late_interaction",
    ),
    Kind(
        "ColBERT on another encoder, safetensors",
        lambda folder: late.build("stanford-bert", folder, model_type="xlm-roberta"),
        "late_interaction",
    ),
    Kind(
        "GTE-ModernColBERT with pooling, by its markers",
        Twin("Model", **MODERN, tokens=(*PIECES, "[Q] ", "[D] "), pooling="mean"),
        "late interaction",
    ),
    Kind(
        "jina-colbert-v2 with pooling, by its markers",
        Twin("Model", **XLMR, tokens=(*PIECES, "[QueryMarker]", "[DocumentMarker]"), pooling="cls"),
        "late interaction",
    ),
    Kind(
        "LFM2-ColBERT, by its projection",
        Twin("Model", "lfm2", 16, 1024, pooling="mean", tensors={"dense_2_out.weight": (128, 1024)}),
        "late interaction",
    ),
    Kind(
        "ColBERT by its tags", Twin("Model", **MODERN, pooling="cls", tags=("ColBERT",)), "late interaction"
    ),
    # Parts of models, and damaged files
    Kind("LoRA adapter", Twin("My adapter", extra={"general.type": "adapter"}), "part of one (adapter)"),
    Kind(
        "mmproj",
        Twin("Qwen3 VL Reranker 2B", "clip", extra={"general.type": "mmproj"}),
        "part of one (mmproj)",
    ),
    Kind("older mmproj, without its type", Twin("Qwen3 VL Reranker 2B", "clip"), "part of one (mmproj)"),
    Kind(
        "vocabulary of more tokens than the matrix has rows",
        Twin("Qwen3 Reranker 0.6B", tensors={"token_embd.weight": (4, 1024)}),
        "another model",
    ),
    # Safetensors
    Kind("BERT cross-encoder, safetensors", _checkpoint("bert-pairs"), "cross_encoder"),
    Kind("XLM-R cross-encoder, safetensors", _checkpoint("xlmr-head"), "cross_encoder"),
    Kind("ModernBERT cross-encoder, safetensors", _checkpoint("modernbert-head"), "cross_encoder"),
    Kind("jina-reranker-v2, safetensors", _checkpoint("jina-v2"), "cross_encoder"),
    Kind("XLM-R's class with code of its own", _own_code, "auto_map"),
    Kind("gte-multilingual-reranker, safetensors", _checkpoint("gte"), "cross_encoder"),
    Kind("ELECTRA cross-encoder", _checkpoint("electra"), "cross_encoder"),
    Kind("DistilBERT cross-encoder", _checkpoint("distilbert"), "cross_encoder"),
    Kind("CamemBERT cross-encoder", _checkpoint("camembert"), "cross_encoder"),
    Kind("two-label head of a reranker, safetensors", _two_labels("ms-reranker"), "cross_encoder"),
    Kind("two-label head of an unknown model, safetensors", _two_labels("sentiment"), "two labels"),
    Kind(
        "two-label head of other labels, safetensors",
        _two_labels("nli-reranker", id2label={"0": "contradiction", "1": "entailment"}),
        "entailment",
    ),
    Kind("modules.json of another head than the class", _with_modules, "modules.json"),
    Kind("git-LFS pointer as tokenizer.json", _pointer("tokenizer.json"), "git-LFS pointer"),
    Kind("git-LFS pointer as model.safetensors", _pointer("model.safetensors"), "git-LFS pointer"),
    Kind("git-LFS pointer as config.json", _pointer("config.json"), "git-LFS pointer"),
    Kind("tokenizer of another model", _foreign_tokenizer, "belongs to another model"),
    Kind(
        "Qwen3-Reranker in safetensors",
        lambda folder: checkpoints.causal(folder, *golden("qwen3-headless")["label_ids"]),
        "causal_lm",
    ),
    Kind(
        "MPNet cross-encoder, safetensors",
        _checkpoint("xlmr-head", architectures=["MPNetForSequenceClassification"], model_type="mpnet"),
        "cross_encoder",
    ),
    Kind(
        "a class of the model's own code",
        _checkpoint(
            "xlmr-head",
            architectures=["MyForSequenceClassification"],
            auto_map={"AutoModelForSequenceClassification": "my.MyForSequenceClassification"},
        ),
        "code in the model's own files",
    ),
    Kind(
        "causal reranker of another class in safetensors",
        _checkpoint("bert-pairs", architectures=["OlmoForCausalLM"], model_type="olmo"),
        "OlmoForCausalLM",
    ),
    Kind(
        "embedding model in safetensors", _checkpoint("bert-pairs", architectures=["BertModel"]), "BertModel"
    ),
    Kind("MLX quantisation", _tensors(_packed("U32"), quantization={"group_size": 64, "bits": 4}), "MLX"),
    Kind(
        "FP8 quantisation in safetensors",
        _tensors(_packed("F8_E4M3"), quantization_config={"quant_method": "fp8"}),
        "quantised",
    ),
    Kind("more layers than config.json says", _tensors(_more_layers), "declares 2 layers"),
    Kind("a layer with a tensor that its class does not have", _tensors(_gate), "its class does not have"),
    Kind(
        "a layer without one of its biases", _tensors(_no_bias), "the tensor blk.1.ffn_down.bias is missing"
    ),
    Kind(
        "BERT head without its bias",
        _without("bert-pairs", "classifier.bias"),
        "the tensor cls.output.bias is missing",
    ),
    Kind(
        "BERT pooler without its bias",
        _without("bert-pairs", "bert.pooler.dense.bias"),
        "the tensor cls.bias is missing",
    ),
    Kind(
        "XLM-R head without its bias",
        _without("xlmr-head", "classifier.out_proj.bias"),
        "the tensor cls.output.bias is missing",
    ),
    Kind(
        "ModernBERT head without its norm, safetensors",
        _without("modernbert-head", "head.norm.weight"),
        "the tensor cls.norm.weight is missing",
    ),
    Kind("a head with one more layer", _tensors(_more_head), "its rank head has the tensor"),
    Kind(
        "ModernBERT that wants biases it does not have",
        _checkpoint("modernbert-head", attention_bias=True),
        "the tensor blk.0.attn_qkv.bias is missing",
    ),
    Kind(
        "ModernBERT with scaled positions, older config.json",
        _checkpoint("modernbert-head", rope_scaling={"type": "yarn", "factor": 4.0}),
        "positions are scaled",
    ),
    Kind(
        "ModernBERT with one table of positions for all layers",
        _checkpoint("modernbert-head", rope_parameters={"rope_theta": 5000.0, "rope_type": "default"}),
        "positions of each kind of layer",
    ),
    Kind(
        "attention heads that do not divide the width",
        _checkpoint("bert-pairs", num_attention_heads=3),
        "its 3 attention heads",
    ),
    Kind("a prompt before each query by default", _default_prompt, "cross_encoder"),
    Kind("no class in config.json", _checkpoint("bert-pairs", architectures=None), "declares no class"),
    Kind(
        "a matrix of another shape than config.json says",
        _checkpoint("bert-pairs", intermediate_size=64),
        "has the shape",
    ),
    Kind(
        "DeBERTa cross-encoder",
        _checkpoint("deberta-v3"),
        "cross_encoder",
    ),
    Kind("DeBERTa-v2 with a convolution", _checkpoint("deberta-v3", conv_kernel_size=3), "conv_kernel_size"),
    Kind(
        "ettin-reranker, safetensors",
        lambda folder: checkpoints.with_modules("ettin", folder / "model"),
        "cross_encoder",
    ),
    Kind(
        "ettin-reranker, safetensors, without its modules",
        _checkpoint("modernbert-head", architectures=["ModernBertModel"]),
        "ModernBertModel",
    ),
    Kind(
        "ModernBERT with SiLU, safetensors",
        _checkpoint("modernbert-head", hidden_activation="silu"),
        "'silu'",
    ),
    # Folders that contain something else
    Kind(
        "LoRA adapter, safetensors",
        _folder(adapter_config__json="{}", adapter_model__safetensors=""),
        "adapter (LoRA)",
    ),
    Kind(
        "adapter beside a config.json",
        _folder(
            config__json="{}", adapter_config__json="{}", adapter_model__safetensors="", tokenizer__json="{}"
        ),
        "adapter (LoRA)",
    ),
    Kind("folder with a GGUF file only", _folder(README__md="", model__gguf=""), "such as model.gguf"),
    Kind("folder with a model in a folder", _folder(README__md="", best___config__json="{}"), "folder best"),
    Kind("ONNX only", _folder(config__json="{}", tokenizer__json="{}", onnx___model__onnx=""), "ONNX"),
    Kind("MLX only, .npz", _folder(config__json="{}", tokenizer__json="{}", weights__npz=""), "MLX"),
    Kind(
        "pickled weights only",
        _folder(config__json="{}", tokenizer__json="{}", pytorch_model__bin=""),
        "pickled",
    ),
    Kind(
        "no fast tokenizer",
        _folder(config__json="{}", vocab__txt="", model__safetensors=""),
        "no tokenizer.json",
    ),
    Kind(
        "a shard is missing",
        _folder(**{"config__json": "{}", "tokenizer__json": "{}", "model-00001-of-00002__safetensors": ""}),
        "weight files are missing",
    ),
    Kind("an empty folder", _folder(README__md=""), "contains no weights"),
)
