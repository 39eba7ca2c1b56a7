import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerankd.scoring import deduplicate

documents = st.lists(st.text(max_size=3), min_size=1, max_size=20)


@given(documents, st.none() | st.integers(1, 20))
def test_each_text_is_scored_once_and_each_document_has_its_place(texts: list[str], most: int | None) -> None:
    made = deduplicate.unique_texts(texts, most)
    read = [text for text in texts[:most] if not deduplicate.is_blank(text)]
    assert list(made.texts) == list(dict.fromkeys(read))
    for at, (text, place) in enumerate(zip(texts, made.text_index, strict=True)):
        if deduplicate.is_blank(text):
            assert place is None and at in made.blank and at not in made.unscored
        elif text in read:
            assert place is not None and made.texts[place] == text
        else:
            assert place is None and at in made.unscored and at not in made.blank


def test_the_documents_of_texts_are_all_that_are_equal() -> None:
    made = deduplicate.unique_texts(["a", "b", "a", " ", "c"])
    assert made.documents([0]) == (0, 2)
    assert made.documents([2, 1]) == (1, 4)
    assert made.documents([]) == ()


@pytest.mark.parametrize(
    "text", ["", " ", "\n\t\r", "\u3000\xa0", "\ufeff", "\u200b\u2060 \xad", "\x1e", "\u202e"]
)
def test_text_that_cannot_be_seen_is_blank(text: str) -> None:
    assert deduplicate.is_blank(text)


@pytest.mark.parametrize("text", [".", "\ufeffa", "熊", "\u0301", "🐼", "\ufffd", "\ue000"])
def test_text_that_can_be_seen_is_not_blank(text: str) -> None:
    assert not deduplicate.is_blank(text)


@given(st.text() | st.text(alphabet=st.characters(categories=["Cs"])))
def test_clean_text_can_be_sent(text: str) -> None:
    cleaned = deduplicate.clean(text)
    assert "\0" not in cleaned.encode().decode()
    assert deduplicate.clean(cleaned) == cleaned
    assert unicodedata.is_normalized("NFC", deduplicate.clean(text, nfc=True))


def test_clean_leaves_text_as_it_is() -> None:
    assert deduplicate.clean("Grüße, 熊猫 🐼\n") == "Grüße, 熊猫 🐼\n"
    assert deduplicate.clean("u\u0308ber") == "u\u0308ber"
    assert deduplicate.clean("u\u0308ber", nfc=True) == "über"
    assert deduplicate.clean("a\0b") == "a b"
    assert deduplicate.clean("a\ud800b") == "a\ufffdb"
