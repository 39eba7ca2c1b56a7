"""(pure) Which token's row is zeroed for a recipe with a single label, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from ggufs import rewrite, write
from rerankd.backends.llama import zero_row
from rerankd.backends.llama.zero_row import ZeroRow
from rerankd.domain import Normalization, Recipe, Refusal
from rerankd.formats import model_files
from rerankd.formats.metadata import Matrix, ModelMetadata
from support import GOLDEN

RECIPE = Recipe(
    "causal_lm", 512, Normalization("sigmoid"), template="<|a|>{query}{document}", labels=("yes",)
)
METADATA = ModelMetadata(
    Path("m.gguf"),
    "qwen3",
    control_tokens={"<|a|>": 1, "<|b|>": 2, "<|im_end|>": 3, "<|fim_pad|>": 5, "<unk>": 6},
    output_matrix=Matrix(0, 1000, 20, 34),
    bos_id=None,
)


def token_of(**more: Any) -> int | None:
    return zero_row.unused_token(replace(METADATA, **more), RECIPE)


def test_padding_of_the_vocabulary_comes_first_then_control_tokens() -> None:
    assert token_of(unused_token=19) == 19
    assert token_of() == 2
    assert token_of(bos_id=2) is None
    assert token_of(unknown_id=2) is None
    assert token_of(control_tokens={"<|a|>": 1}) is None
    assert token_of(control_tokens={"<pad>": 0, "<eos>": 1, "<bos>": 2}, eos_id=1, bos_id=2) == 0


def test_the_patch_is_the_row() -> None:
    found = zero_row.plan(replace(METADATA, unused_token=19), RECIPE)
    assert isinstance(found, ZeroRow)
    assert (found.token, found.patch.offset, found.patch.size_bytes) == (19, 1000 + 19 * 34, 34)
    assert zero_row.plan(METADATA, replace(RECIPE, labels=("yes", "no"))) is None


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"control_tokens": {}}, "no unused|has none"),
        ({"output_matrix": None}, "unknown form"),
        ({"has_output_bias": True}, "bias to each logit"),
        ({"unused_token": 20}, "has none"),
    ],
)
def test_a_model_without_such_a_row_is_refused(more: dict[str, Any], reason: str) -> None:
    found = zero_row.plan(replace(METADATA, **more), RECIPE)
    assert isinstance(found, Refusal) and found.next_step
    assert any(words in found.reason for words in reason.split("|"))


@pytest.mark.parametrize("name", ["qwen3-headless", "qwen2-labels", "gemma-yes"])
def test_the_row_of_a_file_is_found_in_its_bytes(name: str) -> None:
    path = GOLDEN / f"{name}.gguf"
    matrix = model_files.read(path).output_matrix
    assert matrix is not None
    data = next(one.data for one in gguf.GGUFReader(path).tensors if one.name == "token_embd.weight")
    raw = path.read_bytes()
    for row in (0, 7, matrix.rows - 1):
        at = matrix.offset + row * matrix.row_bytes
        assert raw[at : at + matrix.row_bytes] == data[row].tobytes()


def test_a_separate_output_matrix_is_used(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.gguf",
        tensors={"token_embd.weight": (10, 32), "blk.0.x": (4, 32), "output.weight": (10, 32)},
    )
    metadata = model_files.read(path)
    (tensor,) = (one for one in gguf.GGUFReader(path).tensors if one.name == "output.weight")
    assert metadata.output_matrix == Matrix(0, tensor.data_offset, 10, 128) and metadata.has_output


def test_rows_of_quantised_matrices(tmp_path: Path) -> None:
    def quantised(held: dict[str, Any]) -> dict[str, Any]:
        return held | {"token_embd.weight": np.asarray(held["token_embd.weight"], np.float16)}

    path = rewrite(GOLDEN / "qwen3-headless.gguf", tmp_path / "m.gguf", tensors=quantised)
    matrix = model_files.read(path).output_matrix
    assert matrix is not None and (matrix.rows, matrix.row_bytes) == (1664, 128)
