"""Write tiny GGUF files for tests, with the reference library."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from rerankd.formats.gguf_header import Strings

VOCABULARY = ("<s>", "</s>", "<|im_start|>", "yes", "no", "Ġyes", "<think>", "ðŁĺĢ", "\u2581the", "x")
CONTROL, USER_DEFINED = gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED


def write(
    path: Path,
    *,
    arch: str = "qwen3",
    tensors: Mapping[str, tuple[int, ...]] | None = None,
    tokens: Sequence[str] = VOCABULARY,
    extra: Mapping[str, Any] | None = None,
    **writer: Any,
) -> Path:
    """Write a small model file. `tensors` maps names to numpy shapes; `extra` sets keys."""
    out = gguf.GGUFWriter(path, arch, **writer)
    out.add_name("Tiny")
    out.add_context_length(512)
    out.add_embedding_length(32)
    out.add_block_count(1)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("qwen2")
    out.add_token_list(list(tokens))
    types = [gguf.TokenType.NORMAL] * len(tokens)
    types[:3] = [CONTROL] * 3
    types[6] = USER_DEFINED
    out.add_token_types(types)
    out.add_token_merges([f"a{i} b" for i in range(50)])
    out.add_eos_token_id(1)
    out.add_add_bos_token(False)
    for key, value in (extra or {}).items():
        add: Any = {str: out.add_string, bool: out.add_bool, int: out.add_uint32, list: out.add_array}[
            type(value)
        ]
        add(key, value)
    shapes = (
        tensors
        if tensors is not None
        else {"token_embd.weight": (len(tokens), 32), "output_norm.weight": (32,)}
    )
    for name, shape in shapes.items():
        out.add_tensor(name, np.zeros(shape, np.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


def strings(*texts: str) -> Strings:
    """A vocabulary as the header parser stores it."""
    blob, starts = b"", []
    for text in texts:
        starts.append(len(blob))
        raw = text.encode()
        blob += len(raw).to_bytes(8, "little") + raw
    return Strings(blob, starts)


def rewrite(
    source: Path,
    target: Path,
    *,
    keys: Mapping[str, Any] | None = None,
    tensors: Callable[[dict[str, Any]], dict[str, Any]] = lambda held: held,
    tensors_a_part: int = 0,
) -> Path:
    """Write a copy of an F32 or F16 file with changed keys and tensors.

    `tensors` receives the file's tensors by name (rows first) and returns those to write. With
    `tensors_a_part`, the copy is split into `TARGET-00001-of-…` and so on; the first of them is returned.
    """
    values, original = _contents(source)
    out = gguf.GGUFWriter(target, values[_ARCHITECTURE][0], split_max_tensors=tensors_a_part)
    for name, (value, kind, inner) in values.items():
        if name != _ARCHITECTURE:
            out.add_key_value(name, (keys or {}).get(name, value), kind, inner)
    for name, data in tensors(dict(original)).items():
        out.add_tensor(name, np.ascontiguousarray(data))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return next(target.parent.glob(f"{target.stem}-00001-of-*")) if tensors_a_part else target


@cache
def _contents(source: Path) -> tuple[dict[str, tuple[Any, Any, Any]], dict[str, Any]]:
    """The keys of a file (value, type, element type) and its tensors. Cached, because the reader takes
    seconds for a vocabulary."""
    held = gguf.GGUFReader(source)
    keys = {
        name: (
            field.contents(),
            field.types[0],
            field.types[-1] if field.types[0] is gguf.GGUFValueType.ARRAY else None,
        )
        for name, field in held.fields.items()
        if not name.startswith("GGUF.")
    }
    return keys, {tensor.name: np.array(tensor.data) for tensor in held.tensors}


_ARCHITECTURE = "general.architecture"


def merged_attention(held: dict[str, Any]) -> dict[str, Any]:
    """Merge the query, key and value matrices of each layer, as in jina-reranker-v2's files."""
    merged = {name: data for name, data in held.items() if ".attn_q." not in name}
    for name in held:
        if ".attn_q." in name:
            parts = [
                merged.pop(name.replace("attn_q", other), held[name])
                for other in ("attn_q", "attn_k", "attn_v")
            ]
            merged[name.replace("attn_q", "attn_qkv")] = np.concatenate(parts)
    return merged
