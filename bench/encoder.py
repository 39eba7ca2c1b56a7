"""Creates random cross-encoders of real shapes for speed measurements: python bench/encoder.py FOLDER [SHAPE]

XLM-R with a rank head: `small` has 12 layers of 384 like multilingual-e5-small, in Q8_0; `large` 24 layers of
1,024 like bge-reranker-v2-m3, in F16; `large-q8` and `large-q4` the same in Q8_0 and Q4_K. Tokenizer and
metadata are those of tests/golden/xlmr-head.gguf.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from rerankd.backends.llama.build import tiny

GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "xlmr-head.gguf"


@dataclass(frozen=True)
class Shape:
    """The sizes of a model, and the type of its matrices."""

    layers: int
    width: int
    feed_forward: int
    heads: int
    max_length: int
    kind: gguf.GGMLQuantizationType
    file_type: gguf.LlamaFileType


_KINDS, _TYPES = gguf.GGMLQuantizationType, gguf.LlamaFileType
SHAPES = {
    "small": Shape(12, 384, 1536, 12, 512, _KINDS.Q8_0, _TYPES.MOSTLY_Q8_0),
    "large": Shape(24, 1024, 4096, 16, 1024, _KINDS.F16, _TYPES.MOSTLY_F16),
    "large-q8": Shape(24, 1024, 4096, 16, 1024, _KINDS.Q8_0, _TYPES.MOSTLY_Q8_0),
    "large-q4": Shape(24, 1024, 4096, 16, 1024, _KINDS.Q4_K, _TYPES.MOSTLY_Q4_K_M),
}


def make(folder: Path, name: str = "small") -> Path:
    """Return the path of the file; create it if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = SHAPES[name]
    sizes = {
        "bert.block_count": shape.layers,
        "bert.embedding_length": shape.width,
        "bert.feed_forward_length": shape.feed_forward,
        "bert.attention.head_count": shape.heads,
        "bert.context_length": shape.max_length,
        "general.file_type": int(shape.file_type),
    }
    target = folder / f"xlmr-head-{shape.layers}x{shape.width}-{shape.kind.name.lower()}.gguf"
    if target.exists():
        return target
    reader = gguf.GGUFReader(GOLDEN)
    part = target.with_suffix(".part")
    writer = gguf.GGUFWriter(part, "bert")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            kind = field.types[0]
            inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, sizes.get(field.name, field.contents()), kind, inner)
    random = np.random.default_rng(1)
    grown = {64: shape.width, 128: shape.feed_forward, 256: shape.max_length}
    for tensor in reader.tensors:
        _, _, rest = tensor.name.partition("blk.0.")
        if tensor.name.startswith("blk.") and not rest:
            continue
        size = [grown.get(int(length), int(length)) for length in reversed(tensor.shape)]
        for name in [f"blk.{layer}.{rest}" for layer in range(shape.layers)] if rest else [tensor.name]:
            if "norm.weight" in name:
                writer.add_tensor(name, np.ones(size, np.float32))
                continue
            values = random.normal(0, 0.05, size).astype(np.float32)
            is_matrix = len(size) == 2 and size[1] % 32 == 0 and size[0] > 1 and "position" not in name
            if is_matrix and shape.kind == _KINDS.Q4_K:  # the package gguf writes no such blocks
                kind = "Q8_0" if name == "token_embd.weight" else "Q4_K"
                _, _, data = tiny.matrix(name.removesuffix(".weight"), kind, *size)
                writer.add_tensor(name, data, raw_dtype=_KINDS[kind])
            elif is_matrix:
                writer.add_tensor(name, gguf.quants.quantize(values, shape.kind), raw_dtype=shape.kind)
            else:
                writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return part.rename(target)


if __name__ == "__main__":
    print(make(Path(sys.argv[1]), *sys.argv[2:3]))
