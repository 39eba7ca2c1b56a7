"""The golden encoders in safetensors: their values are the reference's, and each broken part changes them.

See test_goldens_can_fail.py for the encoders that are also in GGUF.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from breaks import (
    Change,
    config,
    halves_swapped,
    next_rows,
    ones,
    rows_reversed,
    same_rows,
    tensor,
    thirds_turned,
    zeros,
)
from cases import ENCODERS

import checkpoints
from rerankd.backends.openvino.architectures.deberta_v2 import rows
from rerankd.backends.openvino.encoder import Encoder
from rerankd.backends.worker.passes import Reading, padded
from rerankd.formats import model_files, tokenizer
from rerankd.formats.weights import Weights
from support import golden

# OpenVINO in float32 comes within 2e-6.
BOUND = 1e-5
# A break must change a score by far more.
SEEN = 20 * BOUND


def distance(folder: Path, name: str, second: int = 0) -> float:
    """How far the worst score of a checkpoint is from the golden ones of `name`, each pair alone and all in
    one padded batch. The second text begins `second` tokens later than it does."""
    cases = [case for case in golden(name)["cases"] if case["fits"]][::6]
    wanted = np.array([case["raw"] for case in cases])
    frame = tokenizer.read(model_files.read(folder)).frame
    texts = []
    for case in cases:
        ids = case["ids"]
        typed = frame.first_typed is not None
        texts.append(Reading(ids, ids.index(ids[-1]) + 1 + second if typed else len(ids)))
    encoder = Encoder(folder, "rank", threads=1, precision="f32")
    alone = np.array([encoder.forward(*padded([text]))[0, 0] for text in texts])
    together = encoder.forward(*padded(texts))[:, 0]
    assert np.abs(alone - together).max() < BOUND
    return float(np.abs(alone - wanted).max())


ROPE = {"type": "ntk", "factor": 8.0}
ENCODER = {
    "the embeddings' norm": tensor("embeddings.LayerNorm.weight", ones),
    "the number of heads": config(num_attention_heads=2),
    "the head's bias": tensor("classifier.bias", zeros),
}
HEAD = {
    "the head's first layer": tensor("classifier.dense.weight", next_rows),
    "the head's bias": tensor("classifier.out_proj.bias", zeros),
}
BREAKS: dict[str, dict[str, Change]] = {
    "deberta-v3": {
        **ENCODER,
        "the pooler": tensor("pooler.dense.weight", next_rows),
        "the pooler's activation": config(pooler_hidden_act="tanh"),
        "the embeddings of distances": tensor("rel_embeddings.weight", same_rows),
        "the sign of distances": tensor("rel_embeddings.weight", rows_reversed),
        "distances one bucket off": tensor("rel_embeddings.weight", next_rows),
        "the norm of distances": tensor("encoder.LayerNorm.weight", ones),
        "the bias of that norm": tensor("encoder.LayerNorm.bias", zeros),
        "where buckets begin to be shared": config(max_relative_positions=128),
        "the norms' epsilon": config(layer_norm_eps=1e-2),
        "the key's bias": tensor("key_proj.bias", zeros),
    },
    "gte": {
        **ENCODER,
        "the rope base": config(rope_theta=10000.0),
        "the factor of the scaling": config(rope_scaling=ROPE | {"factor": 4.0}),
        "no scaling": config(rope_scaling=None),
        "gate and value of the MLP swapped": tensor("up_gate_proj.weight", halves_swapped),
        "query, key and value in another order": tensor("qkv_proj.weight", thirds_turned),
        "the attention's norm": tensor("attn_ln.weight", ones),
        "the MLP's norm": tensor("mlp_ln.weight", ones),
        "the token type": tensor("token_type_embeddings.weight", zeros),
        "the pooler": tensor("pooler.dense.weight", next_rows),
    },
    "electra": {
        **HEAD,
        "the embeddings' norm": ENCODER["the embeddings' norm"],
        "the projection of the embeddings": tensor("embeddings_project.weight", next_rows),
        "its bias": tensor("embeddings_project.bias", zeros),
        "token types all alike": tensor("token_type_embeddings.weight", same_rows),
        "positions one place off": tensor("position_embeddings.weight", next_rows),
    },
    "distilbert": {
        **ENCODER,
        "the number of heads": config(n_heads=2),
        "the head's first layer": tensor("pre_classifier.weight", next_rows),
        "the attention's norm": tensor("sa_layer_norm.weight", ones),
        "positions one place off": tensor("position_embeddings.weight", next_rows),
    },
    "camembert": {
        **HEAD,
        "the embeddings' norm": ENCODER["the embeddings' norm"],
        "where positions begin": config(pad_token_id=0),
    },
    "two-label-reranker": {
        **ENCODER,
        "the order of the labels": tensor("classifier.weight", rows_reversed),
        "token types all alike": tensor("token_type_embeddings.weight", same_rows),
        "the pooler": tensor("pooler.dense.weight", next_rows),
    },
    "jina-v2": {
        **HEAD,
        "the embeddings' norm": tensor("emb_ln.weight", ones),
        "query, key and value in another order": tensor("Wqkv.weight", thirds_turned),
        "the attention's norm": tensor("norm1.weight", ones),
        "the MLP's norm": tensor("norm2.weight", ones),
        "where positions begin": config(pad_token_id=0),
    },
}


@pytest.mark.parametrize("name", ENCODERS)
def test_unbroken_the_scores_are_those_of_the_reference(name: str, tmp_path: Path) -> None:
    assert distance(checkpoints.copy(name, tmp_path / name), name) < BOUND


@pytest.mark.parametrize(
    ("name", "what", "change"),
    [(name, what, change) for name, changes in BREAKS.items() for what, change in changes.items()],
    ids=[f"{name}: {what}" for name, changes in BREAKS.items() for what in changes],
)
def test_a_broken_part_is_noticed(name: str, what: str, change: Change, tmp_path: Path) -> None:
    folder = checkpoints.copy(name, tmp_path / name)
    change(folder)
    found = distance(folder, name)
    print(f"{name}, {what}: {found:.5f}")
    assert found > SEEN, what


@pytest.mark.parametrize("name", ["electra", "two-label-reranker"])
def test_a_second_text_that_begins_one_token_late_is_noticed(name: str, tmp_path: Path) -> None:
    assert distance(checkpoints.copy(name, tmp_path / name), name, second=1) > SEEN


@pytest.mark.parametrize(
    ("name", "activation"),
    [("electra", "tanh"), ("electra", "relu"), ("distilbert", "gelu"), ("distilbert", "tanh")],
)
def test_another_activation_of_the_head_is_noticed(
    name: str, activation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their classes fix it, so no configuration says it."""
    key = Weights.key

    def changed(self: Weights, wanted: str, default: Any = None) -> Any:
        return activation if wanted == "classifier.activation" else key(self, wanted, default)

    monkeypatch.setattr(Weights, "key", changed)
    assert distance(checkpoints.copy(name, tmp_path / name), name) > SEEN


def test_all_distances_have_the_buckets_of_the_reference() -> None:
    """Where each bucket begins, of 32 and of DeBERTa-v3's 256 buckets for 512 positions, as transformers has
    it."""
    found = rows(np.arange(512), 32, 512) - 32
    begins = [*range(17), 17, 21, 26, 32, 41, 51, 64, 81, 102, 128, 162, 203, 256, 322, 406]
    assert [at for at in range(512) if at == 0 or found[at] != found[at - 1]] == begins
    found = rows(np.arange(512), 256, 512) - 256
    assert np.array_equal(found[:130], np.arange(130))
    begins = [at for at in range(1, 512) if found[at] != found[at - 1]]
    assert begins[-12:] == [449, 454, 459, 464, 469, 474, 479, 484, 490, 495, 500, 506] and found[-1] == 255
    assert np.array_equal(rows(-np.arange(512), 256, 512), 256 - found)
