"""sentence-transformers behind the worker's protocol: values, and whose code runs.

Needs PyTorch: `make test-torch`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="no PyTorch here: make test-torch")
pytest.importorskip("sentence_transformers", reason="make test-torch")

from cases import ENCODERS
from test_torch_networks import BOUND, pairs, worst

import checkpoints
from rerankd.backends.torch.architecture import Unsupported
from rerankd.backends.torch.reference import Reference
from support import GOLDEN

# The classes of mGTE and jina-reranker-v2 are code in their own repositories.
OWN_CODE = ("gte", "jina-v2")
NAMES = ("xlmr-head", "bert-pairs", "modernbert-head", *(one for one in ENCODERS if one not in OWN_CODE))


def loaded(path: Path, **more: Any) -> Reference:
    return Reference(path, device="cpu", dtype=torch.float32, **more)


@pytest.mark.parametrize("name", NAMES)
def test_values_are_those_of_transformers_alone_and_together(name: str) -> None:
    network = loaded(GOLDEN / name)
    readings, wanted = pairs(name, GOLDEN / name, each=5)
    assert worst(network, readings, wanted) < BOUND


def test_the_hub_is_off_whatever_the_environment_says() -> None:
    code = "from rerankd.backends.torch import reference; from huggingface_hub import constants as c; "
    code += "print(c.HF_HUB_OFFLINE, c.HF_HUB_DISABLE_TELEMETRY)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"HF_HUB_OFFLINE": "0"},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "True True\n", done.stderr


def test_code_in_a_models_files_does_not_run(tmp_path: Path) -> None:
    folder = checkpoints.copy("bert-pairs", tmp_path / "model")
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    checkpoints.edit(folder / "config.json", auto_map={"AutoModelForSequenceClassification": "own.Model"})
    with pytest.raises(Unsupported, match=r"own\.Model.*trust_remote_code = true"):
        loaded(folder)
    checkpoints.edit(folder / "config.json", auto_map=None)
    (folder / "modules.json").write_text(
        json.dumps([{"idx": 0, "name": "0", "path": "", "type": "own.Model"}])
    )
    with pytest.raises(Unsupported, match=r"own\.Model"):
        loaded(folder)
    assert not (tmp_path / "ran").exists()


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = checkpoints.copy("bert-pairs", tmp_path / "model")
    (folder / "1_Dense").mkdir()
    (folder / "1_Dense" / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(Unsupported, match=r"1_Dense/pytorch_model\.bin"):
        loaded(folder)
