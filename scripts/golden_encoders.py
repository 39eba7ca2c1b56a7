"""Builds the golden encoders of classes that no GGUF file holds: DeBERTa-v3, mGTE, ELECTRA, DistilBERT,
CamemBERT, jina-reranker-v2 and BERT with two labels (see make_golden.py).

All but two share the tokenizer of another golden model. Their matrices are about ten times as large as
transformers initialises them, so that each part of a model moves its score (see make_scaled.py). Weights are
rounded to F16, and scored in float32.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from golden_tokenizers import (
    Encode,
    bert_tokenizer,
    encoder_of,
    sentencepiece_ids,
    train_sentencepiece,
    xlmr_tokenizer,
)
from golden_unigram import camembert_tokenizer, deberta_tokenizer, with_small_charsmap
from make_scaled import randomised
from safetensors.torch import save_file
from tokenizers import Tokenizer

Ids = Callable[[str, str], list[int]]
Score = Callable[[list[int]], float]
Tensors = dict[str, torch.Tensor]

SHAPE = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3, "intermediate_size": 48}
MAX_LENGTH = 256
UNKNOWN = 3  # the id of the piece for what is not in the vocabulary, of both Unigram models
NTK_FACTOR, ROPE_BASE = 8.0, 20000.0
AUTOMATIC = "AutoModelForSequenceClassification"


def halved(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """The model with random weights that F16 can hold. Its buffers, such as frequencies, stay as they are."""
    randomised(model, seed)
    for weight in model.parameters():
        weight.copy_(weight.half().float())
    return model


def scored(model: torch.nn.Module, separator: int | None = None) -> Score:
    """The logit of ids; with two labels the second's less the first's. `separator` ends the first text, where
    the model has types of tokens."""

    def score(ids: list[int]) -> float:
        given = {"input_ids": torch.tensor([ids])}
        if separator is not None:
            first = ids.index(separator) + 1
            given["token_type_ids"] = torch.tensor([[0] * first + [1] * (len(ids) - first)])
        logits = model(**given).logits[0]
        return (logits[-1] - (logits[0] if len(logits) == 2 else 0)).item()

    return score


def save(folder: Path, model: transformers.PreTrainedModel, tensors: Tensors, **config: object) -> None:
    """The weights in F16 under the names in `tensors`, and the model's configuration."""
    folder.mkdir(exist_ok=True)
    save_file({name: one.half().contiguous() for name, one in tensors.items()}, folder / "model.safetensors")
    said = {
        **model.config.to_dict(),
        "architectures": [type(model).__name__],
        "transformers_version": None,
        **config,
    }
    (folder / "config.json").write_text(json.dumps(dict(sorted(said.items())), indent=1) + "\n")


def fast(tok: Tokenizer, sentencepiece_encode: Encode) -> Encode:
    """The ids of the tokenizer itself; of a text in which it finds control tokens, which are text here, those
    of SentencePiece: they are the same but for spaces that its map makes at a text's end."""
    control = {at for at, one in tok.get_added_tokens_decoder().items() if one.special}

    def encode(text: str) -> list[int]:
        found = tok.encode(text, add_special_tokens=False).ids
        return sentencepiece_encode(text) if control.intersection(found) - {UNKNOWN} else found

    return encode


def pairs(encode: Encode, start: int, between: list[int], end: int) -> Ids:
    return lambda query, document: [start, *encode(query), *between, *encode(document), end]


def wordpiece_pairs(tok: Tokenizer) -> Ids:
    cls, sep = tok.token_to_id("[CLS]"), tok.token_to_id("[SEP]")
    return pairs(encoder_of(tok), cls, [sep], sep)


def deberta(texts: list[str], folder: Path, every_text: list[str]) -> tuple[Ids, Score]:
    """DeBERTa-v3, as mxbai-rerank-v1: eight buckets, so that distances from 4 on share embeddings."""
    sp = with_small_charsmap(train_sentencepiece(texts, folder), every_text)
    tok = deberta_tokenizer(sp)
    config = transformers.DebertaV2Config(
        vocab_size=tok.get_vocab_size(), **SHAPE, max_position_embeddings=MAX_LENGTH, num_labels=1,
        relative_attention=True, position_buckets=8, norm_rel_ebd="layer_norm", share_att_key=True,
        pos_att_type=["p2c", "c2p"], position_biased_input=False, type_vocab_size=0, hidden_act="gelu",
        pooler_hidden_act="gelu", layer_norm_eps=1e-7, max_relative_positions=-1,
    )  # fmt: skip
    model = halved(transformers.DebertaV2ForSequenceClassification(config), 21)
    save(folder, model, model.state_dict(), pos_att_type="p2c|c2p")
    tok.save(str(folder / "tokenizer.json"), pretty=False)
    return pairs(fast(tok, sentencepiece_ids(sp)), 1, [2], 2), scored(model)


def gte(texts: list[str], folder: Path, every_text: list[str]) -> tuple[Ids, Score]:
    """mGTE, by transformers' Gte; the files are those of the class in its own code (Alibaba-NLP/new-impl).
    Its NTK scaling is transformers' linear scaling with another base and factor."""
    sp = train_sentencepiece(texts, folder)
    size = SHAPE["hidden_size"] // SHAPE["num_attention_heads"]
    config = transformers.GteConfig(
        vocab_size=xlmr_tokenizer(sp).get_vocab_size(), **SHAPE, max_position_embeddings=MAX_LENGTH,
        num_labels=1, type_vocab_size=1, layer_norm_eps=1e-12, hidden_act="gelu",
        rope_parameters={
            "rope_type": "linear", "rope_theta": ROPE_BASE * NTK_FACTOR, "factor": NTK_FACTOR ** (2 / size),
        },
    )  # fmt: skip
    model = halved(transformers.GteForSequenceClassification(config), 22)
    held = model.state_dict()
    tensors: Tensors = {}
    names = {
        "self_attn.o_proj": "attention.o_proj", "post_attention_layernorm": "attn_ln",
        "mlp.down_proj": "mlp.down_proj", "post_mlp_layernorm": "mlp_ln",
    }  # fmt: skip
    for name, values in held.items():
        if not name.startswith("gte.layers."):
            tensors[name.replace("gte.", "new.")] = values
    for layer in range(config.num_hidden_layers):
        own, theirs = f"gte.layers.{layer}", f"new.encoder.layer.{layer}"
        for ending in ("weight", "bias"):
            qkv = [held[f"{own}.self_attn.{part}_proj.{ending}"] for part in "qkv"]
            tensors[f"{theirs}.attention.qkv_proj.{ending}"] = torch.cat(qkv)
            for before, after in names.items():
                tensors[f"{theirs}.{after}.{ending}"] = held[f"{own}.{before}.{ending}"]
        up_gate = [held[f"{own}.mlp.{part}_proj.weight"] for part in ("up", "gate")]
        tensors[f"{theirs}.mlp.up_gate_proj.weight"] = torch.cat(up_gate)
    save(
        folder, model, tensors, architectures=["NewForSequenceClassification"], model_type="new",
        rope_parameters=None, rope_theta=ROPE_BASE, rope_scaling={"type": "ntk", "factor": NTK_FACTOR},
        position_embedding_type="rope", layer_norm_type="layer_norm", pack_qkv=True, unpad_inputs=False,
        logn_attention_scale=False, logn_attention_clip1=False, use_memory_efficient_attention=False,
        auto_map={AUTOMATIC: "Alibaba-NLP/new-impl--modeling.NewForSequenceClassification"},
    )  # fmt: skip
    return pairs(sentencepiece_ids(sp), 0, [2, 2], 2), scored(model)


def electra(texts: list[str], folder: Path, every_text: list[str]) -> tuple[Ids, Score]:
    """ELECTRA, with embeddings that are narrower than the states."""
    tok = bert_tokenizer(texts)
    config = transformers.ElectraConfig(
        vocab_size=tok.get_vocab_size(), embedding_size=24, **SHAPE, max_position_embeddings=128,
        num_labels=1,
    )  # fmt: skip
    model = halved(transformers.ElectraForSequenceClassification(config), 23)
    save(folder, model, model.state_dict())
    return wordpiece_pairs(tok), scored(model, tok.token_to_id("[SEP]"))


def distilbert(texts: list[str], folder: Path, every_text: list[str]) -> tuple[Ids, Score]:
    tok = bert_tokenizer(texts)
    config = transformers.DistilBertConfig(
        vocab_size=tok.get_vocab_size(), dim=32, n_heads=4, n_layers=3, hidden_dim=48,
        max_position_embeddings=128, num_labels=1,
    )  # fmt: skip
    model = halved(transformers.DistilBertForSequenceClassification(config), 24)
    save(folder, model, model.state_dict())
    return wordpiece_pairs(tok), scored(model)


def camembert(texts: list[str], folder: Path, every_text: list[str]) -> tuple[Ids, Score]:
    """CamemBERT: RoBERTa's tensors, and a vocabulary whose control tokens stand among unused ones."""
    sp = with_small_charsmap(train_sentencepiece(texts, folder), every_text)
    tok = camembert_tokenizer(sp)
    config = transformers.CamembertConfig(
        vocab_size=tok.get_vocab_size(), **SHAPE, max_position_embeddings=MAX_LENGTH + 2, type_vocab_size=1,
        num_labels=1, layer_norm_eps=1e-5, pad_token_id=1, bos_token_id=5, eos_token_id=6,
    )  # fmt: skip
    model = halved(transformers.CamembertForSequenceClassification(config), 25)
    save(folder, model, model.state_dict())
    tok.save(str(folder / "tokenizer.json"), pretty=False)
    # SentencePiece's first three are <unk>, <s> and </s>; four unused tokens stand before <s>.
    encode: Encode = lambda text: [3 if one == 0 else one + 4 for one in sp.encode(text)]  # noqa: E731
    return pairs(fast(tok, encode), 5, [6, 6], 6), scored(model)


def two_labels(texts: list[str], folder: Path, every_text: list[str]) -> tuple[Ids, Score]:
    """BERT with two labels, as amberoad/bert-multilingual-passage-reranking-msmarco."""
    tok = bert_tokenizer(texts)
    config = transformers.BertConfig(
        vocab_size=tok.get_vocab_size(), **SHAPE, max_position_embeddings=128, num_labels=2
    )
    model = halved(transformers.BertForSequenceClassification(config), 26)
    save(folder, model, model.state_dict())
    return wordpiece_pairs(tok), scored(model, tok.token_to_id("[SEP]"))


def jina_v2(texts: list[str], folder: Path, every_text: list[str]) -> tuple[Ids, Score]:
    """jina-reranker-v2: XLM-R under the names of its own code's modules, query, key and value merged."""
    sp = train_sentencepiece(texts, folder)
    config = transformers.XLMRobertaConfig(
        vocab_size=xlmr_tokenizer(sp).get_vocab_size(), **SHAPE, max_position_embeddings=MAX_LENGTH + 2,
        type_vocab_size=1, num_labels=1, layer_norm_eps=1e-5, pad_token_id=1,
    )  # fmt: skip
    model = halved(transformers.XLMRobertaForSequenceClassification(config), 27)
    held = model.state_dict()
    names = {
        "attention.output.dense": "mixer.out_proj", "attention.output.LayerNorm": "norm1",
        "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2", "output.LayerNorm": "norm2",
    }  # fmt: skip
    tensors: Tensors = {}
    for name, values in held.items():
        if ".encoder.layer." not in name and not name.endswith("position_ids"):
            tensors[name.replace("roberta.embeddings.LayerNorm", "roberta.emb_ln")] = values
    for layer in range(config.num_hidden_layers):
        own, theirs = f"roberta.encoder.layer.{layer}", f"roberta.encoder.layers.{layer}"
        for ending in ("weight", "bias"):
            qkv = [held[f"{own}.attention.self.{part}.{ending}"] for part in ("query", "key", "value")]
            tensors[f"{theirs}.mixer.Wqkv.{ending}"] = torch.cat(qkv)
            for before, after in names.items():
                tensors[f"{theirs}.{after}.{ending}"] = held[f"{own}.{before}.{ending}"]
    automatic = {AUTOMATIC: "modeling_xlm_roberta.XLMRobertaForSequenceClassification"}
    save(folder, model, tensors, auto_map=automatic, position_embedding_type="absolute", use_flash_attn=False)
    return pairs(sentencepiece_ids(sp), 0, [2, 2], 2), scored(model)


# A golden encoder's name: how to build it, what it can read, and whose tokenizer it has ("": its own).
ENCODERS: dict[str, tuple[Callable[[list[str], Path, list[str]], tuple[Ids, Score]], int, str]] = {
    "deberta-v3": (deberta, MAX_LENGTH, ""),
    "gte": (gte, MAX_LENGTH, "xlmr-head"),
    "electra": (electra, 128, "bert-pairs"),
    "distilbert": (distilbert, 128, "bert-pairs"),
    "camembert": (camembert, MAX_LENGTH, ""),
    "two-label-reranker": (two_labels, 128, "bert-pairs"),
    "jina-v2": (jina_v2, MAX_LENGTH, "xlmr-head"),
}
