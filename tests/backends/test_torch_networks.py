"""PyTorch's networks against transformers' values, with attention, prefixes and passes of every shape.

Needs PyTorch: `make test-torch`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="no PyTorch here: make test-torch")

from breaks import Change, tensor
from cases import PAIR_CHECKPOINTS
from test_causal_checkpoints import with_head
from test_encoders_can_fail import BREAKS as ENCODER_BREAKS
from test_goldens_can_fail import BREAKS, FAMILIES, FILE_BREAKS, copied
from test_modules import BREAKS as MODULE_BREAKS
from test_modules import SCALED, made

import checkpoints
import ggufs
from rerankd.backends.torch import runtime
from rerankd.backends.torch.architecture import Unsupported
from rerankd.backends.torch.architectures import ARCHITECTURES
from rerankd.backends.torch.network import Network
from rerankd.backends.torch.support import ARCHITECTURES as NAMES
from rerankd.backends.worker import scorer
from rerankd.backends.worker.passes import Reading, Vectors
from rerankd.errors import ModelFileError
from rerankd.formats import model_files, tokenizer
from rerankd.formats.weights import Weights
from support import GOLDEN, golden

BOUND = 1e-5
# A broken part must change scores by far more.
SEEN = 20 * BOUND
CPU = torch.device("cpu")
LABELED = ("qwen3-headed", "qwen3-headless", "qwen2-labels", "qwen3-yes", "qwen2-first", "gemma-yes")


def started(path: Path, labels: Sequence[int] = ()) -> Network:
    return runtime.start(path, "none" if labels else "rank", labels=labels)


def computed(network: scorer.Network, readings: Sequence[Reading]) -> Any:
    """The rows of one forward pass."""
    return network.start(readings)()


def values(network: scorer.Network, readings: Sequence[Reading]) -> Vectors:
    """The values in order, in the passes that the network divides them into."""
    found = np.zeros(len(readings), np.float32)
    for places in network.passes(readings):
        found[places] = computed(network, [readings[at] for at in places])[:, 0]
    return found


def worst(network: scorer.Network, readings: Sequence[Reading], wanted: Any) -> float:
    """The largest difference from the wanted values; alone, in passes and all together they must agree."""
    alone = np.array([computed(network, [one])[0, 0] for one in readings])
    assert np.abs(values(network, readings) - alone).max() < BOUND
    assert np.abs(computed(network, readings)[:, 0] - alone).max() < BOUND
    return float(np.abs(alone - wanted).max())


def pairs(name: str, path: Path, shared: int = 0, each: int = 6) -> tuple[list[Reading], Any]:
    """A part of a golden model's pairs, and their raw values."""
    cases = [case for case in golden(name)["cases"] if case["fits"]][::each]
    is_typed = tokenizer.read(model_files.read(path)).frame.first_typed is not None
    readings = []
    for case in cases:
        ids = np.array(case["ids"], np.int32)
        second = case["ids"].index(case["ids"][-1]) + 1 if is_typed else len(ids)
        readings.append(Reading(ids, second, shared))
    return readings, np.array([case["raw"] for case in cases])


@pytest.mark.parametrize("name", PAIR_CHECKPOINTS)
def test_encoders_have_the_values_of_transformers(name: str, tmp_path: Path) -> None:
    folder = GOLDEN / name
    assert worst(started(folder), *pairs(name, folder, each=1)) < BOUND


@pytest.mark.parametrize("name", ["qwen3-headless", "qwen2-labels"])
def test_causal_checkpoints_have_the_values_of_transformers(name: str) -> None:
    network = started(GOLDEN / name, golden(name)["label_ids"])
    assert worst(network, *pairs(name, GOLDEN / name, 20)) < BOUND


def test_a_causal_models_rank_head_has_the_values_of_transformers(tmp_path: Path) -> None:
    folder = with_head(tmp_path)
    assert worst(started(folder), *pairs("qwen3-headless", folder, 20)) < BOUND
    tensor("score.weight", lambda held: held[:, ::-1])(folder)
    assert worst(started(folder), *pairs("qwen3-headless", folder, 20)) > SEEN


@pytest.mark.parametrize("shared", [0, 20])
@pytest.mark.parametrize("name", LABELED)
def test_causal_models_have_the_values_of_transformers_with_and_without_a_prefix(
    name: str, shared: int
) -> None:
    path = GOLDEN / golden(name)["model"]
    network = started(path, golden(name)["label_ids"])
    readings, wanted = pairs(name, path, shared, each=1)
    assert worst(network, readings, wanted) < BOUND
    assert (network.prefixes.size_bytes > 0) == (shared > 0)


@pytest.mark.parametrize("name", ["qwen3-headless", "xlmr-head"])
def test_the_states_of_tokens_have_the_values_of_transformers(name: str) -> None:
    transformers = pytest.importorskip("transformers", reason="make test-torch")
    readings, _ = pairs(name, GOLDEN / name, each=60)
    body = transformers.AutoModel.from_pretrained(GOLDEN / name, dtype=torch.float32)
    with torch.inference_mode():
        states = [body(torch.from_numpy(one.ids[None]).long()).last_hidden_state[0] for one in readings]
    network = runtime.start(GOLDEN / name, "none")
    some = np.array([2, 0, 5], np.int32)
    mixed = [one._replace(wanted=some if at % 2 else None) for at, one in enumerate(readings)]
    found = computed(network, mixed)
    for at, (rows, wanted) in enumerate(zip(found, states, strict=True)):
        assert np.abs(rows - wanted.numpy()[some if at % 2 else ...]).max() < BOUND


def test_a_split_file_has_the_values_of_the_whole(tmp_path: Path) -> None:
    part = ggufs.rewrite(GOLDEN / "qwen3-headless.gguf", tmp_path / "split.gguf", tensors_a_part=5)
    assert len([*tmp_path.iterdir()]) > 3
    values = golden("qwen3-headless")
    assert worst(started(part, values["label_ids"]), *pairs("qwen3-headless", part, 20)) < BOUND


def test_modern_bert_with_silu_has_the_values_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="make test-torch")
    keys = {"modern-bert.hidden_activation": "silu"}
    path = ggufs.rewrite(GOLDEN / "modernbert-head.gguf", tmp_path / "silu.gguf", keys=keys)
    readings, with_gelu = pairs("modernbert-head", path)
    kind = transformers.ModernBertForSequenceClassification
    model = kind.from_pretrained(GOLDEN / "modernbert-head", hidden_activation="silu", dtype=torch.float32)
    with torch.inference_mode():
        wanted = [float(model(torch.from_numpy(one.ids[None]).long()).logits) for one in readings]
    assert worst(started(path), readings, np.array(wanted)) < BOUND
    assert np.abs(np.array(wanted) - with_gelu).max() > SEEN


@pytest.mark.parametrize("name", SCALED)
def test_a_head_of_modules_has_the_values_of_the_library(name: str, tmp_path: Path) -> None:
    assert modules_distance(made(name, tmp_path)) < BOUND


def modules_distance(folder: Path) -> float:
    cases = json.loads((folder / "golden.json").read_text())["cases"]
    texts = [Reading(np.array(case["ids"], np.int32), case["second"]) for case in cases]
    return worst(started(folder), texts, np.array([case["raw"] for case in cases]))


@pytest.mark.parametrize(
    ("name", "what", "change"), MODULE_BREAKS, ids=[f"{name}: {what}" for name, what, _ in MODULE_BREAKS]
)
def test_a_broken_part_of_a_head_of_modules_is_noticed(
    name: str, what: str, change: Change, tmp_path: Path
) -> None:
    folder = made(name, tmp_path)
    change(folder)
    assert modules_distance(folder) > SEEN, what


def scaled_distance(folder: Path, second: int = 0) -> float:
    cases = json.loads((folder / "golden.json").read_text())
    texts = [Reading(np.array(case["ids"], np.int32), case["second"] + second) for case in cases]
    return worst(started(folder), texts, np.array([case["raw"] for case in cases]))


@pytest.mark.parametrize("family", FAMILIES)
def test_scaled_checkpoints_have_the_values_of_transformers(family: str, tmp_path: Path) -> None:
    assert scaled_distance(copied(family, tmp_path)) < BOUND


@pytest.mark.parametrize(
    ("family", "what", "change"), BREAKS, ids=[f"{family}: {what}" for family, what, _ in BREAKS]
)
def test_a_broken_part_is_noticed(family: str, what: str, change: Change, tmp_path: Path) -> None:
    folder = copied(family, tmp_path)
    change(folder)
    assert scaled_distance(folder) > SEEN, what


def test_a_second_text_that_begins_one_token_late_is_noticed(tmp_path: Path) -> None:
    assert scaled_distance(copied("bert", tmp_path), second=1) > SEEN


@pytest.mark.parametrize(
    ("name", "what"), [(name, what) for name, changes in ENCODER_BREAKS.items() for what in changes]
)
def test_a_broken_part_of_another_encoder_is_noticed(name: str, what: str, tmp_path: Path) -> None:
    folder = checkpoints.copy(name, tmp_path / name)
    ENCODER_BREAKS[name][what](folder)
    assert worst(started(folder), *pairs(name, folder)) > SEEN, what


@pytest.mark.parametrize("what", FILE_BREAKS)
def test_a_broken_part_of_a_gguf_file_is_noticed(what: str, tmp_path: Path) -> None:
    name, change = FILE_BREAKS[what]
    broken = ggufs.rewrite(GOLDEN / golden(name)["model"], tmp_path / "broken.gguf", **change)  # type: ignore[arg-type]
    labels = golden(name)["label_ids"] if name in LABELED else ()
    assert worst(started(broken, labels), *pairs(name, broken, 40 if labels else 0)) > SEEN


def test_the_table_and_the_names_that_the_service_knows_agree() -> None:
    assert (*ARCHITECTURES,) == NAMES


def test_scaled_rotary_positions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    key = Weights.key

    def changed(self: Weights, name: str, default: Any = None) -> Any:
        return "yarn" if name == "rope.scaling.type" else key(self, name, default)

    monkeypatch.setattr(Weights, "key", changed)
    with pytest.raises(Unsupported, match="yarn"):
        started(GOLDEN / "qwen3-headless.gguf", (1, 2))


def test_a_missing_bias_is_a_damaged_file(tmp_path: Path) -> None:
    def without(held: dict[str, Any]) -> dict[str, Any]:
        return {name: data for name, data in held.items() if name != "blk.0.attn_q.bias"}

    path = ggufs.rewrite(GOLDEN / "xlmr-head.gguf", tmp_path / "damaged.gguf", tensors=without)
    with pytest.raises(ModelFileError, match=r"attn_q\.bias is missing"):
        started(path)
