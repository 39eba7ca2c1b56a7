"""The Unigram tokenizers of DeBERTa-v3 and CamemBERT for the golden models, from a SentencePiece model as
transformers converts it (DebertaV2Converter and CamembertConverter)."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers import models as tm

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from rerankd.formats import charsmap


def with_small_charsmap(
    sp: sentencepiece.SentencePieceProcessor, texts: Iterable[str]
) -> sentencepiece.SentencePieceProcessor:
    """The model with the part of its normalisation map that these texts use: some kB instead of 240."""
    letters = {c for text in texts for form in ("NFC", "NFD") for c in unicodedata.normalize(form, text)}
    proto = _proto(sp)
    whole = charsmap.parse(proto.normalizer_spec.precompiled_charsmap)
    used = {key: value for key, value in whole.items() if letters.issuperset(key)}
    proto.normalizer_spec.precompiled_charsmap = charsmap.build(used)
    return sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())


def deberta_tokenizer(sp: sentencepiece.SentencePieceProcessor) -> Tokenizer:
    proto = _proto(sp)
    vocab = [(one, 0.0) for one in ("[PAD]", "[CLS]", "[SEP]", "[UNK]")]
    vocab += [(p.piece, p.score) for p in proto.pieces[3:]]
    tok = Tokenizer(tm.Unigram(vocab, unk_id=3))
    tok.normalizer = normalizers.Sequence(
        [
            normalizers.Strip(),
            normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(prepend_scheme="always")])
    tok.decoder = decoders.Metaspace(prepend_scheme="always")
    tok.add_special_tokens(["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"])
    tok.post_processor = processors.TemplateProcessing(
        "[CLS]:0 $A:0 [SEP]:0", "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", [("[CLS]", 1), ("[SEP]", 2)]
    )
    return tok


def camembert_tokenizer(sp: sentencepiece.SentencePieceProcessor) -> Tokenizer:
    proto = _proto(sp)
    vocab = [
        ("<s>NOTUSED", 0.0),
        ("<pad>", 0.0),
        ("</s>NOTUSED", 0.0),
        ("<unk>", 0.0),
        ("<unk>NOTUSED", -100.0),
    ]
    vocab += [(p.piece, p.score) for p in proto.pieces[1:]]
    tok = Tokenizer(tm.Unigram(vocab, unk_id=3))
    tok.normalizer = normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap)
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    tok.decoder = decoders.Metaspace(prepend_scheme="always")
    unused = ["<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED"]
    tok.add_special_tokens(["<s>", "</s>", "<unk>", "<pad>", AddedToken("<mask>", lstrip=True), *unused])
    ids = [(one, tok.token_to_id(one)) for one in ("<s>", "</s>")]
    tok.post_processor = processors.TemplateProcessing("<s> $A </s>", "<s> $A </s> </s> $B </s>", ids)
    return tok


def _proto(sp: sentencepiece.SentencePieceProcessor) -> sentencepiece_model_pb2.ModelProto:
    return sentencepiece_model_pb2.ModelProto.FromString(sp.serialized_model_proto())
