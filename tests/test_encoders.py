"""Whether OpenVINO runs a model, or llama.cpp, and why."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rerankd.backends.llama.binaries import Choice
from rerankd.backends.select import Candidate, Wanted, choose
from rerankd.backends.worker.client import WORKER
from rerankd.domain import Normalization, Recipe
from rerankd.errors import ConfigError, EngineUnknown
from rerankd.machine import Gpu

HEAD = Recipe("cross_encoder", 512, Normalization("sigmoid"), pooling="rank")
COSINE = Recipe("embedding", 512, Normalization("affine"), pooling="mean")
JUDGE = Recipe(
    "causal_lm", 8192, Normalization("sigmoid"), template="{query}{document}", labels=("yes", "no")
)
XLMR = Candidate(HEAD, "bert", ("t5", "default"))
BERT = Candidate(COSINE, "bert", ("bert", "jina-v2-en"))
MODERN = Candidate(HEAD, "modern-bert", ("gpt2", "modern-bert"))
QWEN = Candidate(JUDGE, "qwen3", ("gpt2", "qwen2"))
LLAMA = Choice("bundled", ("bundled",), "no other was built")
CARD = Gpu("card", 2**34, 2**34, "9.0")


def chosen(wanted: Wanted, model: Candidate, llama: Choice = LLAMA) -> Choice:
    return choose(wanted, model, WORKER, lambda: llama)


@pytest.mark.parametrize("model", [XLMR, BERT, MODERN])
def test_encoders_run_on_openvino(model: Candidate) -> None:
    assert chosen("auto", model) == WORKER
    assert chosen("openvino", model).program == WORKER.program
    assert chosen("llama", model) == LLAMA


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (QWEN, "causal model"),
        (replace(XLMR, architecture="nomic-bert"), "architecture nomic-bert"),
        (replace(XLMR, tokenizer=("llama", "default")), "tokenizer llama"),
        (replace(MODERN, tokenizer=("gpt2", "jina-v2-code")), "tokenizer gpt2 jina-v2-code"),
        (replace(XLMR, has_charsmap=False), "normalisation map"),
        (replace(BERT, scoring=replace(COSINE, pooling="last")), "pooling last"),
        (replace(XLMR, scoring=replace(HEAD, template="{query}{document}")), "template"),
        (replace(XLMR, parts=3), "split"),
        (replace(MODERN, activation="silu"), "activation silu"),
        (replace(XLMR, has_wheel=False), "not installed"),
    ],
)
def test_what_openvino_cannot_run_goes_to_llama_cpp_and_says_why(model: Candidate, why: str) -> None:
    found = chosen("auto", model)
    assert found.program == LLAMA.program
    assert why in found.reason and LLAMA.reason in found.reason
    with pytest.raises(ConfigError, match=why):
        chosen("openvino", model)


def test_a_llama_server_that_the_user_names_is_used() -> None:
    assert chosen("auto", replace(XLMR, named=True)) == LLAMA
    assert chosen("openvino", replace(XLMR, named=True)).kind == "openvino"


def test_a_gpu_does_the_work_where_there_is_one() -> None:
    found = chosen("auto", XLMR, replace(LLAMA, gpus=(CARD,)))
    assert (found.program, "a GPU" in found.reason) == (LLAMA.program, True)


def test_safetensors_run_on_openvino_whatever_else_there_is() -> None:
    model = Candidate(HEAD, "bert", ("", ""), format="safetensors", parts=2, has_charsmap=False)
    on_card = replace(LLAMA, gpus=(CARD,))
    for wanted, one in (("auto", model), ("openvino", model), ("auto", replace(model, named=True))):
        found = chosen(wanted, one, on_card)  # type: ignore[arg-type]
        assert found.program == WORKER.program and "safetensors" in found.reason
    with pytest.raises(ConfigError, match="reads GGUF files only"):
        chosen("llama", model)
    with pytest.raises(ConfigError, match=r"runs on OpenVINO.*not installed"):
        chosen("auto", replace(model, has_wheel=False))


def test_an_encoder_needs_no_llama_cpp() -> None:
    def none() -> Choice:
        raise EngineUnknown("There is no engine.")

    assert choose("auto", XLMR, WORKER, none) == WORKER
    with pytest.raises(EngineUnknown):
        choose("auto", QWEN, WORKER, none)


def test_each_kind_gets_its_work_in_its_own_way() -> None:
    assert WORKER.feed.texts > LLAMA.feed.texts
