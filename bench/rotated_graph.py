"""The graphs of rotated_int8.py for ONNX Runtime: rotated weights, products, forward pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Floats = NDArray[np.float32]
_MICROSOFT = "com.microsoft"
_FLOAT = onnx.TensorProto.FLOAT


def hadamard(size: int) -> Floats:
    """A Hadamard matrix of a power of two with random signs of its rows, as an orthogonal matrix."""
    signs = np.random.default_rng(size).choice([-1.0, 1.0], size) if size > 1 else np.ones(1)
    found = np.ones((1, 1))
    while len(found) < size:
        found = np.block([[found, found], [found, -found]])
    return (signs[:, None] * found / size**0.5).astype(np.float32)


def blocks(columns: int) -> tuple[Floats, Floats]:
    """Two matrices whose Kronecker product rotates each block of columns; the first is 1 for small blocks."""
    size = min(columns & -columns, 1024)
    first = 1 if size <= 128 else 32 if size == 1024 else 16
    return hadamard(first), hadamard(size // first)


def rotated(matrix: Floats) -> Floats:
    """The matrix [rows, columns] for inputs that Graph.rotate has rotated."""
    first, second = blocks(matrix.shape[1])
    cut = matrix.reshape(len(matrix), -1, len(first), len(second))
    return np.einsum("rbij,ik,jl->rbkl", cut, first, second, optimize=True).reshape(matrix.shape)


def pair_scale(matrix: Floats) -> Floats:
    """The scale [rows, 1] with which no pair of neighbouring products exceeds 16 bits."""
    pairs = matrix.reshape(len(matrix), -1, 2)
    sums = [np.maximum(sign * pairs, 0).sum(2).max(1) for sign in (1, -1)]
    # Rounding may add half a step to each of two weights: 255 · 128 = 32,640 still fits.
    return np.maximum(np.maximum(*sums), 1e-30)[:, None] / 127


class Graph:
    """An ONNX graph under construction, and how its products compute: `arithmetic` is "f32" or "int8"."""

    def __init__(self, arithmetic: str, *, is_rotated: bool, scale: Callable[[Floats], Floats]) -> None:
        self.is_int8, self.is_rotated, self.scale = arithmetic == "int8", is_rotated, scale
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def const(self, value: Any, kind: Any = np.float32) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value, kind), f"c{len(self.constants)}"))
        return self.constants[-1].name

    def op(self, kind: str, *inputs: str, of: str = "", name: str = "", **attributes: Any) -> str:
        name = name or f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], domain=of, **attributes))
        return name

    def shape(self, x: str, *sizes: int) -> str:
        return self.op("Reshape", x, self.const(sizes, np.int64))

    def rotate(self, x: str, columns: int) -> str:
        first, second = blocks(columns)
        cut = self.shape(x, -1, len(first), len(second)) if len(first) > 1 else self.shape(x, -1, len(second))
        turned = self.op("MatMul", cut, self.const(second))
        if len(first) > 1:
            turned = self.op("MatMul", self.const(first.T), turned)
        return self.shape(turned, -1, columns)

    def linear(self, x: str, *matrices: Floats, turn: bool) -> list[str]:
        """The products of x [tokens, columns] with matrices [rows, columns]. `turn` rotates both first."""
        if turn and self.is_rotated:
            x, matrices = self.rotate(x, matrices[0].shape[1]), tuple(map(rotated, matrices))
        if not self.is_int8:
            return [self.op("MatMul", x, self.const(matrix.T)) for matrix in matrices]
        largest = self.op("ReduceMax", self.op("Abs", x), self.const([-1], np.int64), keepdims=1)
        step = self.op("Max", self.op("Mul", largest, self.const(1 / 127)), self.const(1e-20))
        each = self.shape(step, -1)
        zeros = self.op("Expand", self.const([128], np.uint8), self.op("Shape", each))
        eight = self.op("QuantizeLinear", x, each, zeros, axis=0)
        return [self._product(eight, step, matrix) for matrix in matrices]

    def _product(self, eight: str, step: str, matrix: Floats) -> str:
        scale = self.scale(matrix)
        weights = self.const(np.rint(matrix / scale).clip(-127, 127).T, np.int8)
        parts = (
            weights,
            self.const(1),
            self.const(scale[:, 0]),
            self.const(128, np.uint8),
            self.const(0, np.int8),
        )
        return self.op("Mul", self.op("MatMulIntegerToFloat", eight, *parts, of=_MICROSOFT), step)

    def session(self, result: str, width: int, threads: int) -> Callable[[Floats], Floats]:
        """The function that computes the states of embeddings [texts, tokens, width]."""
        ends = [helper.make_tensor_value_info(name, _FLOAT, [None, None, width]) for name in ("x", result)]
        graph = helper.make_graph(self.nodes, "g", ends[:1], ends[1:], self.constants)
        versions = [helper.make_opsetid("", 21), helper.make_opsetid(_MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=versions, ir_version=10)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        made = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        return lambda x: made.run(None, {"x": x})[0]


class Model:
    """Weights of a GGUF file, in float32, and its sizes."""

    def __init__(self, path: Path) -> None:
        reader = gguf.GGUFReader(path)
        self.kind = str(reader.fields["general.architecture"].contents())
        self.stored = {tensor.name: tensor for tensor in reader.tensors}
        self.folded: dict[str, Floats] = {}
        key = {name.removeprefix(f"{self.kind}."): field for name, field in reader.fields.items()}
        number = {
            name: key[name].contents() for name in key if name.startswith(("block", "embed", "att", "rope"))
        }
        self.layers, self.width = number["block_count"], number["embedding_length"]
        self.heads = number["attention.head_count"]
        self.kv_heads = number.get("attention.head_count_kv", self.heads)
        self.head_size = number.get("attention.key_length", self.width // self.heads)
        self.epsilon = (
            number.get("attention.layer_norm_rms_epsilon") or number["attention.layer_norm_epsilon"]
        )
        self.base = number.get("rope.freq_base", 10000.0)
        self.turn: Floats | None = None

    def has(self, name: str) -> bool:
        return f"{name}.weight" in self.stored

    def get(self, name: str, part: str = "weight") -> Floats:
        name = f"{name}.{part}"
        if (found := self.folded.get(name)) is not None:
            return found
        tensor = self.stored[name]
        shape = [int(size) for size in tensor.shape[::-1]]
        return gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32).reshape(shape)

    def fold(self) -> None:
        """Rotate what can be rotated in the weights."""
        within = hadamard(self.head_size)
        stream = np.linalg.qr(np.random.default_rng(1).standard_normal((self.width, self.width)))[0]
        stream = stream.astype(np.float32)
        is_folded = self.kind in ("llama", "qwen3")
        for at in range(self.layers):
            of = f"blk.{at}."
            readers = {"attn_norm": ("attn_q", "attn_k", "attn_v"), "ffn_norm": ("ffn_gate", "ffn_up")}
            for norm, names in readers.items() if is_folded else ():
                gain = self.get(of + norm)
                self.folded |= {f"{of}{name}.weight": (self.get(of + name) * gain) @ stream for name in names}
                self.folded[f"{of}{norm}.weight"] = np.ones_like(gain)
            for part in ("weight", "bias") if self.kind == "bert" else ("weight",):
                value = self.get(of + "attn_v", part)
                cut = value.reshape(self.kv_heads, self.head_size, -1)
                self.folded[f"{of}attn_v.{part}"] = np.einsum("hnc,nm->hmc", cut, within).reshape(value.shape)
            out = self.get(of + "attn_output")
            out = (out.reshape(self.width, -1, self.head_size) @ within).reshape(out.shape)
            self.folded[of + "attn_output.weight"] = stream.T @ out if is_folded else out
            if is_folded:
                self.folded[of + "ffn_down.weight"] = stream.T @ self.get(of + "ffn_down")
        self.turn = stream if is_folded else None


def attention(g: Graph, model: Model, q: str, k: str, v: str, at: int) -> str:
    """Attention of states [texts · tokens, heads · n], in decoders with rotary positions and causal."""

    def heads(x: str, count: int) -> str:
        sizes = g.op("Concat", "texts", g.const([-1, count, model.head_size], np.int64), axis=0)
        return g.op("Reshape", x, sizes)

    is_encoder = model.kind == "bert"
    q, k, v = heads(q, model.heads), heads(k, model.kv_heads), heads(v, model.kv_heads)
    if model.has(f"blk.{at}.attn_q_norm"):
        q, k = (norm(g, model, x, f"blk.{at}.attn_{one}_norm") for x, one in ((q, "q"), (k, "k")))
    q, k, v = (g.op("Transpose", x, perm=[0, 2, 1, 3]) for x in (q, k, v))
    if not is_encoder:
        local = model.kind == "gemma3" and (at + 1) % 6
        powers = np.arange(0, model.head_size, 2) / model.head_size
        angles = np.arange(1024)[:, None] / (10000.0 if local else model.base) ** powers
        tables = g.const(np.cos(angles)), g.const(np.sin(angles))
        # GGUF's converter reorders Llama's rows for pairs of neighbours.
        pairs = {"interleaved": int(model.kind == "llama"), "of": _MICROSOFT}
        q, k = (g.op("RotaryEmbedding", x, "places", *tables, **pairs) for x in (q, k))
    split = g.op("Concat", "texts", g.const([model.kv_heads, -1, model.head_size], np.int64), axis=0)
    joined = g.op("Concat", "texts", g.const([model.heads, -1, model.head_size], np.int64), axis=0)
    scores = g.op(
        "FusedMatMul", g.op("Reshape", q, split), k, of=_MICROSOFT, transB=1, alpha=model.head_size**-0.5
    )
    if not is_encoder:
        scores = g.op("Add", scores, g.op("Concat", *["mask"] * (model.heads // model.kv_heads), axis=0))
    mixed = g.op("Reshape", g.op("MatMul", g.op("Softmax", scores, axis=-1), v), joined)
    return g.shape(g.op("Transpose", mixed, perm=[0, 2, 1, 3]), -1, model.heads * model.head_size)


def norm(g: Graph, model: Model, x: str, name: str) -> str:
    gain = g.const(model.get(name))
    if model.kind == "bert":
        bias = g.const(model.get(name, "bias"))
        return g.op("LayerNormalization", x, gain, bias, axis=-1, epsilon=model.epsilon)
    return g.op("SimplifiedLayerNormalization", x, gain, axis=-1, epsilon=model.epsilon)


def inputs(g: Graph, model: Model) -> str:
    """Add what depends on the number of texts and tokens; returns the embeddings [texts · tokens, width]."""
    g.op("Shape", "x", name="texts", start=0, end=1)
    if model.kind != "bert":
        tokens = g.op("Squeeze", g.op("Shape", "x", start=1, end=2))
        row = g.op("Range", g.const(0, np.int64), tokens, g.const(1, np.int64))
        places = g.op("Concat", "texts", g.const([1], np.int64), axis=0)
        g.op("Expand", row, places, name="places")
        both = [g.op("Unsqueeze", row, g.const([axis], np.int64)) for axis in (0, 1)]
        g.op("Where", g.op("Greater", *both), g.const(-1e9), g.const(0), name="mask")
    return g.shape("x", -1, model.width)


def body(g: Graph, model: Model) -> str:
    """The states of the last layer, before the last norm of a decoder."""
    is_encoder, is_online = model.kind == "bert", model.turn is None
    x = inputs(g, model)
    x = norm(g, model, x, "token_embd_norm") if is_encoder else x

    def linear(x: str, at: int, *names: str, turn: bool) -> list[str]:
        found = g.linear(x, *(model.get(f"blk.{at}.{name}") for name in names), turn=turn)
        if not is_encoder:
            return found
        biases = [model.get(f"blk.{at}.{name}", "bias") for name in names]
        return [g.op("Add", y, g.const(bias)) for y, bias in zip(found, biases, strict=True)]

    def behind(y: str, name: str) -> str:
        return norm(g, model, y, name) if model.kind == "gemma3" else y

    for at in range(model.layers):
        of = f"blk.{at}."
        h = x if is_encoder else norm(g, model, x, of + "attn_norm")
        q, k, v = linear(h, at, "attn_q", "attn_k", "attn_v", turn=is_online)
        (out,) = linear(attention(g, model, q, k, v, at), at, "attn_output", turn=False)
        x = g.op("Add", x, behind(out, of + "post_attention_norm"))
        x = norm(g, model, x, of + "attn_output_norm") if is_encoder else x
        if is_encoder:
            (up,) = linear(x, at, "ffn_up", turn=True)
            (down,) = linear(g.op("Gelu", up, of=_MICROSOFT), at, "ffn_down", turn=True)
            x = norm(g, model, g.op("Add", x, down), of + "layer_output_norm")
            continue
        gate, up = linear(norm(g, model, x, of + "ffn_norm"), at, "ffn_gate", "ffn_up", turn=is_online)
        act = (
            g.op("Gelu", gate, approximate="tanh")
            if model.kind == "gemma3"
            else g.op("QuickGelu", gate, of=_MICROSOFT, alpha=1.0)
        )
        (down,) = linear(g.op("Mul", act, up), at, "ffn_down", turn=True)
        x = g.op("Add", x, behind(down, of + "post_ffw_norm"))
    return g.op("Reshape", x, g.op("Shape", "x"))
