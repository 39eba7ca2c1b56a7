"""An ONNX graph under construction, and the session that computes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from rerankd.backends.onnx import quantise
from rerankd.backends.onnx.rotation import Rotation
from rerankd.formats.weights import Floats

Precision = Literal["int8", "f32"]
Matrix = Callable[[], Floats]
"""Reads and folds a matrix [rows, columns]."""
Array = NDArray[Any]
Session = Callable[[Mapping[str, Array]], list[Array]]
"""Computes the outputs from the inputs."""

MICROSOFT = "com.microsoft"
_VERSIONS = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)]
# Smaller constants are part of the graph: ONNX Runtime computes with them while it optimises.
_LARGE = 1024
_ZERO = 128


class Graph:
    """A graph whose products compute in int8 or float32. Matrices are prepared by `threads` threads while the
    graph is built. Values are named; `op` returns the name of a node's result."""

    def __init__(self, precision: Precision, threads: int) -> None:
        self.precision = precision
        self._threads = threads
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._small: dict[tuple[Any, ...], str] = {}
        self._large: dict[str, Callable[[], Array]] = {}
        self._preparing = ThreadPoolExecutor(threads)

    def input(self, name: str, *shape: int | str, kind: int = TensorProto.FLOAT) -> str:
        """Declare an input; a word is a size that differs between calls."""
        self._inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def op(self, kind: str, *inputs: str, of: str = "", **attributes: Any) -> str:
        name = f"n{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [name], domain=of, **attributes))
        return name

    def const(self, value: Any, kind: Any = np.float32) -> str:
        array = np.asarray(value, kind, order="C")
        if array.nbytes >= _LARGE:
            return self._external(lambda: array, array.shape, helper.np_dtype_to_tensor_dtype(array.dtype))
        key = (array.tobytes(), array.shape, array.dtype)
        if key not in self._small:
            self._small[key] = f"c{len(self._small)}"
            self._constants.append(numpy_helper.from_array(array, self._small[key]))
        return self._small[key]

    def ints(self, *values: int) -> str:
        """A vector of integers, for axes and shapes."""
        return self.const(values, np.int64)

    def reshape(self, x: str, *sizes: int) -> str:
        return self.op("Reshape", x, self.ints(*sizes))

    def rotate(self, x: str, rotation: Rotation) -> str:
        """Return x · R for states [tokens, size] (see Rotation)."""
        first, second = rotation.matrices
        is_one = rotation.first == 1
        blocks = (rotation.second,) if is_one else (rotation.first, rotation.second)
        turned = self.op("MatMul", self.reshape(x, -1, *blocks), self.const(second))
        if not is_one:
            turned = self.op("MatMul", self.const(first.T), turned)
        return self.reshape(turned, -1, rotation.size)

    def linear(self, x: str, columns: int, matrices: Sequence[tuple[int, Matrix]]) -> list[str]:
        """Return the products of states x [tokens, columns] with matrices [rows, columns], each given with
        its number of rows."""
        if self.precision == "f32":
            return [self.exact(x, rows, columns, read) for rows, read in matrices]
        largest = self.op("ReduceMax", self.op("Abs", x), self.ints(-1), keepdims=1)
        step = self.op("Max", self.op("Mul", largest, self.const(1 / 127)), self.const(1e-20))
        each = self.reshape(step, -1)
        zeros = self.op("Expand", self.const([_ZERO], np.uint8), self.op("Shape", each))
        eight = self.op("QuantizeLinear", x, each, zeros, axis=0)
        return [self._product(eight, step, rows, columns, read) for rows, read in matrices]

    def exact(self, x: str, rows: int, columns: int, read: Matrix) -> str:
        """Return the product of x [·, columns] with a small matrix [rows, columns], in float32."""
        return self.op("MatMul", x, self._floats(rows, columns, read))

    def session(self, outputs: Mapping[str, str]) -> Session:
        """Compile the graph. `outputs` names the values that it returns, in this order: name -> value. Waits
        for the matrices. Raises what `Matrix` raises, and ONNX Runtime's errors."""
        for name, value in outputs.items():
            self._nodes.append(helper.make_node("Identity", [value], [name]))
        ends = [helper.make_empty_tensor_value_info(name) for name in outputs]
        graph = helper.make_graph(self._nodes, "model", self._inputs, ends, self._constants)
        model = helper.make_model(graph, opset_imports=_VERSIONS, ir_version=10)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.enable_mem_pattern = False  # it is for inputs whose shapes do not change
        with self._preparing:
            held = {
                name: onnxruntime.OrtValue.ortvalue_from_numpy(read()) for name, read in self._large.items()
            }
        options.add_external_initializers([*held], [*held.values()])
        made = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        names = [*outputs]

        def run(inputs: Mapping[str, Array]) -> list[Array]:
            found: list[Array] = made.run(names, inputs)
            return found

        return run

    def _floats(self, rows: int, columns: int, read: Matrix) -> str:
        made = self._preparing.submit(lambda: np.ascontiguousarray(read().T))
        return self._external(made.result, (columns, rows), TensorProto.FLOAT)

    def _product(self, eight: str, step: str, rows: int, columns: int, read: Matrix) -> str:
        made = self._preparing.submit(lambda: quantise.int8(read()))
        numbers = self._external(lambda: made.result().numbers, (columns, rows), TensorProto.INT8)
        scales = self._external(lambda: made.result().scales, (rows,), TensorProto.FLOAT)
        zeros = self.const(_ZERO, np.uint8), self.const(0, np.int8)
        product = self.op("MatMulIntegerToFloat", eight, numbers, self.const(1), scales, *zeros, of=MICROSOFT)
        return self.op("Mul", product, step)

    def _external(self, read: Callable[[], Array], shape: Sequence[int], kind: int) -> str:
        """A constant outside of the graph's own message, which may have 2 GB."""
        name = f"w{len(self._large)}"
        self._large[name] = read
        tensor = TensorProto(name=name, data_type=kind, dims=shape, data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value=name)
        self._constants.append(tensor)
        return name
