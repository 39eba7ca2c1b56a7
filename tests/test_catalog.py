"""The catalog: lookup by name, and the errors for invalid tables."""

from __future__ import annotations

import pytest

from rerankd.errors import ConfigError
from rerankd.recipes import catalog
from rerankd.recipes.catalog import load, template_error
from rerankd.recipes.model_identity import plain

MATCH = 'match = { architectures = ["bert"], names = ["a-b"], block_count = 1, embedding_length = 8 }'
CROSS_ENCODER = f'[[model]]\nname = "A"\nmethod = "cross_encoder"\n{MATCH}\n'
PROMPT = 'labels = ["y", "n"]\ntemplate = "{query}{document}"'
CAUSAL_LM = f'[[model]]\nname = "A"\nmethod = "causal_lm"\n{PROMPT}\n{MATCH}\n'
EMBEDDING = f'[[model]]\nname = "A"\nmethod = "embedding"\npooling = "mean"\nlow = 0.1\nhigh = 0.9\n{MATCH}\n'


def test_the_catalog_of_the_package_is_valid() -> None:
    entries = catalog.known().entries
    assert len(entries) > 30
    assert all(entry.languages and entry.licence for entry in entries)
    assert all(not entry.refs for entry in entries if entry.refused)
    assert {ref.split(":")[0] for entry in entries for ref in entry.refs} == {"hf", "ms", "builtin"}
    assert catalog.known() is catalog.known()


def test_names_and_aliases_find_their_entry() -> None:
    known = catalog.known()
    for name in ("BAAI/bge-reranker-v2-m3", "bge-reranker-v2-m3", " BGE-Reranker-V2-M3 "):
        entry = known.find(name)
        assert entry is not None
        assert entry.name == "bge-reranker-v2-m3"
    assert known.find("bge-reranker") is None
    built_in = known.find("e5")
    assert built_in is not None
    assert built_in.refs == ("builtin:e5",)


def test_the_qwen3_family_shares_one_prompt() -> None:
    prompts = {
        (entry.template, entry.labels, entry.instruction)
        for entry in catalog.known().entries
        if entry.name.startswith("Qwen3-Reranker")
    }
    assert len(prompts) == 1


def test_valid_tables_load() -> None:
    assert load("").entries == ()
    assert load(CROSS_ENCODER).entries[0].low is None
    assert load(CAUSAL_LM).entries[0].labels == ("y", "n")
    assert load(EMBEDDING).entries[0].low == 0.1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[", "not valid TOML"),
        ("other = 1", "only [[model]] tables"),
        ("model = 1", "only [[model]] tables"),
        ("model = [1]", "only [[model]] tables"),
        ("[[model]]\n", "name: Field required"),
        ('[[model]]\nname = "A"\n', "catalog, A, match: Field required"),
        (CROSS_ENCODER.replace('"cross_encoder"', '"best"'), "method: Input should be 'cross_encoder'"),
        (CROSS_ENCODER.replace('method = "cross_encoder"\n', ""), "either method or refused"),
        (CROSS_ENCODER + 'refused = "why"\n', "either method or refused"),
        (CROSS_ENCODER.replace('"A"', "1"), "name: Input should be a valid string"),
        (CROSS_ENCODER + "max_length = true\n", "max_length: Input should be a valid integer"),
        (CROSS_ENCODER + "wndow = 5\n", "wndow: Extra inputs"),
        (CROSS_ENCODER.replace("names", "nams"), "match.names: Field required"),
        (CROSS_ENCODER.replace("8 }", "8, layers = 1 }"), "match.layers: Extra inputs"),
        (CROSS_ENCODER.replace("a-b", "A B"), "joined by hyphens"),
        (CROSS_ENCODER.replace('["a-b"]', "[]"), "match.names: Tuple should have at least 1 item"),
        (CROSS_ENCODER.replace("block_count = 1, ", ""), "exactly identified"),
        (CROSS_ENCODER.replace(", embedding_length = 8", ""), "exactly identified"),
        (CROSS_ENCODER + 'aliases = [1]\n', "aliases.0: Input should be a valid string"),
        (CROSS_ENCODER + 'labels = ["yes"]\n', "are for causal_lm"),
        (CROSS_ENCODER + 'template = "{query}"\n', "document"),
        (CROSS_ENCODER + 'query_prefix = "q"\n', "are for embedding"),
        (CROSS_ENCODER + CROSS_ENCODER, "'A' is already a name of A"),
        (CROSS_ENCODER + 'aliases = ["a"]\n', "'a' is already a name of A"),
        (CAUSAL_LM.replace('["y", "n"]', '["y", "n", "m"]'), "one or two labels"),
        (CAUSAL_LM.replace('["y", "n"]', '["y", ""]'), "one or two labels"),
        (CAUSAL_LM + "logit_sigma = 0.0\n", "logit_sigma must be above 0"),
        (EMBEDDING + "logit_mean = 1.0\n", "whose score is a sigmoid"),
        (CAUSAL_LM.replace("{query}", "{query}{?instruction}x"), "without its counterpart"),
        (CAUSAL_LM.replace("{query}", "{?instruction}{query}{/instruction}"), "left out without"),
        (CROSS_ENCODER.replace("8 }", "8, any_size = true }"), "exactly identified"),
        (CAUSAL_LM.replace("{query}", ""), "{query} exactly once"),
        (CAUSAL_LM + 'instruction = "i"\n', "instruction requires {instruction}"),
        (CAUSAL_LM.replace("{query}", "{query}{instruction}"), "requires an instruction"),
        (CAUSAL_LM + 'prompt_of = "B"\n', "no earlier table defines"),
        (EMBEDDING.replace('"mean"', '"rank"'), "embedding needs the pooling"),
        (EMBEDDING.replace("low = 0.1\n", ""), "low and high must be cosines"),
        (EMBEDDING.replace("0.1", "0.9"), "low must be less than high"),
        (EMBEDDING.replace("0.9", "9"), "must be cosines"),
        (CROSS_ENCODER + "low = 0\n", "are for embedding"),
    ],
)  # fmt: skip
def test_an_error_names_the_model_and_the_field(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load(text)
    assert words in str(raised.value)


def test_plain_names() -> None:
    assert plain(" Multilingual E5_Small (4-bit, built in)") == "multilingual-e5-small-4-bit-built-in"


def test_template_errors() -> None:
    assert template_error("{query} {document} {instruction} {other}") == ""
    assert "document" in template_error("{query} {{document}} {document}")
