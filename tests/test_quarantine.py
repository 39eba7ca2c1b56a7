"""Finding the texts that crash an engine."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerankd.serving.quarantine import TTL_S, Quarantine


class Engine:
    """An engine that crashes on some texts. `hunt` calls it as retry.py does."""

    def __init__(self, culprits: set[str]) -> None:
        self.culprits = culprits
        self.crashes = 0

    def hunt(self, quarantine: Quarantine, texts: list[str], now: float = 0.0) -> set[str]:
        """Send the texts until each is scored or quarantined. Returns the quarantined ones."""
        left, without = list(texts), set[str]()
        while left:
            digests = quarantine.digests(left)
            blamed = {text for text, one in zip(left, digests, strict=True) if quarantine.reason(one, now)}
            without |= blamed
            left = [text for text in left if text not in blamed]
            if not left:
                break
            call = quarantine.next_call(quarantine.digests(left), now)
            assert call.at
            words = [left[at] for at in call.at]
            if self.culprits & set(words):
                self.crashes += 1
                quarantine.engine_lost(quarantine.digests(words), "crash", now, alone=call.alone)
            else:
                quarantine.scored(quarantine.digests(words))
                left = [text for text in left if text not in words]
        return without


@pytest.mark.parametrize("count", [4, 5, 8, 16, 63, 64, 1000])
def test_a_bad_text_is_found_within_few_crashes_and_costs_none_for_an_hour(count: int) -> None:
    texts = [f"text {at}" for at in range(count)]
    for bad in (texts[0], texts[count // 2], texts[-1]):
        quarantine, engine = Quarantine("model"), Engine({bad})
        assert engine.hunt(quarantine, texts) == {bad}
        assert engine.crashes <= 1 + math.log2(count)
        again = Engine({bad})
        assert again.hunt(quarantine, texts, TTL_S - 1) == {bad}
        assert again.crashes == 0
        assert again.hunt(quarantine, [bad], TTL_S + 1) == {bad}
        assert again.crashes == 2 + 1  # after the hour: one crash among others, and two alone


@given(st.integers(1, 80), st.sets(st.integers(0, 79), max_size=6))
def test_exactly_the_bad_texts_are_quarantined(count: int, bad: set[int]) -> None:
    texts = [str(at) for at in range(count)]
    culprits = {str(at) for at in bad if at < count}
    quarantine, engine = Quarantine("model"), Engine(culprits)
    assert engine.hunt(quarantine, texts) == culprits
    assert engine.crashes <= len(culprits) * (math.log(count, 4) + 4)
    assert quarantine.is_empty == (not culprits)


def test_one_crash_alone_is_not_enough() -> None:
    quarantine = Quarantine("model")
    (text,) = quarantine.digests(["text"])
    assert quarantine.engine_lost([text], "crash", 0, alone=True) == {}
    quarantine.scored([text])
    assert quarantine.engine_lost([text], "crash", 0, alone=True) == {}
    assert set(quarantine.engine_lost([text], "crash", 0, alone=True)) == {text}


def test_crashes_with_a_concurrent_call_blame_no_text() -> None:
    quarantine = Quarantine("model")
    (text,) = quarantine.digests(["text"])
    for _ in range(10):
        assert quarantine.engine_lost([text], "crash", 0, alone=False) == {}
    assert quarantine.next_call([text], 0).alone


def test_out_of_memory_quarantines_no_text() -> None:
    quarantine = Quarantine("model")
    (text,) = quarantine.digests(["text"])
    quarantine.engine_lost([text], "memory", 0, alone=True)
    assert "memory" in quarantine.engine_lost([text], "memory", 0, alone=True)[text]
    assert quarantine.is_empty


def test_a_digest_is_valid_for_one_model_only() -> None:
    assert Quarantine("one").digests(["a"]) != Quarantine("other").digests(["a"])
    assert Quarantine("one").digests(["a", "\ud800"]) == Quarantine("one").digests(["a", "\ud800"])
