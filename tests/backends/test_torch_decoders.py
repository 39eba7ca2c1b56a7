"""Gemma, Gemma 2 and 3, Llama, and Llama in both directions, against transformers' values on random weights.

The checkpoints are made here, by the library itself. Needs PyTorch: `make test-torch`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="no PyTorch here: make test-torch")
transformers = pytest.importorskip("transformers", reason="no transformers here: make test-torch")

from test_torch_networks import BOUND, SEEN, worst

import checkpoints
from rerankd.backends.torch import runtime
from rerankd.backends.torch.architectures import ARCHITECTURES
from rerankd.backends.worker.passes import Reading
from rerankd.formats import model_files
from twins import write_wordpiece

SIZES = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 7,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 256,
}  # fmt: skip
LABELS = (7, 9)
ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
BANDS = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
LOCAL = {"sliding_window": 8, "query_pre_attn_scalar": 48}
# A class: its configuration class, its configuration, and changes of the file that must change scores.
CLASSES: Mapping[str, tuple[str, dict[str, Any], dict[str, dict[str, Any]]]] = {
    "GemmaForCausalLM": (
        "GemmaConfig",
        {},
        {"the rope base": {"rope_parameters": {"rope_theta": 2e4}}, "the epsilon": {"rms_norm_eps": 0.1}},
    ),
    "Gemma2ForCausalLM": (
        "Gemma2Config",
        LOCAL | {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
        {
            "the window": {"sliding_window": 7},
            "the scale": {"query_pre_attn_scalar": 32},
            "the cap of scores": {"attn_logit_softcapping": 6.0},
            "the cap of logits": {"final_logit_softcapping": None},
            "which layers are local": {"layer_types": ["full_attention"] * 7},
        },
    ),
    "Gemma3ForCausalLM": (
        "Gemma3TextConfig",
        LOCAL | {"rope_parameters": ROPE},
        {
            "the window": {"sliding_window": 9},
            "the factor of global layers": {
                "rope_parameters": ROPE | {"full_attention": {"rope_theta": 1e6}}
            },
            "the base of local layers": {
                "rope_parameters": ROPE | {"sliding_attention": {"rope_theta": 2e4}}
            },
        },
    ),
    "LlamaForCausalLM": (
        "LlamaConfig",
        {"rope_parameters": BANDS},
        {
            "the scaling": {"rope_parameters": {"rope_theta": 5e5}},
            "a band": {"rope_parameters": BANDS | {"high_freq_factor": 8.0}},
            "the key heads": {"num_key_value_heads": 4, "head_dim": 16},
        },
    ),
}


@dataclass(frozen=True)
class Made:
    """A checkpoint, inputs, and transformers' raw values of them."""

    folder: Path
    readings: list[Reading]
    wanted: Any


def readings() -> list[Reading]:
    """Inputs longer than a window; the last two begin with the same 20 ids."""
    draw = np.random.default_rng(0)
    found = [draw.integers(5, 300, length).astype(np.int32) for length in (3, 50, 120, 30)]
    found[3][:20] = found[2][:20]
    return [Reading(ids, len(ids), 20 * (at > 1)) for at, ids in enumerate(found)]


def saved(model: Any, folder: Path) -> Path:
    """The model with random weights in a folder, with a tokenizer, which the tests do not use."""
    torch.manual_seed(0)
    is_one = float(type(model).__name__.startswith("Llama"))  # Gemma's norms multiply by 1 + weight
    for weight in model.parameters():
        is_norm = weight.dim() == 1
        weight.data = torch.randn_like(weight) * (0.3 if is_norm else 0.15) + is_norm * is_one
    model.eval().save_pretrained(folder)
    write_wordpiece(folder / "tokenizer.json")
    return folder


def made(kind: str, folder: Path) -> Made:
    config, more, _ = CLASSES[kind]
    own = getattr(transformers, config)(**SIZES, **more, attn_implementation="eager")
    model = getattr(transformers, kind)(own).float()
    saved(model, folder)
    inputs, wanted = readings(), []
    with torch.inference_mode():
        for one in inputs:
            logits = model(torch.from_numpy(one.ids[None].astype(np.int64))).logits[0, -1, list(LABELS)]
            wanted.append(float(logits[0] - logits[1]))
    return Made(folder, inputs, np.array(wanted))


@pytest.mark.parametrize("kind", CLASSES)
def test_decoders_have_the_values_of_transformers(kind: str, tmp_path: Path) -> None:
    found = made(kind, tmp_path / "model")
    assert model_files.read(found.folder).refusal is None
    network = runtime.start(found.folder, "none", labels=LABELS)
    assert worst(network, found.readings, found.wanted) < BOUND
    assert network.prefixes.size_bytes > 0


@pytest.mark.parametrize(
    ("kind", "what"), [(kind, what) for kind, (*_, breaks) in CLASSES.items() for what in breaks]
)
def test_a_broken_part_of_a_decoder_is_noticed(kind: str, what: str, tmp_path: Path) -> None:
    found = made(kind, tmp_path / "model")
    checkpoints.edit(found.folder / "config.json", **CLASSES[kind][2][what])
    if what == "the key heads":
        with pytest.raises(Exception, match="shape"):
            runtime.start(found.folder, "none", labels=LABELS)
        return
    network = runtime.start(found.folder, "none", labels=LABELS)
    assert worst(network, found.readings, found.wanted) > SEEN


def test_llama_in_both_directions_has_the_values_of_its_class(tmp_path: Path) -> None:
    """llama-nemotron-rerank: no mask, the mean of all states, and one row. Its class is code in its own
    repository, which does this."""
    config = transformers.LlamaConfig(**SIZES, rope_parameters=BANDS, num_labels=1, pad_token_id=0)
    model = transformers.LlamaForSequenceClassification(config).float()
    folder = saved(model, tmp_path / "model")
    own = {"architectures": ["LlamaBidirectionalForSequenceClassification"], "pooling": "avg"}
    checkpoints.edit(folder / "config.json", **own, auto_map={"AutoModel": "llama_bidirectional.Model"})
    inputs, wanted = readings(), []
    with torch.inference_mode():
        for one in inputs:
            ids = torch.from_numpy(one.ids[None].astype(np.int64))
            every = torch.zeros(1, 1, len(one.ids), len(one.ids))
            states = model.model(ids, attention_mask=every).last_hidden_state
            wanted.append(float(model.score(states.mean(1))))
    metadata = model_files.read(folder)
    assert metadata.refusal is None and not metadata.is_causal
    assert worst(runtime.start(folder, "rank"), inputs, np.array(wanted)) < BOUND
    checkpoints.edit(folder / "config.json", pooling="last")
    assert worst(runtime.start(folder, "rank"), inputs, np.array(wanted)) > SEEN


def test_qwen3_vl_reads_texts_as_qwen3_does() -> None:
    """So one class serves both: each section of a text's rotary positions is the same."""
    sizes = SIZES | {"num_hidden_layers": 2, "rope_parameters": {"rope_type": "default", "rope_theta": 5e6}}
    model = transformers.Qwen3Model(transformers.Qwen3Config(**sizes)).eval()
    rope = sizes["rope_parameters"] | {"mrope_section": [6, 5, 5], "mrope_interleaved": True}
    config = transformers.Qwen3VLTextConfig(**(sizes | {"rope_parameters": rope}))
    vision = transformers.Qwen3VLTextModel(config).eval()
    vision.load_state_dict(model.state_dict())
    ids = torch.randint(0, 300, (1, 120))
    with torch.inference_mode():
        states = [one(input_ids=ids).last_hidden_state for one in (model, vision)]
    assert torch.allclose(*states, atol=BOUND)
    assert ARCHITECTURES["qwen3vl"] is ARCHITECTURES["qwen3"]
