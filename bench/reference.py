"""Reference implementations for crossencoder.py, in their own Python environment; JSON lines in and out.

Usage: `python bench/reference.py FOLDER SIDE THREADS`. SIDE is `torch-f32` or `torch-bf16`
(sentence-transformers' CrossEncoder, which sorts by length) or `ort-int8` (ONNX Runtime; weights and
activations quantised by its own tool, sorted batches of the same size), or `causal-f32` (transformers in
float32 on a GGUF file, which FOLDER then names; the log-odds of two labels after given token ids).

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
Score = Callable[..., list[float]]


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


def causal_side(file: Path, dtype: str, threads: int) -> Score:
    import torch
    from gguf import MODEL_ARCH, GGUFReader, dequantize, get_tensor_name_map
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.set_num_threads(threads)
    reader = GGUFReader(file)
    values = {
        key.removeprefix("qwen3."): field.contents()
        for key, field in reader.fields.items()
        if key.startswith("qwen3.")
    }
    config = Qwen3Config(
        vocab_size=len(reader.fields["tokenizer.ggml.tokens"].contents()),
        hidden_size=values["embedding_length"],
        intermediate_size=values["feed_forward_length"],
        num_hidden_layers=values["block_count"],
        num_attention_heads=values["attention.head_count"],
        num_key_value_heads=values["attention.head_count_kv"],
        head_dim=values["attention.key_length"],
        rms_norm_eps=values["attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": values["rope.freq_base"]},
        tie_word_embeddings=True,
    )
    stored = {tensor.name: tensor for tensor in reader.tensors}
    names = get_tensor_name_map(MODEL_ARCH.QWEN3, values["block_count"])
    model = Qwen3ForCausalLM(config).to(getattr(torch, dtype)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            tensor = stored[names.get_name(name, (".weight",))]
            matrix = dequantize(tensor.data, tensor.tensor_type).reshape(weight.shape)
            weight.copy_(torch.from_numpy(matrix.astype(np.float32)))

    @torch.inference_mode()
    def score(ids: list[list[int]], labels: list[int]) -> list[float]:
        found = []
        for one in ids:  # one by one: nothing is padded
            logits = model(torch.tensor([one]), logits_to_keep=1).logits[0, -1]
            found.append(float(logits[labels[0]] - logits[labels[1]]))
        return found

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
    if kind == "ort":
        score = ort_side(folder, threads)
    else:
        score = {"torch": torch_side, "causal": causal_side}[kind](folder, dtype, threads)
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(score(**json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
