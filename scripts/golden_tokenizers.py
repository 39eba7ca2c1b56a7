"""Prompts and tokenizers of the golden models (see make_golden.py): a small tokenizer of each family's type,
trained on the pairs of tests/golden."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # training is reproducible only on one thread

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers import models as tm
from tokenizers import trainers as tt

Encode = Callable[[str], list[int]]

# Prompts

QWEN3_PIECES = [
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the "
    'Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n',
    "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}",
    "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
]
QWEN3_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
# From mixedbread-ai/mxbai-rerank, mxbai_rerank/mxbai_rerank_v2.py, commit 03324ea: it tokenizes each of these
# pieces separately. Its optional line `instruction: {instruction}` before the query is omitted here.
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
# zerank: the query is the system's message, the document the user's.
ZERANK_PIECES = [
    "<|im_start|>system\n",
    "{query}",
    "<|im_end|>\n<|im_start|>user\n",
    "{document}",
    "<|im_end|>\n<|im_start|>assistant\n",
]
# ctxl-rerank-v2: no control tokens, tokenized as a whole; an instruction would follow the query.
CTXL_PIECES = [
    "Check whether a given document contains information helpful to answer the query.\n"
    "<Document> {document}\n<Query> {query} ??"
]
# bge-reranker-v2-gemma, as FlagEmbedding tokenizes it: each of these pieces separately.
GEMMA_PIECES = [
    "<bos>",
    "A: {query}",
    "\n",
    "B: {document}",
    "\n",
    "Given a query A and a passage B, determine whether the passage contains an answer to the query by "
    "providing a prediction of either 'Yes' or 'No'.",
]
QUERY_PREFIX, DOCUMENT_PREFIX = "query: ", "passage: "


def fill(text: str, fields: dict[str, str]) -> str:
    """Replace each {name} in one pass, so that braces in a query or a document stay unchanged."""
    return re.sub(r"\{([a-z]+)\}", lambda found: fields[found[1]], text)


# Tokenizers


def corpus(pairs: list[dict[str, str]]) -> list[str]:
    """Return the training texts: the plain pairs and the prompts. The odd pairs are excluded, so that they
    contain characters unknown to the tokenizers."""
    unseen = {"odd", "special", "char", "blank", "medium", "long"}
    texts = [t for p in pairs if p["id"].split("-")[0] not in unseen for t in (p["query"], p["document"])]
    prompts = [*QWEN3_PIECES, QWEN3_INSTRUCTION, *MXBAI_PIECES, QUERY_PREFIX, DOCUMENT_PREFIX]
    labels = ["yes", "no", "0", "1", "Yes", "No", " yes", " no"]
    return [*dict.fromkeys(texts), *prompts * 3, *labels * 50]


def train_bpe(
    texts: list[str], vocab: int, pre: pre_tokenizers.PreTokenizer, special: tuple[str, ...] = ()
) -> Tokenizer:
    """Train a byte-level BPE tokenizer, in which the `special` tokens have the first ids."""
    tok = Tokenizer(tm.BPE())
    tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre
    tok.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = tt.BpeTrainer(
        vocab_size=vocab,
        initial_alphabet=sorted(alphabet),
        special_tokens=list(special),
        show_progress=False,
    )
    tok.train_from_iterator(texts, trainer)
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


def roberta_tokenizer(texts: list[str]) -> Tokenizer:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tok = train_bpe(texts, 1500, byte_level, ("<s>", "<pad>", "</s>", "<unk>", "<mask>"))
    tok.normalizer = None
    tok.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
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
    """Return all characters, then the pieces that cover most of the text. The library's trainer is not used
    because its result depends on the order of a hash map."""
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
    """Train a unigram model with XLM-R's settings and its NMT_NFKC character map."""
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


def train_gemma(texts: list[str], folder: Path) -> sentencepiece.SentencePieceProcessor:
    """Train a BPE model with the settings of Gemma's: bytes for unknown characters, no space before a text,
    and no normalization."""
    model = folder / "tokenizer.model"
    with model.open("wb") as out:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(line for t in [*texts, *GEMMA_PIECES[1:]] for line in t.splitlines()),
            model_writer=out,
            model_type="bpe",
            vocab_size=1000,
            character_coverage=0.995,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            byte_fallback=True,
            pad_id=0,
            eos_id=1,
            bos_id=2,
            unk_id=3,
            eos_piece="<eos>",
            bos_piece="<bos>",
            control_symbols=["<start_of_turn>", "<end_of_turn>"],
            user_defined_symbols=["<unused0>"],
            num_threads=1,
            minloglevel=2,
        )
    return sentencepiece.SentencePieceProcessor(model_file=str(model))


def xlmr_tokenizer(sp: sentencepiece.SentencePieceProcessor) -> Tokenizer:
    """Return the fast tokenizer of the same model, as transformers converts it: four special tokens, then the
    pieces."""
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
    """Return a function that encodes user text, in which special tokens are plain text."""
    plain = Tokenizer.from_str(tok.to_str())
    plain.encode_special_tokens = True
    return lambda text: plain.encode(text, add_special_tokens=False).ids


def sentencepiece_ids(sp: sentencepiece.SentencePieceProcessor) -> Encode:
    """Return XLM-R's token ids of a text, from SentencePiece.

    The fast tokenizer is not used: its vocabulary contains `</s>` as a piece of score 0, so it encodes this
    literal as the control token even with the option to split special tokens.
    """
    return lambda text: [3 if i == 0 else i + 1 for i in sp.encode(text)]
