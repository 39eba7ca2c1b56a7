"""sentence-transformers behind the worker's protocol: values, and whose code runs.

Needs PyTorch: `make test-torch`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="no PyTorch here: make test-torch")
pytest.importorskip("sentence_transformers", reason="make test-torch")

from cases import ENCODERS, PAIRS
from test_torch_networks import BOUND, pairs, worst

import checkpoints
from rerankd.backends.torch.architecture import Unsupported
from rerankd.backends.torch.reference import Reference
from rerankd.backends.torch.support import code_warning
from rerankd.config import Settings
from rerankd.errors import ConfigError, Unscorable
from rerankd.service import Reranker
from support import GOLDEN, golden

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


def mpnet(folder: Path) -> Path:
    """A random MPNetForSequenceClassification, of which rerankd has no graph, with XLM-R's tokenizer."""
    transformers = pytest.importorskip("transformers")
    rows = json.loads((GOLDEN / "xlmr-head" / "config.json").read_text())["vocab_size"]
    config = transformers.MPNetConfig(
        vocab_size=rows, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=130, num_labels=1, pad_token_id=1,
    )  # fmt: skip
    torch.manual_seed(1)
    model = transformers.MPNetForSequenceClassification(config).eval()
    for weight in model.parameters():
        weight.data = torch.randn_like(weight) * 0.15 + (weight.dim() == 1) * 0.5
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(GOLDEN / "xlmr-head" / name, folder)
    return folder


def settings(folder: Path, home: Path, **more: Any) -> Settings:
    serving = {"model": str(folder), "home": home, "engine": "torch", "device": "cpu", "precision": "f32"}
    return Settings.model_validate(serving | {"cache_entries": 0, "force": True, **more})


async def test_a_class_without_a_graph_has_the_values_of_predict(tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder

    folder = mpnet(tmp_path / "model")
    documents = ["a bear of China", "bread", "the train leaves at nine " * 60]
    async with Reranker(settings(folder, tmp_path / "home")) as reranker:
        engine: Any = reranker.state.engine
        assert "sentence-transformers" in engine.about
        result = await reranker.rerank("what is a panda?", documents, raw_scores=True)
    assert result.truncated == (2,)
    scores = {one.index: one.score for one in result.results}
    model = CrossEncoder(str(folder), device="cpu", max_length=128)
    wanted = model.predict(
        [("what is a panda?", text) for text in documents], activation_fn=torch.nn.Identity()
    )
    assert [scores[at] for at in range(3)] == pytest.approx(wanted.tolist(), abs=1e-6)


def olmo(folder: Path) -> Path:
    """A random OlmoForCausalLM as sentence-transformers saves a causal reranker: with a chat template and a
    LogitScore of two labels."""
    transformers = pytest.importorskip("transformers")
    made = checkpoints.causal(folder, *golden("qwen3-headless")["label_ids"])
    config = transformers.OlmoConfig(
        vocab_size=json.loads((made / "config.json").read_text())["vocab_size"], hidden_size=64,
        intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=512,
        pad_token_id=0, eos_token_id=1, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(1)
    model = transformers.OlmoForCausalLM(config).eval()
    for weight in model.parameters():
        weight.data = torch.randn_like(weight) * 0.2
    model.save_pretrained(made)
    return made


async def test_a_causal_class_without_a_graph_has_the_values_of_predict(tmp_path: Path) -> None:
    """Prompt and labels are those that its files declare; other labels are refused."""
    from sentence_transformers import CrossEncoder

    folder = olmo(tmp_path / "model")
    documents = ["a bear of China", "bread", "the train leaves at nine " * 10]
    async with Reranker(settings(folder, tmp_path / "a")) as reranker:
        result = await reranker.rerank("what is a panda?", documents, raw_scores=True)
    scores = {one.index: one.score for one in result.results}
    model = CrossEncoder(str(folder), device="cpu")
    pairs_of = [("what is a panda?", text) for text in documents]
    wanted = model.predict(pairs_of, activation_fn=torch.nn.Identity())
    assert [scores[at] for at in range(3)] == pytest.approx(wanted.tolist(), abs=BOUND)
    template = golden("qwen3-headless")["template"]
    other = {"scoring": {"template": template, "labels": ["no", "yes"]}}
    with pytest.raises(ConfigError, match="only the labels"):
        async with Reranker(settings(folder, tmp_path / "b", **other)):
            pass


def own_code(folder: Path) -> Path:
    """The golden BERT cross-encoder as a class in the model's own files."""
    checkpoints.copy(
        "bert-pairs", folder, architectures=["OwnForSequenceClassification"],
        auto_map={"AutoModelForSequenceClassification": "own.OwnForSequenceClassification"},
    )  # fmt: skip
    (folder / "own.py").write_text(
        "from transformers import BertForSequenceClassification\n\n\n"
        "class OwnForSequenceClassification(BertForSequenceClassification):\n    pass\n"
    )
    return folder


async def test_a_models_own_code_runs_only_if_the_user_trusts_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = own_code(tmp_path / "model")
    named: dict[str, Any] = {"scoring": {"method": "cross_encoder"}}
    with pytest.raises(Unscorable, match=r"OwnForSequenceClassification is code.*method = \"cross_encoder\""):
        async with Reranker(settings(folder, tmp_path / "a")):
            pass
    with pytest.raises(ConfigError, match="trust_remote_code"):
        async with Reranker(settings(folder, tmp_path / "b", **named)):
            pass
    async with Reranker(settings(folder, tmp_path / "c", trust_remote_code=True, **named)) as reranker:
        assert "trust_remote_code is set (pinned to no commit" in caplog.text
        for case in [case for case in golden("bert-pairs")["cases"] if case["fits"]][::40]:
            pair = PAIRS[case["id"]]
            result = await reranker.rerank(pair["query"], [pair["document"]], raw_scores=True)
            assert result.results[0].score == pytest.approx(case["raw"], abs=BOUND)


def test_a_folder_of_the_hubs_cache_is_pinned_to_its_commit() -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert f"commit {commit}" in code_warning(Path("/hub/models--a--b/snapshots") / commit)
    assert "no commit" in code_warning(Path("/models") / commit)


def colbert(folder: Path) -> Path:
    """A random late-interaction model upon MPNet, with the files of PyLate and BERT's tokenizer."""
    import late

    transformers = pytest.importorskip("transformers")
    made = late.build("pylate-modernbert", folder.parent)
    rows = json.loads((GOLDEN / "bert-pairs" / "config.json").read_text())["vocab_size"]
    config = transformers.MPNetConfig(
        vocab_size=rows, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=130, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(2)
    model = transformers.MPNetModel(config).eval()
    for weight in model.parameters():
        weight.data = torch.randn_like(weight) * 0.15 + (weight.dim() == 1) * 0.5
    made.rename(folder)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(GOLDEN / "bert-pairs" / name, folder)
    markers = {"query_prefix": "[MASK] ", "document_prefix": "[UNK] "}
    checkpoints.edit(folder / "config_sentence_transformers.json", **markers)
    return folder


async def test_a_late_interaction_model_without_a_graph_has_the_values_of_the_library(tmp_path: Path) -> None:
    from sentence_transformers import MultiVectorEncoder

    folder = colbert(tmp_path / "model")
    documents = ["a bear of China, and bread.", "bread", "the train leaves at nine " * 60]
    async with Reranker(settings(folder, tmp_path / "home")) as reranker:
        engine: Any = reranker.state.engine
        assert "sentence-transformers" in engine.about
        result = await reranker.rerank("what is a panda?", documents, raw_scores=True)
        again = await reranker.rerank("bread", documents, raw_scores=True)
        assert engine.kept.misses - engine.kept.documents <= 8 and engine.kept.hits >= 3
    assert result.truncated == (2,) and again.truncated == (2,)
    scores = {one.index: one.score for one in result.results}
    model = MultiVectorEncoder(str(folder), device="cpu")
    (query,) = model.encode_query(["what is a panda?"])
    found = [model.encode_document([text])[0] for text in documents]
    wanted = [float((torch.as_tensor(query) @ torch.as_tensor(one).T).max(-1).values.sum()) for one in found]
    assert [scores[at] for at in range(3)] == pytest.approx(wanted, abs=1e-3)


async def test_the_code_of_a_late_interaction_model_runs_only_if_trusted(tmp_path: Path) -> None:
    folder = colbert(tmp_path / "model")
    checkpoints.edit(
        folder / "config.json", auto_map={"AutoModel": "own.Model"}, architectures=["HF_ColBERT"]
    )
    with pytest.raises((ConfigError, Unscorable), match="trust_remote_code"):
        async with Reranker(settings(folder, tmp_path / "home")):
            pass
