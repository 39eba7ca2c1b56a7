"""Twins of known models for tests: sparse files with the same header and the same tensor shapes.

`resolve` can't tell a twin from the real model.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np

import checkpoints
from rerankd.recipes.catalog import Entry
from support import GOLDEN

QWEN_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "yes",
    "no",
    "1",
    "0",
    "Yes",
    "No",
    "<think>",
    "!",
    "<bos>",
)
JINA_TOKENS = (*QWEN_TOKENS, "<|embed_token|>", "<|rerank_token|>")
PIECES = ("<s>", "</s>", "<unk>", "[CLS]", "[SEP]", "\u2581the", "a")
_POOLINGS = ("none", "mean", "cls", "last", "rank")
_TOKENIZERS = {"bert": "t5", "nomic-bert": "bert", "modern-bert": "gpt2"}


@dataclass(frozen=True)
class Twin:
    """The contents of a GGUF header; `head` maps the tensors of the rank head to their numbers of rows."""

    name: str
    arch: str = "qwen3"
    blocks: int = 28
    width: int = 1024
    context: int = 8192
    pooling: str = ""
    labels: Sequence[str] = ()
    template: str = ""
    head: Mapping[str, int] = field(default_factory=dict)
    tokens: Sequence[str] = ()
    tokenizer: str = ""
    types: int = 1
    tags: Sequence[str] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def write(self, path: Path) -> Path:
        """Write the file as llama.cpp's converter would."""
        out = gguf.GGUFWriter(path, self.arch)
        encoder = self.arch in _TOKENIZERS
        tokens = [*(self.tokens or (PIECES if encoder else QWEN_TOKENS))]
        out.add_name(self.name)
        out.add_context_length(self.context)
        out.add_embedding_length(self.width)
        out.add_block_count(self.blocks)
        out.add_tokenizer_model(self.tokenizer or _TOKENIZERS.get(self.arch, "gpt2"))
        out.add_token_list(tokens)
        out.add_token_types(
            [
                gguf.TokenType.CONTROL if "|" in one or one == "<bos>" else gguf.TokenType.NORMAL
                for one in tokens
            ]
        )
        out.add_token_type_count(self.types)
        if encoder:
            out.add_causal_attention(False)
        if self.pooling:
            out.add_uint32(f"{self.arch}.pooling_type", _POOLINGS.index(self.pooling))
        if self.labels:
            out.add_array(f"{self.arch}.classifier.output_labels", list(self.labels))
        if self.tags:
            out.add_array("general.tags", list(self.tags))
        if self.template:
            out.add_string("tokenizer.chat_template.rerank", self.template)
        for key, value in self.extra.items():
            add: Any = {str: out.add_string, bool: out.add_bool, int: out.add_uint32}[type(value)]
            add(key, value)
        shapes = {"token_embd.weight": (len(tokens), self.width)} | {
            name: (rows, self.width) if rows else (self.width,) for name, rows in self.head.items()
        }
        if self.width >= 4096 and not encoder:
            shapes["output.weight"] = (len(tokens), self.width)
        for name, shape in (shapes | dict(self.tensors)).items():
            out.add_tensor_info(name, shape, np.dtype(np.float16), 2 * int(np.prod(shape)))
        out.write_header_to_file()
        out.write_kv_data_to_file()
        out.write_ti_data_to_file()
        out.close()
        size = sum(-(-2 * int(np.prod(shape)) // 32) * 32 for shape in (shapes | dict(self.tensors)).values())
        with path.open("r+b") as file:
            file.truncate(-(-path.stat().st_size // 32) * 32 + size)
        return path


def head_of(width: int, arch: str = "bert") -> dict[str, int]:
    """The tensors of a complete rank head and their numbers of rows, 0 for a vector."""
    norm = {"cls.norm.weight": 0} if arch == "modern-bert" else {}
    return {"cls.weight": width, "cls.output.weight": 1} | norm


def of_entry(entry: Entry, name: str = "") -> Twin:
    """The GGUF twin of a catalog entry, with its first architecture, its sizes and one of its names."""
    arch = (*entry.match.architectures, "qwen2")[0]
    width = entry.match.embedding_length or 1024
    has_head, is_listwise = entry.method == "cross_encoder", entry.method == "listwise"
    extra: dict[str, Any] = {}
    if entry.classifier_pooling:
        extra[f"{arch}.classifier.pooling_type"] = _POOLINGS.index(entry.classifier_pooling)
    if entry.sliding_window:
        extra[f"{arch}.attention.sliding_window"] = entry.sliding_window
    projector = {"cls.weight": (512, width), "cls.output.weight": (512, 512)}
    return Twin(
        name or entry.match.names[0],
        arch,
        entry.match.block_count or 12,
        width,
        context=entry.context_length or 8192,
        head=head_of(width, arch) if has_head else {},
        tokens=JINA_TOKENS if is_listwise else (),
        tensors=projector if is_listwise else {},
        extra=extra,
    )


_WORDPIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "##c")


def write_bert_folder(folder: Path, blocks: int, width: int, **config: Any) -> Path:
    """Write a BertForSequenceClassification as transformers saves it, with its weights in a sparse file."""
    folder.mkdir(parents=True)
    inner, vocabulary, max_length = 4 * width, len(_WORDPIECES), 512
    values = {
        "architectures": ["BertForSequenceClassification"], "model_type": "bert", "hidden_act": "gelu",
        "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": blocks,
        "num_attention_heads": 12, "max_position_embeddings": max_length, "type_vocab_size": 2,
        "vocab_size": vocabulary, "layer_norm_eps": 1e-12, "id2label": {"0": "LABEL_0"}, **config,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(values))
    write_wordpiece(folder / "tokenizer.json")
    shapes: dict[str, list[int]] = {}

    def linear(name: str, rows: int, columns: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = [rows, columns], [rows]

    def norm(name: str) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = [width]

    for table, rows in (("word", vocabulary), ("position", max_length), ("token_type", 2)):
        shapes[f"bert.embeddings.{table}_embeddings.weight"] = [rows, width]
    norm("bert.embeddings.LayerNorm")
    for layer in range(blocks):
        own = f"bert.encoder.layer.{layer}"
        for part in ("query", "key", "value"):
            linear(f"{own}.attention.self.{part}", width, width)
        linear(f"{own}.attention.output.dense", width, width)
        norm(f"{own}.attention.output.LayerNorm")
        linear(f"{own}.intermediate.dense", inner, width)
        linear(f"{own}.output.dense", width, inner)
        norm(f"{own}.output.LayerNorm")
    linear("bert.pooler.dense", width, width)
    linear("classifier", 1, width)
    checkpoints.write_hollow(folder / "model.safetensors", shapes)
    return folder


def write_ettin_folder(folder: Path, blocks: int, width: int) -> Path:
    """Write an ettin-reranker as sentence-transformers saves it, with its weights in sparse files."""
    shutil.copytree(GOLDEN / "modules" / "ettin", folder)
    inner, vocabulary = width + 64, len(_WORDPIECES)
    checkpoints.edit(
        folder / "config.json", hidden_size=width, intermediate_size=inner, num_hidden_layers=blocks,
        vocab_size=vocabulary, layer_types=None, max_position_embeddings=7999,
    )  # fmt: skip
    (folder / "tokenizer_config.json").unlink()
    write_wordpiece(folder / "tokenizer.json")
    shapes = {"embeddings.tok_embeddings.weight": [vocabulary, width]}
    shapes |= {name: [width] for name in ("embeddings.norm.weight", "final_norm.weight")}
    for layer in range(blocks):
        own = f"layers.{layer}"
        shapes |= {f"{own}.attn_norm.weight": [width], f"{own}.mlp_norm.weight": [width]}
        shapes |= {f"{own}.attn.Wqkv.weight": [3 * width, width], f"{own}.attn.Wo.weight": [width, width]}
        shapes |= {f"{own}.mlp.Wi.weight": [2 * inner, width], f"{own}.mlp.Wo.weight": [width, inner]}
    checkpoints.write_hollow(folder / "model.safetensors", shapes)
    for module, rows in (("2_Dense", width), ("4_Dense", 1)):
        checkpoints.edit(folder / module / "config.json", in_features=width, out_features=rows)
        bias = {"linear.bias": [rows]} if rows == 1 else {}
        checkpoints.write_hollow(
            folder / module / "model.safetensors", {"linear.weight": [rows, width]} | bias
        )
    checkpoints.edit(folder / "3_LayerNorm" / "config.json", dimension=width)
    norm = {"norm.weight": [width], "norm.bias": [width]}
    checkpoints.write_hollow(folder / "3_LayerNorm" / "model.safetensors", norm)
    return folder


def write_wordpiece(file: Path, more: Sequence[str] = ()) -> None:
    """Write a minimal WordPiece tokenizer.json; `more` are additional pieces."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    pieces = {piece: at for at, piece in enumerate((*_WORDPIECES, *more))}
    tokenizer = Tokenizer(models.WordPiece(pieces, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.save(str(file))
