"""What rerankd must know of a model before it starts an engine for it (see metadata_keys.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rerankd.domain import Format, Pooling, Refusal
from rerankd.formats.gguf_header import Strings

# Architectures that read a text in both directions, whatever their header says.
_ENCODERS = frozenset(
    (
        "bert",
        "modern-bert",
        "neo-bert",
        "jina-bert-v2",
        "jina-bert-v3",
        "nomic-bert",
        "nomic-bert-moe",
        "eurobert",
        "gemma-embedding",
        "llama-embed",
        "t5",
        "t5encoder",
    )
)


def _key(name: str, kind: type[str | int | bool], default: str | int | None = None) -> Any:
    """A field that a header has under a key, in which `{arch}` stands for the architecture."""
    return field(default=default, metadata={"key": name, "kind": kind})


def _tensor(name: str) -> Any:
    """A field that says whether there is a tensor."""
    return field(default=False, metadata={"tensor": name})


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What a model file says of itself. How it is scored is decided by recipes/resolve.py.

    Sizes are in bytes, lengths in tokens; 0, "" and None mean that the file does not say. `size_bytes` counts
    all parts of a split file, `tensor_bytes` the weights alone. `cls_rows` and `cls_output_rows` are the rows
    of the rank head's tensors `cls.weight` and `cls.output.weight`, 0 where there is none. `kv_width` is the
    number of numbers that keys and values of a token take in one layer. `has_output` is about the language
    model's own head (absent also when it shares the embedding matrix), `has_charsmap` about the tokenizer's
    normalisation map. `control_tokens` and `user_defined_tokens` map a special token's text to its id;
    `tokens` is the whole vocabulary. `block_weights` counts the weights of the matrices in all blocks, 0
    where a token does not use all of them (mixture of experts); `attention_width` is the number of heads
    times the width of one. `refusal` says what of it can't be computed here.

    `tags` and `base_models` are what the model's card said at the conversion. `hidden_activation` is
    ModernBERT's, "" where the header has no such key; `decision_blocks` is above 0 for a decision model,
    which shares a reranker's tensor names; `has_late_projection` says that the file projects each token's
    state, as late interaction does; `has_dense` that it has both of EmbeddingGemma's dense layers.
    `has_cls_norm` and `has_cls_norm_bias` are about the norm in ModernBERT's head.
    """

    path: Path
    architecture: str
    version: int = 3
    size_bytes: int = 0
    kind: str = "model"
    name: str = _key("general.name", str, "")
    basename: str = _key("general.basename", str, "")
    size_label: str = _key("general.size_label", str, "")
    finetune: str = _key("general.finetune", str, "")
    tags: tuple[str, ...] = ()
    base_models: tuple[str, ...] = ()
    context_length: int = _key("{arch}.context_length", int, 0)
    embedding_length: int = _key("{arch}.embedding_length", int, 0)
    block_count: int = _key("{arch}.block_count", int, 0)
    kv_width: int = 0
    vocabulary_size: int = 0
    pooling: Pooling | None = None
    classifier_pooling: Pooling | None = None
    output_labels: tuple[str, ...] = ()
    token_type_count: int = _key("tokenizer.ggml.token_type_count", int, 0)
    causal_attention: bool | None = _key("{arch}.attention.causal", bool)
    has_cls: bool = _tensor("cls.weight")
    cls_rows: int = 0
    has_cls_output: bool = _tensor("cls.output.weight")
    cls_output_rows: int = 0
    has_cls_norm: bool = _tensor("cls.norm.weight")
    has_cls_norm_bias: bool = _tensor("cls.norm.bias")
    hidden_activation: str = _key("{arch}.hidden_activation", str, "")
    decision_blocks: int = _key("{arch}.decision.block_count", int, 0)
    has_late_projection: bool = _tensor("dense_2_out.weight")
    has_dense: bool = False
    has_output: bool = _tensor("output.weight")
    has_charsmap: bool = False
    tokenizer_model: str = _key("tokenizer.ggml.model", str, "")
    tokenizer_pre: str = _key("tokenizer.ggml.pre", str, "")
    chat_template: str = _key("tokenizer.chat_template", str, "")
    rerank_template: str = _key("tokenizer.chat_template.rerank", str, "")
    bos_id: int | None = _key("tokenizer.ggml.bos_token_id", int)
    eos_id: int | None = _key("tokenizer.ggml.eos_token_id", int)
    sep_id: int | None = _key("tokenizer.ggml.seperator_token_id", int)  # the format's own spelling
    pad_id: int | None = _key("tokenizer.ggml.padding_token_id", int)
    mask_id: int | None = _key("tokenizer.ggml.mask_token_id", int)
    add_bos: bool | None = _key("tokenizer.ggml.add_bos_token", bool)
    add_eos: bool | None = _key("tokenizer.ggml.add_eos_token", bool)
    add_sep: bool | None = _key("tokenizer.ggml.add_sep_token", bool)
    file_type: str = ""
    quantisation: str = ""
    parameters: int = 0
    block_weights: int = 0
    attention_width: int = 0
    tensor_bytes: int = 0
    control_tokens: Mapping[str, int] = field(default_factory=dict)
    user_defined_tokens: Mapping[str, int] = field(default_factory=dict)
    tokens: Strings = field(default_factory=lambda: Strings(b"", []), repr=False, compare=False)
    parts: tuple[Path, ...] = ()
    format: Format = "gguf"
    refusal: Refusal | None = None

    @property
    def is_causal(self) -> bool:
        """Whether it predicts next tokens, reading from left to right; else it is an encoder."""
        return self.architecture not in _ENCODERS and self.causal_attention is not False

    def token_id(self, text: str) -> int | None:
        """The id of the one token that spells `text`, or None when no single token does.

        `text` is as a person writes it; vocabularies write it as their tokenizer does: byte-level BPE stands
        a letter for each byte, SentencePiece and WordPiece write U+2581 for the space before a word.
        """
        stored = text
        if self.tokenizer_model == "gpt2":
            stored = "".join(_BYTE_LETTERS[byte] for byte in text.encode("utf-8", "surrogatepass"))
        elif self.tokenizer_model in ("llama", "t5", "bert", "gemma4"):
            stored = text.replace(" ", "\u2581")
        found = self.tokens.index_of(stored)
        return self.tokens.index_of(text) if found is None else found


def _byte_letters() -> tuple[str, ...]:
    """The letter that byte-level BPE writes for each byte: its own if printable, else from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return tuple(chr(byte if byte in printable else next(spare)) for byte in range(256))


_BYTE_LETTERS = _byte_letters()
