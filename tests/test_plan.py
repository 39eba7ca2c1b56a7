import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerankd.scoring import plan
from rerankd.scoring.truncate import Chunks

texts = st.text(max_size=3)
documents = st.lists(st.lists(texts, min_size=1, max_size=4), min_size=1, max_size=20)


@given(documents)
def test_each_text_is_scored_once_and_a_document_gets_its_best_chunk(parts: list[list[str]]) -> None:
    made = plan.make([Chunks(tuple(part), cut=False) for part in parts])
    seen = [[text for text in part if not plan.is_blank(text)] for part in parts]
    assert sorted(made.texts) == sorted({text for part in seen for text in part})
    raw = [float(len(text)) + sum(map(ord, text)) for text in made.texts]
    value = dict(zip(made.texts, raw, strict=True))
    assert made.merge(raw) == [max((value[text] for text in part), default=None) for part in seen]
    assert list(made.blank) == [at for at, part in enumerate(seen) if not part]


def test_a_document_has_a_value_while_one_of_its_chunks_has() -> None:
    made = plan.make([Chunks(("a", "b"), cut=False), Chunks(("b",), cut=False)])
    assert made.merge([1.0, None]) == [1.0, None]


@pytest.mark.parametrize(
    "text", ["", " ", "\n\t\r", "\u3000\xa0", "\ufeff", "\u200b\u2060 \xad", "\x1e", "\u202e"]
)
def test_text_that_cannot_be_seen_is_blank(text: str) -> None:
    assert plan.is_blank(text)


@pytest.mark.parametrize("text", [".", "\ufeffa", "熊", "\u0301", "🐼", "\ufffd", "\ue000"])
def test_text_that_can_be_seen_is_not_blank(text: str) -> None:
    assert not plan.is_blank(text)


@given(st.lists(st.integers(0, 70_000), max_size=200), st.sampled_from([plan.IN_TURN, plan.SHARED]))
def test_batches_cover_every_text_once_and_are_bounded(lengths: list[int], feed: plan.BatchPolicy) -> None:
    batches = list(plan.micro_batches(["x" * length for length in lengths], feed.texts, feed.characters))
    assert [at for batch in batches for at in batch] == list(range(len(lengths)))
    for batch in batches:
        assert 0 < len(batch) <= feed.texts
        assert len(batch) == 1 or sum(lengths[at] for at in batch) <= feed.characters


@given(st.integers(0, 10_000), st.text(max_size=5), st.lists(st.text(max_size=9), min_size=1, max_size=9))
def test_the_tokens_of_a_call_are_shared_out_to_the_last_one(
    tokens: int, query: str, texts: list[str]
) -> None:
    query, texts = plan.clean(query) or "q", [plan.clean(text) for text in texts]
    shares = plan.token_shares(tokens, query, texts)
    assert sum(shares) == tokens and min(shares) >= 0 and len(shares) == len(texts)


@given(st.text() | st.text(alphabet=st.characters(categories=["Cs"])))
def test_clean_text_can_be_sent(text: str) -> None:
    cleaned = plan.clean(text)
    assert "\0" not in cleaned.encode().decode()
    assert plan.clean(cleaned) == cleaned
    assert unicodedata.is_normalized("NFC", plan.clean(text, nfc=True))


def test_clean_leaves_text_as_it_is() -> None:
    assert plan.clean("Grüße, 熊猫 🐼\n") == "Grüße, 熊猫 🐼\n"
    assert plan.clean("u\u0308ber") == "u\u0308ber"
    assert plan.clean("u\u0308ber", nfc=True) == "über"
    assert plan.clean("a\0b") == "a b"
    assert plan.clean("a\ud800b") == "a\ufffdb"
