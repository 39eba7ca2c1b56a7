"""No file outside a backend's folder imports the backend or contains its name, except those listed here with
a reason."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from rerankd.backends.base import Backend
from rerankd.backends.table import BACKENDS

PACKAGE = Path(__file__).parents[2] / "src" / "rerankd"
TABLE = "backends/table.py"

# Backend -> file -> why its code contains the name. Comments and docstrings are not checked.
EXCEPTIONS = {
    "openvino": {
        "backends/options.py": "the shared setting names the backends that have it",
        "api/dialects/table.py": "OpenVINO Model Server is another product, whose clients are served",
    },
    "onnx": {
        "backends/options.py": "the shared setting names the backends that have it",
        "formats/checkpoint_files.py": "the name of a folder in checkpoints",
    },
    "torch": {
        "cross_encoder_calls.py": "classes and tensors that sentence-transformers' users know",
        "formats/module_head.py": "names of PyTorch's classes in a checkpoint's files",
        "formats/sentence_transformers.py": "names of PyTorch's classes in a checkpoint's files",
        "formats/transformer_module.py": "a key of a checkpoint's files",
        "tuning/__init__.py": "the library that trains, which no backend shares",
        "tuning/trainer/train.py": "the library that trains, which no backend shares",
    },
    "llama": {
        "api/dialects/table.py": "llama-server is another product, whose clients are served",
        "backends/options.py": "the shared setting names the backends that have it",
        "backends/openvino/checks.py": "names the backend that runs encoders without OpenVINO",
        "backends/onnx/decoder.py": "the name of an architecture",
        "backends/openvino/architectures/__init__.py": "the name of an architecture",
        "backends/openvino/architectures/llama.py": "the name of an architecture",
        "backends/openvino/backend.py": "the name of an architecture",
        "backends/torch/architectures/__init__.py": "the name of an architecture",
        "backends/torch/architectures/llama.py": "the name of an architecture",
        "backends/torch/architectures/qwen.py": "the name of an architecture",
        "backends/torch/support.py": "the name of an architecture",
        "backends/worker/positions.py": "the name of an architecture",
        "backends/worker/supported.py": "the name of an architecture",
        "cli/bench.py": "llama-server is another product, to measure against",
        "cli/engine.py": "its commands build, choose and remove llama.cpp, the only engine that is built",
        "cli/eval.py": "llama-server is another product, whose ranking is evaluated",
        "config/service_settings.py": "LLAMA_PORT is an environment variable that users have set",
        "config/settings.py": "LLAMA_RANK_GGUF is an environment variable that users have set",
        "formats/checkpoint_classes.py": "the name of an architecture",
        "formats/families/llama.py": "the name of an architecture",
        "formats/gguf_header.py": "names the GGUF version that llama.cpp no longer reads",
        "formats/head_file.py": "the name of an architecture",
        "formats/llama_rope.py": "the name of an architecture",
        "formats/metadata.py": "names of an architecture and of a tokenizer in GGUF files",
        "formats/tokenizer.py": "the name of a tokenizer in GGUF files",
        "formats/tokenizer_support.py": "the name of a tokenizer in GGUF files",
        "formats/weights.py": "the name of an architecture",
        "formats/words.py": "the name of a tokenizer in GGUF files",
        "hub/builtin_file.py": "LlamaFileType is a name of the library that writes GGUF",
        "hub/inspect.py": "llama-server is another product, whose result for such a file is described",
        "recipes/model_identity.py": "a part of model names",
        "recipes/rank_heads.py": "which rank heads in GGUF files llama.cpp computes",
        "recipes/prompts.py": "a part of model names",
        "recipes/resolve.py": "names what llama.cpp's converter omits from a file",
        "recipes/scoring_method.py": "names of architectures and of a model",
    },
}  # fmt: skip


def code(path: Path) -> str:
    """Return a file's code without comments and docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        for body in (getattr(node, "body", None), getattr(node, "orelse", None)):
            if isinstance(body, list):
                body[:] = [one for one in body if not _is_text(one)] or [ast.Pass()] * bool(body)
    return ast.unparse(tree)


def _is_text(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


CODE = {path.relative_to(PACKAGE).as_posix(): code(path) for path in PACKAGE.rglob("*.py")}


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
def test_no_other_file_names_a_backend(backend: Backend) -> None:
    folder = f"backends/{backend.name}/"
    assert any(path.startswith(folder) for path in CODE)
    word = re.compile(rf"(?<![a-z]){backend.name}", re.IGNORECASE)  # not Ollama
    said = {path for path, text in CODE.items() if not path.startswith(folder) and word.search(text)}
    assert said - {TABLE} == EXCEPTIONS.get(backend.name, {}).keys()


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
def test_no_other_file_imports_a_backend(backend: Backend) -> None:
    folder = f"backends/{backend.name}/"
    module = re.compile(rf"\brerankd\.backends(\.| import .*\b){backend.name}\b")
    found = {path for path, text in CODE.items() if not path.startswith(folder) and module.search(text)}
    assert found - {"cli/engine.py"} == {TABLE}
