"""A random cross-encoder of a real shape, for measuring speed: python bench/encoder.py FOLDER

XLM-R with a rank head, 12 layers of 384 as multilingual-e5-small, in Q8_0. Tokenizer and keys are those of
tests/golden/xlmr-head.gguf.
"""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
import numpy as np

GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "xlmr-head.gguf"
LAYERS, WIDTH, FEED_FORWARD, HEADS, WINDOW = 12, 384, 1536, 12, 512
_SIZES = {
    "bert.block_count": LAYERS,
    "bert.embedding_length": WIDTH,
    "bert.feed_forward_length": FEED_FORWARD,
    "bert.attention.head_count": HEADS,
    "bert.context_length": WINDOW,
    "general.file_type": int(gguf.LlamaFileType.MOSTLY_Q8_0),
}


def make(folder: Path) -> Path:
    """The file's path; made first where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "xlmr-head-12x384-q8_0.gguf"
    if target.exists():
        return target
    reader = gguf.GGUFReader(GOLDEN)
    part = target.with_suffix(".part")
    writer = gguf.GGUFWriter(part, "bert")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            kind = field.types[0]
            inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, _SIZES.get(field.name, field.contents()), kind, inner)
    random = np.random.default_rng(1)
    small = {64: WIDTH, 128: FEED_FORWARD, 256: WINDOW}
    for tensor in reader.tensors:
        _, _, rest = tensor.name.partition("blk.0.")
        if tensor.name.startswith("blk.") and not rest:
            continue
        shape = [small.get(int(size), int(size)) for size in reversed(tensor.shape)]
        for name in [f"blk.{layer}.{rest}" for layer in range(LAYERS)] if rest else [tensor.name]:
            if "norm.weight" in name:
                writer.add_tensor(name, np.ones(shape, np.float32))
                continue
            values = random.normal(0, 0.05, shape).astype(np.float32)
            if len(shape) == 2 and shape[1] % 32 == 0 and shape[0] > 1 and "position" not in name:
                kind = gguf.GGMLQuantizationType.Q8_0
                writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
            else:
                writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return part.rename(target)


if __name__ == "__main__":
    print(make(Path(sys.argv[1])))
