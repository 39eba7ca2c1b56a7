"""Which tensors the file of a causal model has (pure). The model of a file with others would compute
something else, so it is rejected."""

from __future__ import annotations

from collections.abc import Collection

from rerankd.errors import ModelFileError
from rerankd.formats.weights import Weights

_OUTSIDE = {"token_embd.weight", "output_norm.weight"}
# Those of the head, which is not a part of an architecture.
_OF_HEAD = {"output.weight", "cls.weight", "cls.output.weight"}


def check(weights: Weights, of_layer: Collection[str], optional: Collection[str] = ()) -> None:
    """Raise ModelFileError if the file has other tensors than those `of_layer` in each layer, the embeddings,
    the last norm and a head. `optional` ones are outside of layers."""
    layers: int = weights.key("block_count")
    found = {*weights.names} - _OF_HEAD - {*optional}
    needed = {f"blk.{at}.{name}" for at in range(layers) for name in of_layer} | _OUTSIDE
    if other := sorted(found ^ needed):
        what = "lacks the tensor" if other[0] in needed else "has the unknown tensor"
        raise ModelFileError(f"{weights.path}: it {what} {other[0]} ({weights.architecture}).")
