"""Tiny models with vocabularies of real size, for measurements of the service: python bench/vocabularies.py
FOLDER

They are golden models (tests/golden) with another vocabulary. `unigram` has the built-in model's, which is
that of XLM-RoBERTa. Those of `wordpiece` (BERT) and `bytes` (Qwen) are trained on the benchmark's words until
a word has the usual number of tokens, then padded to the size of the real ones.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import checkpoints
from rerankd.benchmark.load import text
from rerankd.config import from_machine
from rerankd.hub.store import Store
from rerankd.progress import silent

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
_NORMAL, _UNUSED = 1, 5
_LENGTH = 512
_ARRAY = gguf.GGUFValueType.ARRAY

Values = Mapping[str, Any]


def unigram() -> Values:
    """The vocabulary of the built-in model."""
    path = Store(from_machine().home).locate("builtin:e5", silent)
    fields = gguf.GGUFReader(path).fields
    kept = {name: one.contents() for name, one in fields.items() if name.startswith("tokenizer.ggml.")}
    return {name: value for name, value in kept.items() if not name.endswith("token_type_count")}


def wordpiece(size: int = 30_522) -> list[str]:
    """The pieces in the form of tokenizer.json."""
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=3_000, special_tokens=marks, show_progress=False)
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return _padded(_trained(tokenizer, trainer), size)


def bytes_(size: int = 151_936) -> Values:
    """The control tokens, and the answers as single tokens, are those of the golden model."""
    fields = gguf.GGUFReader(GOLDEN / "qwen3-headed.gguf").fields
    golden = {name: one.contents() for name, one in fields.items() if name.startswith("tokenizer.ggml.")}
    trainer = trainers.BpeTrainer(
        vocab_size=3_000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces = _trained(tokenizer, trainer, "yes\nno\n" * 10_000)
    merges = [" ".join(pair) for pair in _merges(tokenizer)]
    kinds = [_NORMAL] * len(pieces)
    old, old_kinds = golden["tokenizer.ggml.tokens"], golden["tokenizer.ggml.token_type"]
    for piece, kind in zip(old, old_kinds, strict=True):
        if kind != _NORMAL:
            pieces.append(piece)
            kinds.append(kind)
    places = {piece: at for at, piece in enumerate(pieces)}
    ids = {name: places[old[at]] for name, at in golden.items() if name.endswith("_id")}
    return {
        **golden,
        **ids,
        "tokenizer.ggml.tokens": _padded(pieces, size),
        "tokenizer.ggml.token_type": kinds + [_UNUSED] * (size - len(pieces)),
        "tokenizer.ggml.merges": merges,
    }


def _trained(tokenizer: Tokenizer, trainer: Any, more: str = "") -> list[str]:
    """The pieces of a vocabulary trained on the benchmark's words, by id."""
    corpus = text(random.Random(1), 200_000)
    tokenizer.train_from_iterator([corpus, more], trainer)
    vocabulary = tokenizer.get_vocab()
    return sorted(vocabulary, key=vocabulary.__getitem__)


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    return found


def _padded(pieces: list[str], size: int) -> list[str]:
    """Add pieces that occur in no text, to the size of the real vocabulary."""
    return [*pieces, *(f"<unused {at}>" for at in range(size - len(pieces)))]


def _bert(target: Path) -> None:
    """Write a BERT cross-encoder with the `wordpiece` vocabulary; its weights are a hole."""
    pieces = wordpiece()
    sizes = {"vocab_size": len(pieces), "max_position_embeddings": _LENGTH}
    checkpoints.copy("bert-pairs", target, **sizes)
    tokenizer = json.loads((target / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] = {piece: at for at, piece in enumerate(pieces)}
    (target / "tokenizer.json").write_text(json.dumps(tokenizer))
    rows = {"word_embeddings.weight": len(pieces), "position_embeddings.weight": _LENGTH}
    shapes = {
        name: [next((many for end, many in rows.items() if name.endswith(end)), shape[0]), *shape[1:]]
        for name, (_, shape, _) in checkpoints.read(target / "model.safetensors").items()
    }
    checkpoints.write_hollow(target / "model.safetensors", shapes)


def _gguf(target: Path, base: str, values: Values) -> None:
    """Write a golden model with these keys of its header; its embeddings are 0."""
    reader = gguf.GGUFReader(GOLDEN / f"{base}.gguf")
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        name = field.name
        if name.startswith(("GGUF.", "tokenizer.ggml.")) or name == "general.architecture":
            continue
        value = _LENGTH if name.endswith(".context_length") else field.contents()
        own = field.types[0]
        writer.add_key_value(name, value, own, field.types[-1] if own == _ARRAY else None)
    for name, value in values.items():
        _add(writer, name, value)
    rows = len(values["tokenizer.ggml.tokens"])
    for tensor in reader.tensors:
        data = np.array(tensor.data)
        if tensor.name == "token_embd.weight":
            data = np.zeros((rows, data.shape[1]), np.float16)
        elif tensor.name == "position_embd.weight":
            data = np.zeros((_LENGTH, data.shape[1]), np.float32)
        writer.add_tensor(tensor.name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add(writer: gguf.GGUFWriter, name: str, value: Any) -> None:
    if name == "tokenizer.ggml.precompiled_charsmap":
        writer.add_key_value(name, bytes(value), _ARRAY, gguf.GGUFValueType.UINT8)
    elif isinstance(value, list):
        writer.add_array(name, value)
    elif isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    else:
        writer.add_string(name, value)


KINDS = ("wordpiece", "unigram", "bytes")


def model(folder: Path, kind: str) -> Path:
    """Return the path of the model in this folder; write it if it is missing."""
    target = folder / (kind if kind == "wordpiece" else f"{kind}.gguf")
    if not target.exists():
        if kind == "wordpiece":
            _bert(target)
        elif kind == "unigram":
            _gguf(target, "xlmr-head", unigram())
        else:
            _gguf(target, "qwen3-headed", bytes_())
    return target


if __name__ == "__main__":
    for one in KINDS:
        print(model(Path(sys.argv[1]), one))
