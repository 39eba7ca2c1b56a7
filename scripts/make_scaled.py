"""Generates the checkpoints of tests/golden/scaled and their float32 scores from transformers.

With random weights of the usual size, a wrong local attention window changes a state by only some
thousandths, so a comparison would pass with wrong code. Here the matrices are ten times as large, so that
each part of the model affects the score: tests/backends/test_goldens_can_fail.py breaks one part at a time
and requires each comparison to fail.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

VOCABULARY, WINDOW = 96, 64
START, BETWEEN, END = 2, 3, 3
LABELS = (7, 9)
SHAPE = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3, "intermediate_size": 48}
DECODER = SHAPE | {
    "vocab_size": VOCABULARY, "num_hidden_layers": 4, "num_key_value_heads": 2, "head_dim": 16,
    "max_position_embeddings": WINDOW, "attn_implementation": "eager",
    "pad_token_id": 0, "bos_token_id": START, "eos_token_id": END,
}  # fmt: skip
# transformers initialises matrices with 0.02.
STD = 0.2


def randomised(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Randomise all weights: matrices with standard deviation STD, norms about 1, biases about 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            values = torch.randn(weight.shape, generator=generator)
            if weight.dim() > 1:
                values *= STD * (5.0 if "embeddings" in name else 1.0)
            else:
                values = values * 0.3 + ("norm" in name.lower() and name.endswith("weight"))
            weight.copy_(values)
    return model.eval().float()


def bert() -> tuple[torch.nn.Module, bool]:
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, **SHAPE, max_position_embeddings=WINDOW, num_labels=1, hidden_act="gelu"
    )
    return randomised(transformers.BertForSequenceClassification(config), 11), True


def xlmr() -> tuple[torch.nn.Module, bool]:
    config = transformers.XLMRobertaConfig(
        vocab_size=VOCABULARY, **SHAPE, max_position_embeddings=WINDOW + 2, type_vocab_size=1, num_labels=1,
        hidden_act="gelu", layer_norm_eps=1e-5, pad_token_id=1,
    )  # fmt: skip
    return randomised(transformers.XLMRobertaForSequenceClassification(config), 12), False


def modernbert(pooling: str) -> Callable[[], tuple[torch.nn.Module, bool]]:
    def made() -> tuple[torch.nn.Module, bool]:
        config = transformers.ModernBertConfig(
            vocab_size=VOCABULARY, **(SHAPE | {"num_hidden_layers": 4}), max_position_embeddings=WINDOW,
            num_labels=1, local_attention=16, classifier_pooling=pooling, attn_implementation="eager",
            layer_types=["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
            pad_token_id=0, cls_token_id=START, sep_token_id=END, bos_token_id=START, eos_token_id=END,
        )  # fmt: skip
        return randomised(transformers.ModernBertForSequenceClassification(config), 13), False

    return made


def gemma2() -> torch.nn.Module:
    config = transformers.Gemma2Config(
        **DECODER, query_pre_attn_scalar=12, sliding_window=8, attn_logit_softcapping=5.0,
        final_logit_softcapping=3.0, layer_types=["sliding_attention", "full_attention"] * 2,
    )  # fmt: skip
    return randomised(transformers.Gemma2ForCausalLM(config), 14)


def gemma3() -> torch.nn.Module:
    rope = {
        "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    config = transformers.Gemma3TextConfig(
        **DECODER, query_pre_attn_scalar=12, sliding_window=8, rope_parameters=rope,
        layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
    )  # fmt: skip
    return randomised(transformers.Gemma3ForCausalLM(config), 15)


LLAMA = DECODER | {
    "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 1e3, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 24,
    },
}  # fmt: skip


def llama() -> torch.nn.Module:
    return randomised(transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)), 16)


def nemotron() -> torch.nn.Module:
    """llama-nemotron-rerank, whose class is code in its own repository: no causal mask, and the product of
    one row and the mean of all states."""
    config = transformers.LlamaConfig(**LLAMA, num_labels=1)
    return randomised(transformers.LlamaForSequenceClassification(config), 17)


def in_both_directions(model: torch.nn.Module, ids: list[int]) -> float:
    every = torch.zeros(1, 1, len(ids), len(ids))
    states = model.model(torch.tensor([ids]), attention_mask=every).last_hidden_state
    return float(model.score(states.mean(1)))


FAMILIES: dict[str, Callable[[], tuple[torch.nn.Module, bool]]] = {
    "bert": bert,
    "xlmr": xlmr,
    "modernbert-mean": modernbert("mean"),
    "modernbert-cls": modernbert("cls"),
}


DECODERS: dict[str, Callable[[], torch.nn.Module]] = {"gemma2": gemma2, "gemma3": gemma3, "llama": llama}


def sequences() -> list[tuple[list[int], int]]:
    """Return the token ids of pairs of many lengths, and the position of the second text in each."""
    chance = random.Random(5)
    found = []
    for first, second in ((1, 1), (1, 3), (4, 9), (7, 20), (9, 24), (3, 40), (20, 20), (30, 31), (2, 59)):
        query, document = ([chance.randrange(5, VOCABULARY) for _ in range(n)] for n in (first, second))
        found.append(([START, *query, BETWEEN, *document, END], first + 2))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("tests/golden/scaled"))
    out = parser.parse_args().out
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    for name, build in FAMILIES.items():
        model, typed = build()
        folder = out / name
        model.save_pretrained(folder)
        cases = []
        for ids, second in sequences():
            given: dict[str, Any] = {"input_ids": torch.tensor([ids])}
            if typed:
                given["token_type_ids"] = torch.tensor([[0] * second + [1] * (len(ids) - second)])
            raw = round(model(**given).logits[0, 0].item(), 6)
            cases.append({"ids": ids, "second": second if typed else len(ids), "raw": raw})
        written(folder, cases)
    for name, build_decoder in DECODERS.items():
        model, folder, cases = build_decoder(), out / name, []
        model.save_pretrained(folder)
        (folder / "generation_config.json").unlink()
        for ids, _ in sequences():
            first, second = model(torch.tensor([ids])).logits[0, -1, list(LABELS)].tolist()
            cases.append({"ids": ids, "labels": LABELS, "raw": round(first - second, 6)})
        written(folder, cases)
    model, folder = nemotron(), out / "nemotron"
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["LlamaBidirectionalForSequenceClassification"], "pooling": "avg"}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    raws = [(ids, round(in_both_directions(model, ids), 6)) for ids, _ in sequences()]
    written(folder, [{"ids": ids, "second": len(ids), "raw": raw} for ids, raw in raws])


def written(folder: Path, cases: list[dict[str, Any]]) -> None:
    (folder / "golden.json").write_text(json.dumps(cases).replace("}, ", "},\n ") + "\n")
    print(folder.name, [case["raw"] for case in cases])


if __name__ == "__main__":
    main()
