import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerankd.scoring import deduplicate

documents = st.lists(st.text(max_size=3), min_size=1, max_size=20)


@given(documents, st.none() | st.integers(1, 20))
def test_texts_are_deduplicated_and_each_document_knows_its_text(texts: list[str], limit: int | None) -> None:
    unique = deduplicate.unique_texts(texts, limit)
    read = [text for text in texts[:limit] if not deduplicate.is_blank(text)]
    assert list(unique.texts) == list(dict.fromkeys(read))
    for at, (text, index) in enumerate(zip(texts, unique.text_index, strict=True)):
        if deduplicate.is_blank(text):
            assert index is None and at in unique.blank and at not in unique.unscored
        elif text in read:
            assert index is not None and unique.texts[index] == text
        else:
            assert index is None and at in unique.unscored and at not in unique.blank


def test_documents_of_a_text_are_all_equal_documents() -> None:
    unique = deduplicate.unique_texts(["a", "b", "a", " ", "c"])
    assert unique.documents([0]) == (0, 2)
    assert unique.documents([2, 1]) == (1, 4)
    assert unique.documents([]) == ()


@pytest.mark.parametrize(
    "text", ["", " ", "\n\t\r", "\u3000\xa0", "\ufeff", "\u200b\u2060 \xad", "\x1e", "\u202e"]
)
def test_text_that_cannot_be_seen_is_blank(text: str) -> None:
    assert deduplicate.is_blank(text)


@pytest.mark.parametrize("text", [".", "\ufeffa", "熊", "\u0301", "🐼", "\ufffd", "\ue000"])
def test_text_that_can_be_seen_is_not_blank(text: str) -> None:
    assert not deduplicate.is_blank(text)


@given(st.text() | st.text(alphabet=st.characters(categories=["Cs"])))
def test_clean_text_has_no_nul_or_surrogate(text: str) -> None:
    cleaned = deduplicate.clean(text)
    assert "\0" not in cleaned.encode().decode()
    assert deduplicate.clean(cleaned) == cleaned
    assert unicodedata.is_normalized("NFC", deduplicate.clean(text, nfc=True))


def test_clean_changes_only_what_it_must() -> None:
    assert deduplicate.clean("Grüße, 熊猫 🐼\n") == "Grüße, 熊猫 🐼\n"
    assert deduplicate.clean("u\u0308ber") == "u\u0308ber"
    assert deduplicate.clean("u\u0308ber", nfc=True) == "über"
    assert deduplicate.clean("a\0b") == "a b"
    assert deduplicate.clean("a\ud800b") == "a\ufffdb"


def test_each_text_has_its_first_document() -> None:
    found = deduplicate.unique_texts(["", "b", "a", "b", "c"], 4)
    assert [found.texts[at] for at in (0, 1)] == ["b", "a"]
    assert found.first_documents([1, 0]) == [2, 1]
