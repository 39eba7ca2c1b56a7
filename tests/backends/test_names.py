"""No file outside a backend's folder knows the backend: neither its modules nor its name, but for what is
listed here with a reason."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from rerankd.backends.base import Backend
from rerankd.backends.table import BACKENDS

PACKAGE = Path(__file__).parents[2] / "src" / "rerankd"
TABLE = "backends/table.py"

# Backend -> file -> why its code says that name. Comments and docstrings are free to.
EXCEPTIONS = {
    "openvino": {
        "api/dialects/table.py": "OpenVINO Model Server is another product, whose clients are served",
    },
    "llama": {
        "api/dialects/table.py": "llama-server is another product, whose clients are served",
        "backends/openvino/checks.py": "says what runs encoders where OpenVINO is not installed",
        "cli/bench.py": "llama-server is another product, to measure against",
        "cli/engine.py": "its commands build, choose and remove llama.cpp: no other engine is built here",
        "cli/eval.py": "llama-server is another product, whose answers are judged",
        "config/service_settings.py": "LLAMA_PORT is a name in the environment that users have set",
        "config/settings.py": "LLAMA_RANK_GGUF is a name in the environment that users have set",
        "formats/gguf_header.py": "says which version of GGUF is read no longer, and by what",
        "formats/metadata.py": "names of an architecture and of a tokenizer in GGUF files",
        "hub/builtin_file.py": "LlamaFileType is a name of the library that writes GGUF",
        "hub/inspect.py": "llama-server is another product, whose answer for such a file is told",
        "recipes/model_identity.py": "a part of names of models",
        "recipes/rank_heads.py": "what llama.cpp computes of a GGUF head: which files can be scored",
        "recipes/prompts.py": "a part of names of models",
        "recipes/resolve.py": "says what llama.cpp's converter has left out of a file",
        "recipes/scoring_method.py": "names of architectures and of a model",
    },
}  # fmt: skip


def code(path: Path) -> str:
    """A file's code without comments and docstrings."""
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
