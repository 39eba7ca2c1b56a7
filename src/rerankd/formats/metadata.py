"""ModelMetadata: what rerankd knows about a model from its file's header, before it starts an engine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rerankd.domain import Format, Pooling, Refusal
from rerankd.formats.checkpoint_files import SUFFIX
from rerankd.formats.gguf_header import Strings
from rerankd.formats.head_file import LISTWISE_MARKERS
from rerankd.formats.image_processor import ImageProcessor
from rerankd.formats.library_classes import Library
from rerankd.formats.sentence_transformers import Layout

# Architectures with bidirectional attention, whatever their header declares.
_ENCODERS = frozenset(
    (
        "bert",
        "modern-bert",
        "neo-bert",
        "jina-bert-v2",
        "jina-bert-v3",
        "deberta-v2",
        "new",  # mGTE
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
    """A field for the value of a header's key; `{arch}` in the key is replaced by the architecture."""
    return field(default=default, metadata={"key": name, "kind": kind})


def _tensor(name: str) -> Any:
    """A field for whether the file has this tensor."""
    return field(default=False, metadata={"tensor": name})


@dataclass(frozen=True, slots=True)
class Matrix:
    """Where a matrix is stored: the index of the file among the model's parts, the offset in that file, the
    number of rows, and the bytes of one row. The rows are contiguous."""

    part: int
    offset: int
    rows: int
    row_bytes: int


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """The metadata of a model file. recipes/resolve.py decides from it how the model is scored.

    Sizes are in bytes, lengths in tokens. 0, "" and None mean that the file does not define the value.

    `size_bytes` is the size of all parts of a split file, `tensor_bytes` that of the weights alone.
    `cls_rows` and `cls_output_rows`: the rows of the rank head's tensors `cls.weight` and
    `cls.output.weight`, 0 if the tensor is missing. `has_cls_norm`, `has_cls_norm_bias`: the norm in
    ModernBERT's head.
    `has_output`: the language model head; False also if it shares the embedding matrix. `output_matrix`:
    where the head's matrix is stored, also if it is the embedding matrix.
    `unused_token`: the id of a token that is only padding of the vocabulary (type UNUSED), the last one.
    `has_dense`: both dense layers of EmbeddingGemma. `has_late_projection`: a projection of each token's
    state, as in late-interaction models. `has_charsmap`: the tokenizer's normalization map.
    `kv_width`: how many numbers the keys and values of one token have in one layer.
    `block_weights`: the number of weights in the matrices of all blocks, 0 if a token does not use all of
    them (mixture of experts). `attention_width`: the number of attention heads times the width of one.
    `control_tokens` and `user_defined_tokens` map the text of a special token to its id; `tokens` is the
    whole vocabulary. `tags` and `base_models` are copied from the model card by the converter.
    `rope_scaling`: how rotary positions are changed for a longer context, such as yarn. `sliding_window`: the
    tokens that a token sees in local layers, itself included.
    `hidden_activation` is ModernBERT's, "" without such a key. `decision_blocks` is above 0 for a decision
    model, which has the same tensor names as a reranker.
    `refusal`: why rerankd can't compute the model, None if it can.
    `layout`: what sentence-transformers' files beside a checkpoint declare; None without a checkpoint, and
    if rerankd does not support what they declare.
    `class_name`: the class of a checkpoint if rerankd does not know it.
    `library`: who knows the class of a refused checkpoint, "" if nobody does.
    `image_processor`: how a checkpoint reads images, None if it reads text alone. `score_token`: the id of
    the token whose state the head of jina-reranker-m0 reads.
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
    rope_scaling: str = _key("{arch}.rope.scaling.type", str, "")
    token_type_count: int = _key("tokenizer.ggml.token_type_count", int, 0)
    class_name: str = _key("rerankd.class", str, "")
    causal_attention: bool | None = _key("{arch}.attention.causal", bool)
    has_cls: bool = _tensor("cls.weight")
    cls_rows: int = 0
    has_cls_output: bool = _tensor("cls.output.weight")
    cls_output_rows: int = 0
    has_cls_norm: bool = _tensor("cls.norm.weight")
    has_cls_norm_bias: bool = _tensor("cls.norm.bias")
    hidden_activation: str = _key("{arch}.hidden_activation", str, "")
    sliding_window: int = _key("{arch}.attention.sliding_window", int, 0)
    decision_blocks: int = _key("{arch}.decision.block_count", int, 0)
    has_late_projection: bool = _tensor("dense_2_out.weight")
    has_dense: bool = False
    has_output: bool = _tensor("output.weight")
    has_output_bias: bool = _tensor("output.bias")
    output_matrix: Matrix | None = None
    has_charsmap: bool = False
    tokenizer_model: str = _key("tokenizer.ggml.model", str, "")
    tokenizer_pre: str = _key("tokenizer.ggml.pre", str, "")
    chat_template: str = _key("tokenizer.chat_template", str, "")
    rerank_template: str = _key("tokenizer.chat_template.rerank", str, "")
    rerank_instruct_template: str = _key("tokenizer.chat_template.rerank_instruct", str, "")
    bos_id: int | None = _key("tokenizer.ggml.bos_token_id", int)
    eos_id: int | None = _key("tokenizer.ggml.eos_token_id", int)
    sep_id: int | None = _key("tokenizer.ggml.seperator_token_id", int)  # the format's own spelling
    pad_id: int | None = _key("tokenizer.ggml.padding_token_id", int)
    mask_id: int | None = _key("tokenizer.ggml.mask_token_id", int)
    unknown_id: int | None = _key("tokenizer.ggml.unknown_token_id", int)
    unused_token: int | None = None
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
    layout: Layout | None = None
    library: Library = ""
    image_processor: ImageProcessor | None = None
    score_token: int | None = _key("{arch}.score_token", int)

    @property
    def is_causal(self) -> bool:
        """Whether it is a causal language model, which predicts the next token; otherwise an encoder."""
        return self.architecture not in _ENCODERS and self.causal_attention is not False

    @property
    def head_file(self) -> Path | None:
        """The head beside a GGUF file (see head_file.py)."""
        last = self.parts[-1] if self.parts and self.format == "gguf" else None
        return last if last is not None and last.suffix == SUFFIX else None

    @property
    def has_listwise_markers(self) -> bool:
        """Whether the vocabulary has the tokens whose states jina-reranker-v3 compares."""
        return all(self.token_id(marker) is not None for marker in LISTWISE_MARKERS)

    def token_id(self, text: str) -> int | None:
        """The id of the single token for `text`, None if there is none.

        `text` is plain text. Vocabularies encode it: byte-level BPE writes a letter for each byte,
        SentencePiece and WordPiece write U+2581 for the space before a word.
        """
        stored = text
        if self.tokenizer_model == "gpt2":
            stored = "".join(_BYTE_LETTERS[byte] for byte in text.encode("utf-8", "surrogatepass"))
        elif self.tokenizer_model in ("llama", "t5", "bert", "gemma4"):
            stored = text.replace(" ", "\u2581")
        found = self.tokens.index_of(stored)
        return self.tokens.index_of(text) if found is None else found

    def ids_of(self, texts: Iterable[str]) -> dict[str, int]:
        """The ids of those texts that are single tokens, by text."""
        return {text: found for text in texts if (found := self.token_id(text)) is not None}

    def token_ids(self, texts: Iterable[str]) -> tuple[int, ...]:
        """The ids of texts that are single tokens, such as the labels of a recipe."""
        found = [self.token_id(text) for text in texts]
        return tuple(one for one in found if one is not None)


def _byte_letters() -> tuple[str, ...]:
    """The letter that byte-level BPE writes for each byte: the same if printable, else from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return tuple(chr(byte if byte in printable else next(spare)) for byte in range(256))


_BYTE_LETTERS = _byte_letters()
