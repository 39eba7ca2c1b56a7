"""Texts in NFC and NFD, as from keyboards, PDFs and macOS file names, are scored alike."""

from __future__ import annotations

import json
import struct
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from rerankd.config import Settings
from rerankd.formats import charsmap, gguf_metadata
from rerankd.formats.tokenizer import ARRAYS, of_file
from rerankd.hub import builtin
from rerankd.scoring import deduplicate
from rerankd.service import Reranker
from support import GOLDEN, count_tokens, golden_settings

ROWS: list[dict[str, Any]] = json.loads((GOLDEN / "tokens.json").read_text(encoding="utf-8"))
# A question, a relevant document, and an irrelevant one.
PAIRS = {
    "german": (
        "Wo liegt München?",
        "München liegt in Bayern, südlich von Nürnberg.",
        "Brötchen sind ein Gebäck aus Weizenmehl.",
    ),
    "french": (
        "Où se trouve la forêt ?",
        "La forêt s’étend à l’été près de la Méditerranée.",
        "Le pâté a été préparé.",
    ),
    "vietnamese": (
        "Thủ đô của Việt Nam là gì?",
        "Hà Nội là thủ đô của Việt Nam.",
        "Phở là món ăn với bánh và thịt bò.",
    ),
    "korean": (
        "대한민국의 수도는 어디입니까?",
        "서울은 대한민국의 수도이다.",
        "빵은 밀가루로 만든 음식이다.",
    ),
    "japanese": (
        "パンダは何を食べますか？",
        "ジャイアントパンダは竹を食べる動物です。",
        "東京タワーは高いです。",
    ),
    "hindi": (
        "भारत की राजधानी क्या है?",
        "नई दिल्ली भारत की राजधानी है, यह बड़ा शहर है।",
        "रोटी आटे से बनती है, ज़रूर खाएँ।",
    ),
    "arabic": ("ما هي عاصمة مصر؟", "القاهرة هي عاصمة مصر وأكبر مدنها.", "الخبز طعام يُصنع من الدقيق آخر."),
    "greek": (
        "Ποια είναι η πρωτεύουσα της Ελλάδας;",
        "Η Αθήνα είναι η πρωτεύουσα της Ελλάδας.",
        "Το ψωμί γίνεται από αλεύρι.",
    ),
}


def nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def nfd(text: str) -> str:
    return unicodedata.normalize("NFD", text)


@pytest.mark.parametrize("engine", ["openvino", "llama"])
async def test_the_builtin_model_scores_nfd_like_nfc(home: Path, engine: str) -> None:
    """NFD letters and marks were tokenized separately: a Korean answer scored .239 instead of .847 and was
    ranked third."""
    async with Reranker(Settings(home=home, engine=engine, cache_entries=0)) as reranker:
        for language, (query, right, wrong) in PAIRS.items():
            # The engine's own character map, not only the cleaning of texts before they reach it.
            apart, together = await count_tokens(reranker, nfd(right), nfc(right))
            assert apart == together, language
            composed = await reranker.rerank(nfc(query), [nfc(wrong), nfc(right)])
            scores = {row.index: row.score for row in composed.results}
            assert composed.results[0].index == 1, language
            for asked in (nfc(query), nfd(query)):
                mixed = await reranker.rerank(asked, [nfc(wrong), nfd(right)])
                assert {row.index: row.score for row in mixed.results} == pytest.approx(scores, abs=1e-5), (
                    language
                )


MODELS = ["builtin", "xlmr-head", "bert-embedder", "modernbert-head", "qwen2-labels"]


@pytest.mark.parametrize("name", MODELS)
async def test_llama_cpp_tokenizes_any_normal_form_like_the_reference(
    home: Path, tmp_path: Path, name: str
) -> None:
    settings = (
        Settings(home=home, engine="llama")
        if name == "builtin"
        else golden_settings(name, tmp_path, engine="llama")
    )
    async with Reranker(settings) as reranker:
        engine = reranker.state.engine
        for row in ROWS:
            text = deduplicate.clean(row["text"], nfc=reranker.model.recipe.nfc)
            assert await engine.tokenize(text) == row[name], row["text"]


def test_the_golden_texts_are_in_both_forms() -> None:
    texts = [row["text"] for row in ROWS]
    assert sum(text != nfd(text) for text in texts if text == nfc(text)) >= 8
    assert sum(text != nfc(text) for text in texts if text == nfd(text)) >= 8


def test_a_unigram_tokenizer_json_composes_like_sentencepiece(home: Path, tmp_path: Path) -> None:
    """The library does not normalize graphemes of six bytes or more, Hangul and kana among them."""
    header, _ = gguf_metadata.header_of(builtin.path_in(home / "models"), ARRAYS)
    values = header.values
    pieces, scores = values["tokenizer.ggml.tokens"].texts(), values["tokenizer.ggml.scores"]
    tokenizer = Tokenizer(models.Unigram(list(zip(pieces, scores, strict=True)), 3))
    folding = bytes(values["tokenizer.ggml.precompiled_charsmap"])
    tokenizer.normalizer = normalizers.Precompiled(folding)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    ids = [("<s>", 0), ("</s>", 2)]
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", "<s> $A </s> </s> $B </s>", ids)
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    found = of_file(path, len(pieces)).encode([row["text"] for row in ROWS])
    for row, one in zip(ROWS, found, strict=True):
        assert one.tolist() == row["builtin"], row["text"]


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("A\u0302\u0301", "\u1ea4"),
        ("\u00c2\u0301", "\u1ea4"),  # Windows' Vietnamese keyboard
        ("\uff21\u0302\u0301", "\u1ea4"),  # a full-width A
        ("\u1112\u1161\u11ab", "\ud55c"),
        ("\ud558\u11ab", "\ud55c"),
        ("\u304b\u3099", "\u304c"),
        ("\U00011131\U00011127", "\U0001112e"),
    ],
)
def test_all_spellings_of_a_composed_character_are_keys(written: str, text: str) -> None:
    singles = {"\uff21": "A", "\u2126": "\u03a9", "\ufb01": "fi"}
    assert charsmap.sequences(singles)[written] == text


def test_composed_and_excluded_characters_are_not_keys() -> None:
    keys = charsmap.sequences({"\u0958": "\u0915\u093c"})
    assert "\u1ea4" not in keys
    assert "\u0915\u093c" not in keys  # in NFC, too, QA is written as KA and nukta
    assert all(unicodedata.normalize("NFC", key) == text for key, text in keys.items())


def test_an_older_builtin_file_is_upgraded_without_a_download(home: Path, tmp_path: Path) -> None:
    new = builtin.path_in(home / "models")
    written = new.read_bytes()
    key = b"tokenizer.ggml.precompiled_charsmap"
    at = written.index(key) + len(key) + 8
    (size,) = struct.unpack_from("<Q", written, at)
    whole = charsmap.parse(written[at + 8 : at + 8 + size])
    singles = charsmap.build({key: text for key, text in whole.items() if len(key) == 1})
    singles += bytes((size - len(singles)) % 32)  # so that the tensors stay aligned
    old = tmp_path / "multilingual-e5-small-Q4_0-builtin-2.gguf"
    old.write_bytes(written[:at] + struct.pack("<Q", len(singles)) + singles + written[at + 8 + size :])
    made = builtin.ensure(tmp_path, lambda *_: None, tmp_path / "no wheel is read")
    assert made == builtin.path_in(tmp_path)
    assert made.read_bytes() == written
    assert old.exists()  # another version may be serving it
