"""Causal-LM rerankers: the prompt, and the log-odds of the two labels in llama.cpp's answer."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerankd.backends.llama import completion
from rerankd.scoring import prompt

CONTROL = {"<|im_start|>": 1, "<|im_end|>": 2, "<|im|>": 3, "": 4}
TEMPLATE = "<|im_start|>user\n{instruction} Q: {query} D: {document}<|im_end|>\n"


def test_a_template_is_split_at_its_control_tokens() -> None:
    assert prompt.split(TEMPLATE, CONTROL) == [1, "user\n{instruction} Q: {query} D: {document}", 2, "\n"]
    assert prompt.split("a\x1eb<|im_end|>\x1ec", CONTROL) == ["a", "b", 2, "c"]
    assert prompt.split("plain", {}) == ["plain"]


def test_the_longest_control_token_wins() -> None:
    assert prompt.split("<|a|><|a|>b", {"<|a|>": 1, "<|a|>b": 2}) == [1, 2]


@given(st.text(), st.text())
def test_texts_are_inserted_once_and_unchanged(query: str, document: str) -> None:
    filled = prompt.fill("{instruction}|{query}|{document}", instruction="i", query=query, document=document)
    assert filled == f"i|{query}|{document}"


@pytest.mark.parametrize("text", ["{document}", "{query}", "{{query}}", "\\1", "{instruction}"])
def test_a_query_that_names_a_placeholder_keeps_it(text: str) -> None:
    assert prompt.fill("{query}/{document}", instruction="", query=text, document="d") == f"{text}/d"


def answer(relevant: float, irrelevant: float) -> dict[str, object]:
    top = [{"id": 8, "prob": irrelevant}, {"id": 7, "prob": relevant}]
    return {"completion_probabilities": [{"top_probs": top}]}


@given(st.floats(-80, 80))
def test_log_odds_undo_the_softmax(raw: float) -> None:
    relevant = 1 / (1 + math.exp(-raw))
    assert completion.log_odds(answer(relevant, math.exp(-raw) * relevant), (7, 8)) == pytest.approx(
        raw, abs=1e-9
    )


def test_log_odds_stay_finite_for_a_probability_of_0() -> None:
    assert completion.log_odds(answer(1.0, 0.0), (7, 8)) == 87.0
    assert completion.log_odds(answer(0.0, 1.0), (7, 8)) == -87.0
    with pytest.raises(KeyError):
        completion.log_odds(answer(0.5, 0.5), (7, 9))
