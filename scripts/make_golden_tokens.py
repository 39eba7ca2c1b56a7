"""Generates tests/golden/tokens.json: texts in many scripts and their token ids from reference tokenizers.

The texts are in no golden pair, so no tokenizer was trained on them. The references are those of
golden_tokenizers.py, trained again (and checked to have the vocabulary of the golden files). For the built-in
model the reference is SentencePiece, with the pieces and scores of its GGUF file and the normalization map of
both.

Excluded are texts for which SentencePiece and the library `tokenizers`, which most models use, differ: U+0085
(a space for the library), and two segmentations with equal scores ("....", as one and three dots or as three
and one). Requires tokenizers, sentencepiece, protobuf, gguf and numpy, but neither torch nor transformers:

    python scripts/make_golden_tokens.py path/to/multilingual-e5-small-Q4_0-builtin-3.gguf
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import sentencepiece
from golden_tokenizers import (
    Encode,
    bert_tokenizer,
    corpus,
    encoder_of,
    modernbert_tokenizer,
    qwen_tokenizer,
    sentencepiece_ids,
    train_sentencepiece,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from rerankd.formats import charsmap
from rerankd.formats.gguf_header import parse

GOLDEN = Path("tests/golden")
SCRIPTS = {
    "latin": "A slow fox naps beneath the old oak tree; nobody minds.",
    "accents": "Žluťoučký kůň pěl ďábelské ódy, là où l’été naïf s’achève – Ölgemälde, İstanbul ığdır.",
    "vietnamese": "Đường về nhà tối nay rất vắng, trời đổ mưa nặng hạt.",
    "cyrillic": "Съешь ещё этих мягких булок, да выпей чаю; ґанок і їжак.",
    "greek": "Η γρήγορη αλεπού πηδάει πάνω από τον σκύλο, ΟΔΟΣ ὀδός.",
    "armenian": "Բարի լույս, այսօր եղանակը լավ է։",
    "georgian": "გამარჯობა, დღეს კარგი ამინდია.",
    "hebrew": "שָׁלוֹם עולם, היום יום יפה מאוד.",
    "arabic": "السَّلامُ عليكم، الطقس جميل اليوم ٣٤٥.",
    "persian": "می‌خواهم کتاب را بخوانم.",
    "devanagari": "नमस्ते दुनिया, आज मौसम अच्छा है। क्षत्रिय ज़रूर",
    "bengali": "আজকের আবহাওয়া খুব সুন্দর।",
    "gurmukhi": "ਸਤ ਸ੍ਰੀ ਅਕਾਲ, ਅੱਜ ਮੌਸਮ ਚੰਗਾ ਹੈ।",
    "gujarati": "આજે હવામાન સારું છે.",
    "tamil": "இன்று வானிலை நன்றாக உள்ளது.",
    "telugu": "ఈ రోజు వాతావరణం బాగుంది.",
    "kannada": "ಇಂದು ಹವಾಮಾನ ಚೆನ್ನಾಗಿದೆ.",
    "malayalam": "ഇന്ന് കാലാവസ്ഥ നല്ലതാണ്.",
    "sinhala": "අද කාලගුණය හොඳයි.",
    "thai": "วันนี้อากาศดีมาก น้ำใส",
    "lao": "ມື້ນີ້ອາກາດດີ.",
    "khmer": "ថ្ងៃនេះអាកាសធាតុល្អ។",
    "burmese": "ဒီနေ့ ရာသီဥတု ကောင်းတယ်။",
    "tibetan": "དེ་རིང་གནམ་གཤིས་ཡག་པོ་འདུག།",
    "ethiopic": "ዛሬ የአየር ሁኔታ ጥሩ ነው።",
    "han": "今日天氣很好，我們去公園散步。电子邮件：龘𠮷",
    "japanese": "今日はいい天気ですね。カタカナとﾊﾝｶｸ、ガギグ。",
    "korean": "오늘은 날씨가 참 좋네요. ㅋㅋㅋ 각",
    "mongolian": "ᠮᠣᠩᠭᠣᠯ ᠬᠡᠯᠡ",
    "cherokee": "ᎣᏏᏲ ᎡᎶᎯ ꭳꮟꮿ",
    "emoji": "Nice 👍🏽 family 👨‍👩‍👧‍👦 flag 🇨🇭 ☕️ ❤ text",
    "symbols": "½ + ⅓ ≠ x² ∑ ﬁne Ⅷ ℃ ①② ™ © €100 #tag @name a_b-c/d\\e",
    "wide": "ＦＵＬＬ　ｗｉｄｔｈ　１２３　＜tag＞",
    "code": "def f(x):\n\treturn   x**2  # squared\n\n\n    if x != 0: pass",
    "control": "[CLS] a [SEP] <s> b </s> <mask> <unk> <|endoftext|> ▁c ##d \u200b\u00ad\ufeff\u2028xy",
}  # fmt: skip


def texts() -> Iterator[str]:
    """Yield each script's text unchanged, and in a few forms that are difficult for tokenizers."""
    pick = random.Random(11)
    names = list(SCRIPTS)
    for name, text in SCRIPTS.items():
        yield text
        yield unicodedata.normalize("NFC", text)
        yield unicodedata.normalize("NFD", text)
        yield unicodedata.normalize("NFD", text).upper()
        words = text.split()
        pick.shuffle(words)
        other = SCRIPTS[pick.choice(names)].split()
        yield "".join(words[:4]) + "".join(other[:3])
        yield f"  {pick.randrange(10**6)}{words[0].rstrip('.')}…{other[-1]}!?  \n{name}'s{words[-1]}\t "


def built_in(path: Path, own_map: bytes, folder: Path) -> Encode:
    """Return SentencePiece with the data of the GGUF file, and with the sequences of its own NMT_NFKC map."""
    from sentencepiece import sentencepiece_model_pb2 as pb

    names = ("ggml.tokens", "ggml.scores", "ggml.precompiled_charsmap")
    with path.open("rb") as stream:
        values = parse(stream, path.stat().st_size, names, sys.exit, b"").values
    model = pb.ModelProto()
    # XLM-R has four control tokens, SentencePiece has three.
    pieces = values["tokenizer.ggml.tokens"].texts()[4:-1]
    for piece, kind in (("<unk>", 2), ("<s>", 3), ("</s>", 3)):
        model.pieces.add(piece=piece, score=0, type=kind)
    for piece, score in zip(pieces, values["tokenizer.ggml.scores"][4:-1], strict=True):
        model.pieces.add(piece=piece, score=score)
    model.trainer_spec.model_type = 1  # unigram
    # The keys of one character are the model's, the sequences SentencePiece's own: this way the result shows
    # whether the sequences in the file are correct.
    singles = charsmap.parse(bytes(values["tokenizer.ggml.precompiled_charsmap"]))
    known = charsmap.parse(own_map)
    model.normalizer_spec.precompiled_charsmap = charsmap.build(
        {key: text for key, text in known.items() if len(key) > 1}
        | {key: text for key, text in singles.items() if len(key) == 1}
    )
    model.normalizer_spec.add_dummy_prefix = True
    model.normalizer_spec.remove_extra_whitespaces = True
    model.normalizer_spec.escape_whitespaces = True
    file = folder / "builtin.model"
    file.write_bytes(model.SerializeToString())
    return sentencepiece_ids(sentencepiece.SentencePieceProcessor(model_file=str(file)))


def map_of(processor: sentencepiece.SentencePieceProcessor) -> bytes:
    """Return the normalization map of a model."""
    from sentencepiece import sentencepiece_model_pb2 as pb

    model = pb.ModelProto.FromString(processor.serialized_model_proto())
    return bytes(model.normalizer_spec.precompiled_charsmap)


def check(name: str, pieces: list[str]) -> None:
    """Exit if the newly trained tokenizer differs from that of the golden file."""
    path = GOLDEN / f"{name}.gguf"
    with path.open("rb") as stream:
        header = parse(stream, path.stat().st_size, ("ggml.tokens",), sys.exit, b"")
    known = [piece.removeprefix("\u2581") for piece in header.values["tokenizer.ggml.tokens"].texts()]
    missing = [piece for piece in pieces if piece.removeprefix("\u2581").removeprefix("##") not in known]
    if missing:
        sys.exit(
            f"{name}: the tokenizer trained on this machine differs from the golden file's: {missing[:5]}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("builtin", type=Path, help="GGUF file of the built-in model")
    options = parser.parse_args()
    trained_on = corpus(json.loads((GOLDEN / "pairs.json").read_text(encoding="utf-8")))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        unigram = train_sentencepiece(trained_on, folder)
        check("xlmr-head", [unigram.id_to_piece(at) for at in range(3, unigram.get_piece_size())])
        wordpiece, byte_level = bert_tokenizer(trained_on), modernbert_tokenizer(trained_on)
        qwen = qwen_tokenizer(trained_on)
        check("bert-embedder", list(wordpiece.get_vocab()))
        check("modernbert-head", list(byte_level.get_vocab()))
        check("qwen2-labels", list(qwen.get_vocab()))
        encoders: dict[str, Encode] = {
            "xlmr-head": sentencepiece_ids(unigram),
            "bert-embedder": encoder_of(wordpiece),
            "modernbert-head": encoder_of(byte_level),
            "qwen2-labels": encoder_of(qwen),
            "builtin": built_in(options.builtin, map_of(unigram), folder),
        }
        rows = [
            {"text": text, **{name: encode(text) for name, encode in encoders.items()}}
            for text in dict.fromkeys(texts())
        ]
    lines = ",\n".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows)
    (GOLDEN / "tokens.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    print(f"{len(rows)} texts")


if __name__ == "__main__":
    main()
