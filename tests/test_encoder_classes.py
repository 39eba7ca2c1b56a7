"""Encoders in safetensors: refused configurations, and tokenizers that equal the reference's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

import checkpoints
from rerankd.errors import ModelFileError, Unscorable
from rerankd.formats import model_files, tokenizer
from rerankd.formats.weights import Weights
from rerankd.recipes import catalog
from rerankd.recipes.partial_recipe import PartialRecipe
from rerankd.recipes.resolve import resolve
from support import GOLDEN

NTK = {"type": "ntk", "factor": 8.0}


@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        ("deberta-v3", {"hidden_act": "relu"}, "hidden_act is 'relu', not 'gelu'"),
        ("deberta-v3", {"pooler_hidden_act": "mish"}, "pooler_hidden_act is 'mish'"),
        ("deberta-v3", {"pos_att_type": "c2p"}, "pos_att_type is 'c2p'"),
        ("deberta-v3", {"pos_att_type": ["p2c", "c2p", "p2p"]}, "pos_att_type is"),
        ("deberta-v3", {"pos_att_type": None}, "pos_att_type is None"),
        ("deberta-v3", {"relative_attention": False}, "relative_attention is False"),
        ("deberta-v3", {"relative_attention": None}, "relative_attention is None"),
        ("deberta-v3", {"position_biased_input": True}, "position_biased_input is True"),
        ("deberta-v3", {"position_biased_input": None}, "position_biased_input is None"),
        ("deberta-v3", {"share_att_key": False}, "share_att_key is False"),
        ("deberta-v3", {"norm_rel_ebd": "none"}, "norm_rel_ebd is 'none'"),
        ("deberta-v3", {"position_buckets": -1}, "position_buckets is -1"),
        ("deberta-v3", {"position_buckets": 512}, "too many for 256 positions"),
        ("deberta-v3", {"type_vocab_size": 2}, "type_vocab_size is 2"),
        ("deberta-v3", {"conv_kernel_size": 3}, "conv_kernel_size is 3"),
        ("deberta-v3", {"embedding_size": 16}, "embedding_size is 16"),
        ("deberta-v3", {"attention_head_size": 4}, "attention_head_size is 4"),
        ("gte", {"position_embedding_type": "absolute"}, "position_embedding_type is 'absolute'"),
        ("gte", {"position_embedding_type": None}, "position_embedding_type is None"),
        ("gte", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling is"),
        ("gte", {"rope_scaling": NTK | {"mixed_b": 0.75}}, "rope_scaling is"),
        ("gte", {"rope_scaling": NTK | {"factor": 0.5}}, "rope_scaling is"),
        ("gte", {"rope_scaling": NTK | {"factor": "8"}}, "rope_scaling.factor"),
        ("gte", {"rope_theta": None}, "rope_theta"),
        ("gte", {"layer_norm_type": "rms_norm"}, "layer_norm_type is 'rms_norm'"),
        ("gte", {"logn_attention_scale": True}, "logn_attention_scale is True"),
        ("gte", {"pack_qkv": False}, "pack_qkv is False"),
        ("gte", {"hidden_act": "silu"}, "hidden_act is 'silu'"),
        ("electra", {"hidden_act": "gelu_new"}, "gelu_new"),
        ("electra", {"position_embedding_type": "relative_key"}, "relative"),
        ("electra", {"embedding_size": 32}, "token_embd"),
        ("distilbert", {"activation": "relu"}, "activation is 'relu'"),
        ("camembert", {"hidden_act": "relu"}, "relu"),
        ("jina-v2", {"position_embedding_type": "rotary"}, "relative|rotary"),
        ("jina-v2", {"num_hidden_layers": 4}, "blk.3"),
        ("two-label-reranker", {"id2label": {"0": "no", "1": "neutral"}}, "'no' and 'neutral'"),
    ],
)
def test_a_part_that_is_not_computed_is_refused(
    name: str, config: dict[str, Any], words: str, tmp_path: Path
) -> None:
    folder = checkpoints.copy(name, tmp_path / name, **config)
    with pytest.raises((Unscorable, ModelFileError), match=words):
        resolve(model_files.read(folder), catalog.known()).require()


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("deberta-v3", {"pos_att_type": ["c2p", "p2c"]}),
        ("deberta-v3", {"pos_att_type": "c2p|p2c"}),
        ("deberta-v3", {"conv_kernel_size": 0, "embedding_size": 32}),
        ("deberta-v3", {"pooler_hidden_act": None}),
        ("gte", {"rope_scaling": None}),
        ("gte", {"rope_scaling": {"rope_type": "ntk", "factor": 8}}),
        ("gte", {"unpad_inputs": True, "use_memory_efficient_attention": True}),
        ("two-label-reranker", {"id2label": {"0": "irrelevant", "1": "relevant"}}),
        ("two-label-reranker", {"id2label": None}),
    ],
)
def test_another_way_to_write_the_same_is_served(name: str, config: dict[str, Any], tmp_path: Path) -> None:
    folder = checkpoints.copy(name, tmp_path / name, **config)
    assert resolve(model_files.read(folder), catalog.known()).require().method == "cross_encoder"


def test_gte_is_read_as_transformers_saves_it(tmp_path: Path) -> None:
    """transformers' class has another prefix, and expresses NTK scaling by the base and a linear factor."""
    own = Weights(GOLDEN / "gte")
    folder = _gte_of_transformers(tmp_path)
    same = Weights(folder)
    assert resolve(model_files.read(folder), catalog.known()).require().method == "cross_encoder"
    for key in ("rope.freq_base", "rope.scaling.factor", "context_length"):
        assert own.key(key) == pytest.approx(same.key(key))
    for name in ("token_embd.weight", "blk.2.ffn_up.weight", "cls.weight", "token_types.weight"):
        assert own.has(name) and same.has(name)


@pytest.mark.parametrize(
    "rope",
    [
        None,
        {"rope_type": "default"},
        {"rope_type": "linear", "rope_theta": 1e5},
        {"rope_type": "yarn", "rope_theta": 1e5, "factor": 2.0},
    ],
)
def test_other_rotary_positions_of_gte_are_refused(rope: dict[str, Any] | None, tmp_path: Path) -> None:
    folder = _gte_of_transformers(tmp_path)
    checkpoints.edit(folder / "config.json", rope_parameters=rope)
    with pytest.raises(Unscorable, match="rope_parameters"):
        resolve(model_files.read(folder), catalog.known()).require()


def _gte_of_transformers(folder: Path) -> Path:
    made = checkpoints.copy(
        "gte", folder / "gte", architectures=["GteForSequenceClassification"], model_type="gte",
        position_embedding_type=None, rope_theta=None, rope_scaling=None, auto_map=None,
        rope_parameters={"rope_type": "linear", "rope_theta": 160000.0, "factor": 8.0 ** (2 / 8)},
    )  # fmt: skip
    weights = made / "model.safetensors"
    held = checkpoints.read(weights)
    checkpoints.write(
        weights,
        {f"gte.{n.removeprefix('new.')}" if n.startswith("new.") else n: one for n, one in held.items()},
    )
    return made


def test_a_missing_size_is_named_as_the_file_names_it(tmp_path: Path) -> None:
    folder = checkpoints.copy("distilbert", tmp_path / "distilbert", n_layers=None)
    with pytest.raises(ModelFileError, match="n_layers"):
        model_files.read(folder)


def test_two_labels_need_a_name_or_a_setting(tmp_path: Path) -> None:
    folder = checkpoints.copy("two-label-reranker", tmp_path / "sentiment")
    metadata = model_files.read(folder)
    with pytest.raises(Unscorable, match="classifier with two labels"):
        resolve(metadata, catalog.known()).require()
    told = PartialRecipe(method="cross_encoder")
    assert resolve(metadata, catalog.known(), told).require().method == "cross_encoder"


@pytest.mark.parametrize(("name", "control"), [("deberta-v3", "[SEP]"), ("camembert", "</s>")])
def test_control_tokens_in_a_text_are_text(name: str, control: str) -> None:
    vocabulary = tokenizer.read(model_files.read(GOLDEN / name))
    for text in (
        control,
        f"a {control} b",
        f"{control}{control}",
        "[CLS][PAD][UNK][MASK]<s><pad><unk><mask>",
    ):
        (ids,) = vocabulary.encode([text])
        assert not vocabulary.control_ids & set(ids.tolist()), text
    assert vocabulary.control_ids


@pytest.mark.parametrize(
    "normalizer",
    [
        # As transformers 4 saved DeBERTa's tokenizer, without its map, and as transformers 5 does.
        {"type": "Sequence", "normalizers": [{"type": "Strip", "strip_left": True, "strip_right": True}]},
        {
            "type": "Sequence",
            "normalizers": [
                {"type": "Replace", "pattern": {"Regex": r"\s{2,}|[\n\r\t]"}, "content": " "},
                {"type": "NFC"},
                {"type": "Strip", "strip_left": False, "strip_right": True},
            ],
        },
        None,
    ],
    ids=["strip", "transformers 5", "none"],
)
@pytest.mark.parametrize("split", [False, True])
def test_a_tokenizer_is_read_with_the_settings_of_its_file(
    normalizer: Any, split: bool, tmp_path: Path
) -> None:
    folder = checkpoints.copy("deberta-v3", tmp_path / "deberta")
    before: list[Any] = [{"type": "Punctuation", "behavior": "Isolated"}] if split else []
    held = json.loads((folder / "tokenizer.json").read_text())
    held["normalizer"] = normalizer
    held["pre_tokenizer"]["pretokenizers"] = before + held["pre_tokenizer"]["pretokenizers"]
    (folder / "tokenizer.json").write_text(json.dumps(held))
    library = Tokenizer.from_file(str(folder / "tokenizer.json"))
    vocabulary = tokenizer.read(model_files.read(folder))
    pairs = json.loads((GOLDEN / "pairs.json").read_text())
    texts = [pair["document"] for pair in pairs if "[" not in pair["document"]]
    wanted = [library.encode(text, add_special_tokens=False).ids for text in texts]
    assert [ids.tolist() for ids in vocabulary.encode(texts)] == wanted


@pytest.mark.parametrize("prefix", [False, True])
def test_byte_level_bpe_puts_a_space_before_each_text_where_its_file_says_so(
    prefix: bool, tmp_path: Path
) -> None:
    folder = checkpoints.copy("roberta-head", tmp_path / "roberta")
    held = json.loads((folder / "tokenizer.json").read_text())
    held["pre_tokenizer"]["add_prefix_space"] = held["post_processor"]["add_prefix_space"] = prefix
    (folder / "tokenizer.json").write_text(json.dumps(held))
    vocabulary = tokenizer.read(model_files.read(folder))
    query, document = "panda bears", "Are pandas bears? 熊猫\n"
    first, second = vocabulary.encode([query, document])
    frame = vocabulary.frame
    whole = [*frame.start, *first, *frame.between, *second, *frame.end]
    library = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert whole == library.encode(query, document).ids
    assert (vocabulary.encode(["panda"])[0].tolist() == vocabulary.encode([" panda"])[0].tolist()) is prefix
