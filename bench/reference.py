"""Reference implementations for crossencoder.py, in their own Python environment; JSON lines in and out.

Usage: `python bench/reference.py FOLDER SIDE THREADS`. SIDE is `torch-f32` or `torch-bf16`
(sentence-transformers' CrossEncoder, which sorts by length) or `ort-int8` (ONNX Runtime; weights and
activations quantised by its own tool, sorted batches of the same size).

Requires torch and sentence-transformers; for ORT also onnx, onnxscript and onnxruntime.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

BATCH = 32
Score = Callable[[str, list[str]], list[float]]


def torch_side(folder: Path, dtype: str, threads: int) -> Score:
    import torch
    from sentence_transformers import CrossEncoder

    torch.set_num_threads(threads)
    model = CrossEncoder(str(folder), device="cpu", model_kwargs={"dtype": getattr(torch, dtype)})

    def score(query: str, documents: list[str]) -> list[float]:
        pairs = [(query, text) for text in documents]
        found = model.predict(
            pairs, batch_size=BATCH, activation_fn=torch.nn.Identity(), convert_to_tensor=True
        )
        return [float(value) for value in found.float().reshape(-1)]

    return score


def ort_side(folder: Path, threads: int) -> Score:
    import onnxruntime
    from transformers import AutoTokenizer

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(quantised(folder)), options)
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def score(query: str, documents: list[str]) -> list[float]:
        order = sorted(range(len(documents)), key=lambda at: -len(documents[at]))
        found = [0.0] * len(documents)
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            inputs = tokenizer(
                [query] * len(batch), [documents[at] for at in batch], padding=True, truncation=True,
                return_tensors="np",
            )  # fmt: skip
            names = ("input_ids", "attention_mask", "token_type_ids")
            (logits,) = session.run(None, {name: inputs[name].astype(np.int64) for name in names})
            for at, value in zip(batch, logits[:, 0], strict=True):
                found[at] = float(value)
        return found

    return score


def quantised(folder: Path) -> Path:
    """Return the path of the model as int8 ONNX; create it if it is missing."""
    target = folder / "model-int8.onnx"
    if target.exists():
        return target
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
    names = ["input_ids", "attention_mask", "token_type_ids"]
    sizes = {0: torch.export.Dim("texts", min=1, max=64), 1: torch.export.Dim("tokens", min=2, max=512)}
    example = tuple(torch.ones((2, 16), dtype=torch.int64) for _ in names)
    whole, ready = folder / "model.onnx", folder / "model-ready.onnx"
    torch.onnx.export(
        model, example, str(whole), input_names=names, output_names=["logits"], dynamo=True,
        dynamic_shapes=[sizes] * 3, external_data=False,
    )  # fmt: skip
    quant_pre_process(str(whole), str(ready), skip_symbolic_shape=True)
    quantize_dynamic(str(ready), str(target), weight_type=QuantType.QInt8, per_channel=True)
    return target


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print to standard output, some of them from C
    folder, side, threads = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    kind, _, precision = side.partition("-")
    dtype = {"f32": "float32", "bf16": "bfloat16", "int8": ""}[precision]
    score = ort_side(folder, threads) if kind == "ort" else torch_side(folder, dtype, threads)
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(score(**json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
