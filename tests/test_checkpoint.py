"""Safetensors checkpoints: their metadata, the refusals and errors, and their scores."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import checkpoints
from rerankd.backends.openvino.encoder import Encoder
from rerankd.backends.worker.passes import Reading, padded
from rerankd.errors import ConfigError, ModelFileError, Unscorable
from rerankd.formats import gguf_metadata, model_files, safetensors_metadata, tokenizer
from rerankd.hub.inspect import describe
from rerankd.hub.store import Store, display_name
from rerankd.recipes import catalog
from rerankd.recipes.partial_recipe import PartialRecipe
from rerankd.recipes.resolve import resolve
from rerankd.service import Reranker
from support import GOLDEN, golden, golden_settings

OLD_MODERN_BERT = {
    "layer_types": None,
    "rope_parameters": None,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "local_rope_theta": 10000.0,
}


def raw_values(folder: Path, cases: list[dict[str, Any]]) -> Any:
    encoder = Encoder(folder, "rank", threads=1, precision="f32")
    first = tokenizer.read(model_files.read(folder)).frame.first_typed is not None
    found = []
    for case in cases:
        ids = case["ids"]
        second = ids.index(ids[-1]) + 1 if first else len(ids)
        found.append(encoder.forward(*padded([Reading(ids, second)]))[0, 0])
    return np.array(found)


def sample(name: str) -> tuple[list[dict[str, Any]], Any]:
    cases = [case for case in golden(name)["cases"] if case["fits"]][::10]
    return cases, np.array([case["raw"] for case in cases])


def test_a_checkpoint_has_the_metadata_of_its_gguf_file() -> None:
    for name in ("xlmr-head", "modernbert-head"):
        folder, file = safetensors_metadata.read(GOLDEN / name), gguf_metadata.read(GOLDEN / f"{name}.gguf")
        assert folder.format == "safetensors" and file.format == "gguf"
        for field in (
            "architecture", "context_length", "embedding_length", "block_count", "vocabulary_size", "has_cls",
            "cls_output_rows", "quantisation", "parameters", "block_weights", "attention_width", "name",
        ):  # fmt: skip
            assert getattr(folder, field) == getattr(file, field), field


def test_a_bert_cross_encoder_in_safetensors_is_served() -> None:
    metadata = safetensors_metadata.read(GOLDEN / "bert-pairs")
    resolved = resolve(metadata, catalog.known())
    scoring = resolved.require()
    assert (scoring.method, scoring.max_length, scoring.pooling) == ("cross_encoder", 128, "rank")
    assert "bert-pairs: BF16 in safetensors, 0.195 million parameters" in describe(metadata, resolved)


def test_a_model_refused_as_gguf_is_served_from_safetensors(tmp_path: Path) -> None:
    folder = checkpoints.copy("bert-pairs", tmp_path / "ms-marco-TinyBERT-L2-v2")
    resolved = resolve(safetensors_metadata.read(folder), catalog.known())
    assert resolved.entry is not None and resolved.entry.refused
    assert resolved.require().method == "cross_encoder"


async def test_the_second_token_type_changes_scores(tmp_path: Path) -> None:
    """With equal rows for both token types, the scores differ; llama.cpp would return them."""
    folder = checkpoints.copy("bert-pairs", tmp_path / "untyped")
    tensors = checkpoints.read(folder / "model.safetensors")
    kind, shape, data = tensors["bert.embeddings.token_type_embeddings.weight"]
    tensors["bert.embeddings.token_type_embeddings.weight"] = kind, shape, data[: len(data) // 2] * 2
    checkpoints.write(folder / "model.safetensors", tensors)
    cases, wanted = sample("bert-pairs")
    assert np.abs(raw_values(GOLDEN / "bert-pairs", cases) - wanted).max() < 1e-4
    assert np.abs(raw_values(folder, cases) - wanted).max() > 0.1


def test_configurations_of_older_transformers_versions_are_read(tmp_path: Path) -> None:
    folder = checkpoints.copy("modernbert-head", tmp_path / "old", **OLD_MODERN_BERT)
    cases, wanted = sample("modernbert-head")
    assert np.abs(raw_values(folder, cases) - wanted).max() < 1e-4


def test_split_weights_and_tensor_names_of_tensorflow_checkpoints(tmp_path: Path) -> None:
    folder = checkpoints.copy("bert-pairs", tmp_path / "split")
    tensors = checkpoints.read(folder / "model.safetensors")
    tensors = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): one for name, one in tensors.items()}
    tensors = {name.replace("LayerNorm.bias", "LayerNorm.beta"): one for name, one in tensors.items()}
    (folder / "model.safetensors").unlink()
    for part in (0, 1):
        some = dict([*tensors.items()][part::2])
        checkpoints.write(folder / f"model-{part + 1:05}-of-00002.safetensors", some)
    cases, wanted = sample("bert-pairs")
    assert np.abs(raw_values(folder, cases) - wanted).max() < 1e-4
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelFileError, match="some of its weight files are missing"):
        model_files.read(folder)


def test_truncation_and_padding_saved_in_a_tokenizer_are_ignored(tmp_path: Path) -> None:
    """Many tokenizers are saved with the state of their last use, or with an older form of the template."""
    folder = checkpoints.copy("bert-pairs", tmp_path / "used")
    checkpoints.edit(
        folder / "tokenizer.json",
        truncation={"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0},
        padding={
            "strategy": {"Fixed": 32}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "[PAD]",
        },
        post_processor={"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
    )  # fmt: skip
    cases, wanted = sample("bert-pairs")
    assert np.abs(raw_values(folder, cases) - wanted).max() < 1e-4
    read = [tokenizer.of_file(one / "tokenizer.json", 1800) for one in (GOLDEN / "bert-pairs", folder)]
    texts = ["What is a panda?", "The giant panda is a bear. " * 9]
    plain, used = ([ids.tolist() for ids in vocabulary.encode(texts)] for vocabulary in read)
    assert used == plain
    assert repr(read[1].frame) == repr(read[0].frame)


def test_model_max_length_of_the_tokenizer_limits_max_length(tmp_path: Path) -> None:
    folder = checkpoints.copy("bert-pairs", tmp_path / "short")
    checkpoints.edit(folder / "tokenizer_config.json", model_max_length=100)
    assert resolve(safetensors_metadata.read(folder), catalog.known()).require().max_length == 100
    checkpoints.edit(folder / "tokenizer_config.json", model_max_length=10**30)
    assert resolve(safetensors_metadata.read(folder), catalog.known()).require().max_length == 128
    (folder / "tokenizer_config.json").unlink()
    assert resolve(safetensors_metadata.read(folder), catalog.known()).require().max_length == 128


@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        ("bert-pairs", {"architectures": ["DebertaForSequenceClassification"]}, "class is DebertaFor"),
        ("bert-pairs", {"architectures": ["BertModel"]}, "class is BertModel"),
        ("bert-pairs", {"architectures": None}, "declares no class"),
        ("bert-pairs", {"hidden_act": "relu"}, "activation function is 'relu'"),
        ("bert-pairs", {"position_embedding_type": "relative_key"}, "position embeddings are relative"),
        ("bert-pairs", {"is_decoder": True}, "decoder"),
        ("modernbert-head", {"classifier_pooling": "max"}, "classifier_pooling is 'max'"),
        ("modernbert-head", {"classifier_activation": "silu"}, "classifier_activation is 'silu'"),
        (
            "modernbert-head",
            {"rope_parameters": {"full_attention": {"rope_type": "yarn", "rope_theta": 1.0}}},
            "scaled",
        ),
    ],
)
def test_an_unsupported_configuration_is_refused(
    tmp_path: Path, name: str, config: dict[str, Any], words: str
) -> None:
    folder = checkpoints.copy(name, tmp_path / "odd", **config)
    with pytest.raises(Unscorable, match=words):
        resolve(model_files.read(folder), catalog.known()).require()


def test_a_head_with_three_labels_or_without_its_pooler_is_refused(tmp_path: Path) -> None:
    folder = checkpoints.copy("bert-pairs", tmp_path / "classes")
    tensors = checkpoints.read(folder / "model.safetensors")
    kind, _, row = tensors["classifier.weight"]
    checkpoints.write(folder / "model.safetensors", tensors | {"classifier.weight": (kind, [3, 64], row * 3)})
    with pytest.raises(Unscorable, match="classifier with 3 labels"):
        resolve(model_files.read(folder), catalog.known()).require()
    del tensors["bert.pooler.dense.weight"]
    checkpoints.write(folder / "model.safetensors", tensors)
    with pytest.raises(Unscorable, match=r"incomplete: cls\.weight"):
        resolve(model_files.read(folder), catalog.known()).require()


def test_a_method_other_than_cross_encoder_is_an_error() -> None:
    metadata = safetensors_metadata.read(GOLDEN / "bert-pairs")
    with pytest.raises(ConfigError, match="scored by its rank head"):
        resolve(metadata, catalog.known(), PartialRecipe(method="embedding", pooling="mean"))


def test_weights_of_another_type_are_refused(tmp_path: Path) -> None:
    folder = checkpoints.copy("bert-pairs", tmp_path / "f64")
    tensors = checkpoints.read(folder / "model.safetensors")
    tensors["classifier.weight"] = ("F64", [1, 64], bytes(8 * 64))
    checkpoints.write(folder / "model.safetensors", tensors)
    with pytest.raises(Unscorable, match="type F64"):
        resolve(model_files.read(folder), catalog.known()).require()


def test_the_error_names_the_missing_file(tmp_path: Path) -> None:
    folder = checkpoints.copy("bert-pairs", tmp_path / "model")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.unlink()
    with pytest.raises(ModelFileError, match="it contains no weights"):
        model_files.read(folder)
    (folder / "pytorch_model.bin").touch()
    with pytest.raises(ModelFileError, match="pickled"):
        model_files.read(folder)
    weights.write_bytes(whole)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelFileError, match=r"no tokenizer\.json"):
        model_files.read(folder)
    (folder / "model-Q8_0.gguf").touch()
    with pytest.raises(ModelFileError, match=r"path of a \.gguf file"):
        model_files.read(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ModelFileError, match=r"without a config\.json"):
        model_files.read(folder)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[:-1], "truncated: 1 of"),
        (lambda data: data[:100], "not a safetensors file"),
        (lambda data: b"", "not a safetensors file"),
        (lambda data: b"GGUF" + data, "not a safetensors file"),
        (lambda data: data[:8] + b"[" + data[9:], "header can't be read"),
        (lambda data: data.replace(b'"data_offsets"', b'"data_offstes"', 1), "header can't be read"),
        (lambda data: data.replace(b"[1800,64]", b"[1800,65]", 1), "impossible size"),
        (lambda data: data.replace(b"[1800,64]", b"[-180,64]", 1), "header can't be read"),
        (lambda data: data.replace(b'"BF16"', b'"BF15"'), "type BF15"),
    ],
)
def test_damaged_weights_are_an_error(tmp_path: Path, damage: Any, words: str) -> None:
    folder = checkpoints.copy("bert-pairs", tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(damage(weights.read_bytes()))
    with pytest.raises(ModelFileError, match=words):
        resolve(model_files.read(folder), catalog.known()).require()


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("config.json", "{", r"config\.json can't be read"),
        ("config.json", "[]", r"config\.json is not a JSON object"),
        ("tokenizer_config.json", "\0", r"tokenizer_config\.json can't be read"),
    ],
)
def test_damaged_json_files_are_an_error(tmp_path: Path, file: str, text: str, words: str) -> None:
    folder = checkpoints.copy("bert-pairs", tmp_path / "model")
    (folder / file).write_text(text)
    with pytest.raises(ModelFileError, match=words):
        model_files.read(folder)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"hidden_size": None}, "size as hidden_size, but has None"),
        ({"num_attention_heads": "4"}, "size as num_attention_heads, but has '4'"),
        ({"max_position_embeddings": 0}, "size as max_position_embeddings"),
        ({"layer_norm_eps": "small"}, "number as layer_norm_eps"),
    ],
)
def test_invalid_sizes_are_an_error(tmp_path: Path, config: dict[str, Any], words: str) -> None:
    folder = checkpoints.copy("bert-pairs", tmp_path / "model")
    values = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(ModelFileError, match=words):
        model_files.read(folder)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.parametrize(
    "name",
    ["bert-pairs", "xlmr-head", "modernbert-head", "deberta-v3", "gte", "electra", "distilbert", "jina-v2"],
)
@given(data=st.data())
def test_random_configurations_raise_only_model_file_errors(name: str, data: st.DataObject) -> None:
    folder = GOLDEN / name
    config = json.loads((folder / "config.json").read_text())
    more = ("global_attn_every_n_layers", "global_rope_theta", "local_rope_theta", "position_embedding_type")
    for key in data.draw(st.lists(st.sampled_from([*config, *more]), min_size=1, max_size=3)):
        config[key] = data.draw(json_values)
    tokenizer = data.draw(json_values)
    described = {
        "config.json": json.dumps(config).encode(),
        "tokenizer_config.json": json.dumps({"model_max_length": tokenizer}).encode(),
    }
    weights = folder / "model.safetensors"
    with weights.open("rb") as stream, contextlib.suppress(ModelFileError):
        metadata = safetensors_metadata.read_streams(
            Path("x"), described, [(stream, weights.stat().st_size, weights)]
        )
        resolve(metadata, catalog.known()).require()


@given(data=st.data())
def test_random_headers_raise_only_model_file_errors(data: st.DataObject) -> None:
    whole = (GOLDEN / "bert-pairs" / "model.safetensors").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    table = json.loads(whole[8 : 8 + length])
    name = data.draw(st.sampled_from(sorted(table)))
    table[name] = data.draw(
        json_values | st.fixed_dictionaries({key: json_values for key in ("dtype", "shape", "data_offsets")})
    )
    header = json.dumps(table).encode()
    stream = io.BytesIO(len(header).to_bytes(8, "little") + header + bytes(8))
    described = {"config.json": (GOLDEN / "bert-pairs" / "config.json").read_bytes()}
    with contextlib.suppress(ModelFileError):
        metadata = safetensors_metadata.read_streams(
            Path("x"), described, [(stream, len(whole), Path("model"))]
        )
        resolve(metadata, catalog.known()).require()


@pytest.mark.parametrize("name", ["bert-pairs", "modernbert-head"])
def test_a_configuration_with_millions_of_layers_is_rejected_at_once(name: str, tmp_path: Path) -> None:
    """It took 20 s and gigabytes of memory."""
    folder = checkpoints.copy(name, tmp_path / "model", num_hidden_layers=18_872_163, layer_types=None)
    with pytest.raises(ModelFileError, match="must have a size as num_hidden_layers"):
        model_files.read(folder)


@pytest.mark.parametrize(
    ("text", "words"),
    [("{}", "tokenizer can't be read"), ("nothing", "tokenizer can't be read")],
)
def test_a_damaged_tokenizer_is_an_error(tmp_path: Path, text: str, words: str) -> None:
    folder = checkpoints.copy("bert-pairs", tmp_path / "model")
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(ModelFileError, match=words):
        tokenizer.read(model_files.read(folder))


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = checkpoints.copy("modernbert-head", tmp_path / "model")
    (folder / "tokenizer.json").write_bytes((GOLDEN / "bert-pairs" / "tokenizer.json").read_bytes())
    with pytest.raises(ModelFileError, match="1800 tokens, but the model only"):
        tokenizer.read(model_files.read(folder))


@pytest.mark.parametrize("shape", [[], [8192], [128, 8, 8], [64, 128], [0, 64]])
def test_a_position_table_of_a_wrong_shape_is_an_error(tmp_path: Path, shape: list[int]) -> None:
    folder = checkpoints.copy("bert-pairs", tmp_path / "model")
    tensors = checkpoints.read(folder / "model.safetensors")
    name = "bert.embeddings.position_embeddings.weight"
    kind, _, data = tensors[name]
    held = data[: 2 * int(np.prod(shape))]
    checkpoints.write(folder / "model.safetensors", tensors | {name: (kind, shape, held)})
    model_files.read(folder)
    with pytest.raises(ModelFileError, match=r"position_embd\.weight has the shape"):
        Encoder(folder, "rank", threads=1)


def test_metadata_is_read_from_the_beginning_of_a_remote_file() -> None:
    folder = GOLDEN / "bert-pairs"
    weights = folder / "model.safetensors"
    described = {name: (folder / name).read_bytes() for name in ("config.json", "tokenizer_config.json")}
    size = weights.stat().st_size
    begun = io.BytesIO(weights.read_bytes()[:10_000])
    remote = safetensors_metadata.read_streams(Path("org/bert-pairs"), described, [(begun, size, weights)])
    local = safetensors_metadata.read(folder)
    assert remote.name == local.name and remote.parameters == local.parameters


def test_a_checkpoint_is_found_by_the_path_of_any_of_its_files(tmp_path: Path) -> None:
    store, folder = Store(tmp_path), GOLDEN / "bert-pairs"
    for named in (folder, folder / "model.safetensors", folder / "config.json"):
        assert store.locate(str(named), lambda *_: None) == folder
        assert display_name(str(named)) == "bert-pairs"


async def test_a_checkpoint_runs_on_openvino_only(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="reads GGUF files only"):
        async with Reranker(golden_settings("bert-pairs", tmp_path, engine="llama")):
            pass
    async with Reranker(golden_settings("bert-pairs", tmp_path, llama_path="/bin/true")) as reranker:
        assert "OpenVINO" in reranker.state.engine.about  # type: ignore[union-attr]
